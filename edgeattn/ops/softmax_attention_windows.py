"""Softmax attention in windows and with positions, as people write it; for the cases of softmax attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Swin(nn.Module):
    """Three windows of four places, a bias for relative positions, and the mask of shifted windows."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Linear(8, 24), nn.Parameter(torch.randn(2, 4, 4))
        self.register_buffer("mask", torch.where(torch.rand(3, 4, 4) > 0.5, 0.0, -100.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 8)
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * 0.5, qkv[1], qkv[2]
        scores = q @ k.transpose(-2, -1) + self.bias.unsqueeze(0)
        scores = scores.view(b // 3, 3, 2, n, n) + self.mask.unsqueeze(1).unsqueeze(0)
        weights = scores.view(-1, 2, n, n).softmax(-1)
        y: Tensor = (weights @ v).transpose(1, 2).reshape(b // 3, 12, c)
        return y


class SwinV2(nn.Module):
    """Cosine of queries and keys, a learned temperature for each head, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.randn(3, 1, 1)), nn.Parameter(torch.randn(3, 5, 7))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return (scores * self.scale.clamp(max=4.6).exp() + self.bias).softmax(-1) @ v


class SwinV2Shifted(SwinV2):
    """The same in three windows that were shifted: the mask differs from window to window, the temperature does not."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.reshape(-1, 3, *t.shape[2:]) for t in (q, k, v))
        scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.scale.exp() + self.bias
        mask = torch.where(torch.arange(7) < torch.arange(1, 4)[:, None, None, None], 0.0, -100.0)
        scores = scores.view(-1, 3, 3, 5, 7) + mask
        return (scores.view(-1, 3, 5, 7).softmax(-1) @ v).view(-1, 9, 5, v.shape[-1])


class BotNet(nn.Module):
    """Scores of content scaled, those of position, learned for rows and columns, added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(8, 24, 1)
        self.height, self.width = nn.Parameter(torch.randn(2, 3, 1, 4)), nn.Parameter(torch.randn(2, 1, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = (t.transpose(-2, -1) for t in self.qkv(x).view(b, 3, 2, 4, h * w).unbind(1))
        place = (self.height + self.width).reshape(1, 2, h * w, 4)
        weights = ((q @ k.transpose(-1, -2)) * 0.5 + q @ place.transpose(-1, -2)).softmax(-1)
        y: Tensor = (weights @ v).transpose(-1, -2).reshape(b, c, h, w)
        return y


class Decomposed(nn.Module):
    """As Segment Anything: the scores seen as maps, positions added by row and by column."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.randn(3, 3, 4)), nn.Parameter(torch.randn(5, 5, 4))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b = q.shape[0]
        scores, grid = (q * 0.5) @ k.transpose(-2, -1), q.reshape(b, 3, 5, 4)
        rows = torch.einsum("bhwc,hkc->bhwk", grid, self.rows)
        columns = torch.einsum("bhwc,wkc->bhwk", grid, self.columns)
        scores = scores.view(b, 3, 5, 3, 5) + rows[:, :, :, :, None] + columns[:, :, :, None, :]
        return (scores.view(b, 15, 15).softmax(-1) @ v).reshape(b, 3, 5, 4)


class Windows(nn.Module):
    """Windows of three by three cut out of a map, padded by what is missing, as Swin's with sizes computed."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Linear(8, 24), nn.Parameter(torch.randn(2, 9, 9))

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = F.pad(x, (0, 0, 0, (3 - w % 3) % 3, 0, (3 - h % 3) % 3))
        rows, columns = x.shape[1] // 3, x.shape[2] // 3
        x = x.view(b, rows, 3, columns, 3, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, c)
        q, k, v = self.qkv(x).reshape(-1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q @ k.transpose(-2, -1) * 0.5 + self.bias).softmax(-1) @ v).transpose(1, 2)
        y = y.reshape(b, rows, columns, 3, 3, c).permute(0, 1, 3, 2, 4, 5)
        out: Tensor = y.reshape(b, 3 * rows, 3 * columns, c)
        return out
