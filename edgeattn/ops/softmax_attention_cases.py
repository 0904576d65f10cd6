"""Softmax attention as people write it, and what only looks like it; imported by the conformance tests alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case
from edgeattn.ops.softmax_attention_windows import BotNet, Decomposed, Swin, SwinV2, SwinV2Shifted, Windows

FOUND = ("SoftmaxAttention",)
TRIPLE = ((2, 5, 4), (2, 7, 4), (2, 7, 3))
HEADS = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6))
SHARED = ((2, 3, 5, 4), (2, 7, 4), (2, 7, 6))


class Sagan(nn.Module):
    """As in github.com/heykeetae/Self-Attention-GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 2, 1), nn.Conv2d(16, 16, 1)
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        query = self.query(x).view(b, -1, h * w).permute(0, 2, 1)
        attention = torch.softmax(torch.bmm(query, self.key(x).view(b, -1, h * w)), dim=-1)
        out = torch.bmm(self.value(x).view(b, -1, h * w), attention.permute(0, 2, 1))
        return self.gamma * out.view(b, c, h, w) + x


class NonLocal(nn.Module):
    """As in github.com/AlexHex7/Non-local_pytorch: keys and values pooled; with softmax or divided by their number."""

    def __init__(self, dot: bool = False) -> None:
        super().__init__()
        self.dot = dot
        self.theta = nn.Conv2d(8, 4, 1)
        self.phi = nn.Sequential(nn.Conv2d(8, 4, 1), nn.MaxPool2d(2))
        self.g = nn.Sequential(nn.Conv2d(8, 4, 1), nn.MaxPool2d(2))
        self.w = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        b = x.size(0)
        g = self.g(x).view(b, 4, -1).permute(0, 2, 1)
        f = torch.matmul(self.theta(x).view(b, 4, -1).permute(0, 2, 1), self.phi(x).view(b, 4, -1))
        f = f / f.size(-1) if self.dot else F.softmax(f, dim=-1)
        y = torch.matmul(f, g).permute(0, 2, 1).contiguous().view(b, 4, *x.size()[2:])
        out: Tensor = self.w(y) + x
        return out


class Cross(nn.Module):
    """Separate maps for query, key and value, lengths of their own, scaled on the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(12, 12), nn.Linear(9, 12), nn.Linear(7, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            t.view(t.shape[0], t.shape[1], 3, 4).transpose(1, 2) for t in (self.q(x), self.k(key), self.v(value))
        )
        out = ((q @ k.transpose(-2, -1)) * 4**-0.5).softmax(-1) @ v
        y: Tensor = self.o(out.transpose(1, 2).reshape(x.shape[0], -1, 12))
        return y


class MultiHead(nn.Module):
    """PyTorch's own, in its many ways."""

    def __init__(
        self, first: bool = True, weights: bool = False, cross: bool = False, mask: bool = False, pad: bool = False
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            12, 3, batch_first=first, kdim=9 if cross else 12, vdim=7 if cross else 12
        )
        self.first, self.weights, self.pad = first, weights, pad
        self.register_buffer("mask", torch.triu(torch.full((5, 5), -torch.inf), 1) if mask else None)

    def run(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        padding = key[..., 0] > 1.5 if self.pad else None
        if not self.first:
            x, key, value = (t.transpose(0, 1) for t in (x, key, value))
        out: Tensor = self.attention(
            x, key, value, padding, need_weights=self.weights, attn_mask=self.mask, average_attn_weights=False
        )[0]
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, x, x)


class MultiHeadCross(MultiHead):
    """The same for three tensors."""

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        return self.run(x, key, value)


class Vit(nn.Module):
    """As timm's: one linear layer for all three; the scale on q, or torch's function."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.fused = nn.Linear(12, 36), nn.Linear(12, 12), fused

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        out: Tensor = self.proj(y.transpose(1, 2).reshape(b, n, c))
        return out


class Repeated(nn.Module):
    """Keys and values that several heads share, repeated for them."""

    def __init__(self, groups: bool) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.groups:
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        else:
            k, v = k.unsqueeze(1).expand(-1, 3, -1, -1), v.unsqueeze(1).expand(-1, 3, -1, -1)
        return ((q @ k.transpose(-2, -1)) / 2).softmax(-1) @ v


class Einsum(nn.Module):
    """Both products as equations."""

    def __init__(self, scores: str, values: str, scale: float = 1.0) -> None:
        super().__init__()
        self.equations, self.scale = (scores, values), scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum(self.equations[0], q, k)
        return torch.einsum(self.equations[1], (scores * self.scale if self.scale != 1 else scores).softmax(-1), v)


class Transposed(nn.Module):
    """Channels first, the scores keys by queries; over the keys, or by mistake over the queries."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(v, torch.bmm(k.transpose(1, 2), q).softmax(self.axis))


class Channels(nn.Module):
    """As XCiT: queries and keys are channels, each with all tokens as its features; a temperature per head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.temperature = nn.Linear(12, 36), nn.Parameter(torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 4, 1).unbind(0)
        scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * self.temperature
        y: Tensor = (scores.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c)
        return y


class ChannelsOfMap(nn.Module):
    """As DANet's channel attention: a map times itself, the weights those of what differs most."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        energy = torch.bmm(x.view(b, c, -1), x.view(b, c, -1).permute(0, 2, 1))
        weights = (energy.max(-1, keepdim=True)[0].expand_as(energy) - energy).softmax(-1)
        y: Tensor = torch.bmm(weights, x.view(b, c, -1)).view(b, c, h, w) + x
        return y


class Unflattened(nn.Module):
    """Heads by `unflatten`, whose axis PyTorch computes in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (3, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y: Tensor = ((q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return y


class Rows(nn.Module):
    """Axial: every row of a map attends to itself."""

    def forward(self, x: Tensor) -> Tensor:
        t = x.permute(0, 2, 3, 1).unsqueeze(2)
        return (t @ t.transpose(-2, -1) * 0.1).softmax(-1) @ t


class Scores(nn.Module):
    """q k^T, changed by what stands in `change`, softmax, product."""

    def __init__(self, change: str, fill: float = -torch.inf) -> None:
        super().__init__()
        self.change, self.fill = change, fill
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor | tuple[Tensor, ...]:
        scores = q @ k.transpose(-2, -1)
        if self.change == "sigmoid":
            return torch.sigmoid(scores) @ v
        if self.change == "topk":
            top, where = scores.topk(2, -1)
            scores = torch.full_like(scores, -torch.inf).scatter(-1, where, top)
        elif self.change == "relu":
            scores = torch.relu(scores)
        elif self.change == "temperature":
            scores = scores / self.temperature
        elif self.change == "scaled by data":
            scores = scores * q.mean((-1, -2), keepdim=True)
        elif self.change == "scaled by key":
            scores = scores * k.mean(-1).unsqueeze(-2)
        elif self.change == "masked":
            scores = scores.masked_fill(k[..., 0].unsqueeze(-2) > 1.0, self.fill)
        elif self.change == "placed and masked":
            scores = (scores + k[..., 1].unsqueeze(-2)).masked_fill(q[..., :1] > 1.0, self.fill)
        elif self.change == "masked and placed":
            scores = scores.masked_fill(k[..., 0].unsqueeze(-2) > 1.0, self.fill) + k[..., 1].unsqueeze(-2)
        weights = scores.softmax(-1)
        return (weights @ v, scores * 2, weights) if self.change == "shared" else weights @ v


class Bare(nn.Module):
    """Weights that nothing is weighted with."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-1)


class Classifier(nn.Module):
    """Probabilities of classes, mixed by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).softmax(-1))
        return y


TOKENS = ((2, 5, 12),)
SHARED_WINDOWS = ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 2, 6))  # as SepViT, arXiv 2203.15380: keys are whole windows
CASES = (
    Case("sagan", Sagan, ((2, 16, 5, 7),), FOUND),
    Case("non-local", NonLocal, ((2, 8, 6, 4),), FOUND),
    Case("cross", Cross, ((2, 5, 12), (2, 7, 9), (2, 7, 7)), FOUND),
    Case("multihead", MultiHead, TOKENS, FOUND),
    Case("multihead-weights", lambda: MultiHead(weights=True), TOKENS, FOUND),
    Case("multihead-sequence-first", lambda: MultiHead(first=False, weights=True), TOKENS, FOUND),
    Case("multihead-mask", lambda: MultiHead(mask=True), TOKENS, FOUND),
    Case("multihead-mask-weights", lambda: MultiHead(mask=True, weights=True), TOKENS, FOUND),
    Case("multihead-padding", lambda: MultiHead(pad=True), TOKENS, FOUND),
    Case("multihead-cross", lambda: MultiHeadCross(cross=True), ((2, 5, 12), (2, 7, 9), (2, 7, 7)), FOUND),
    Case("vit", lambda: Vit(fused=False), TOKENS, FOUND),
    Case("vit-sdpa", lambda: Vit(fused=True), TOKENS, FOUND),
    Case("swin", Swin, ((2, 12, 8),), FOUND),
    Case("swin-v2", SwinV2, HEADS, FOUND),
    Case("swin-v2-shifted", SwinV2Shifted, ((2, 9, 5, 4), (2, 9, 7, 4), (2, 9, 7, 6)), FOUND),
    Case("botnet", BotNet, ((2, 8, 3, 5),), FOUND),
    Case("segment-anything", Decomposed, ((2, 15, 4),) * 3, FOUND),
    Case("multi-query", lambda: Repeated(groups=False), SHARED, FOUND),
    Case("grouped-query", lambda: Repeated(groups=True), ((2, 4, 5, 4), (2, 2, 7, 4), (2, 2, 7, 6)), FOUND),
    Case("einsum-heads", lambda: Einsum("bhid,bhjd->bhij", "bhij,bhjd->bhid", 0.3), HEADS, FOUND),
    Case("einsum-windows", lambda: Einsum("bhid,bhjd->bhij", "bhij,bhjwd->bhiwd"), SHARED_WINDOWS, FOUND),
    Case("einsum-tokens", lambda: Einsum("bid,bjd->bij", "bij,bjd->bid"), TRIPLE, FOUND),
    Case("einsum-multi-query", lambda: Einsum("bhid,bjd->bhij", "bhij,bjd->bhid"), SHARED, FOUND),
    Case("keys-by-queries", lambda: Transposed(1), ((2, 4, 5), (2, 4, 7), (2, 3, 7)), FOUND),
    Case("channels", Channels, TOKENS, missed="attends over 4 channels"),
    Case("channels-of-a-map", ChannelsOfMap, ((2, 8, 3, 5),), missed="attends over 8 channels"),
    Case("unflattened", Unflattened, TOKENS, FOUND),
    Case("windows", Windows, ((2, 6, 9, 8),), FOUND),
    Case("rows", Rows, ((2, 4, 3, 5),), FOUND),
    Case("temperature", lambda: Scores("temperature"), TRIPLE, FOUND),
    Case("scaled-by-data", lambda: Scores("scaled by data"), TRIPLE, FOUND),
    Case("masked", lambda: Scores("masked"), TRIPLE, FOUND),
    Case("masked-lowest", lambda: Scores("masked", torch.finfo(torch.float32).min), TRIPLE, FOUND),
    Case("shared", lambda: Scores("shared"), TRIPLE, FOUND),
    Case("single", lambda: Scores(""), ((5, 4), (5, 4), (5, 3)), FOUND),
    Case("masked-finite", lambda: Scores("masked", -1e9), TRIPLE, FOUND),
    Case("masked-little", lambda: Scores("masked", -2.0), TRIPLE, FOUND),
    Case("masked-and-placed", lambda: Scores("placed and masked", -1e4), TRIPLE, FOUND),
    Case("masked-then-placed", lambda: Scores("masked and placed", -1e4), TRIPLE, missed="before others are added"),
    Case("scaled-by-key", lambda: Scores("scaled by key"), TRIPLE, missed="differs from key to key"),
    Case("dot-product", lambda: NonLocal(dot=True), ((2, 8, 6, 4),), missed="expected a softmax"),
    Case("sigmoid", lambda: Scores("sigmoid"), TRIPLE, missed="Sigmoid"),
    Case(
        "over-queries", lambda: Transposed(2), ((2, 4, 5), (2, 4, 5), (2, 3, 5)), missed="expected the axis of the keys"
    ),
    Case("relu", lambda: Scores("relu"), TRIPLE, missed="Relu"),
    Case("top-k", lambda: Scores("topk"), TRIPLE, missed="stands between"),
    Case("no-values", Bare, TRIPLE[:2], missed="expected a product with values"),
    Case("classifier", Classifier, ((2, 6),)),
)
