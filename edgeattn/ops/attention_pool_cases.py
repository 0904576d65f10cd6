# mypy: warn-return-any=False
"""Attention pooling as people write it, and what only looks like one; imported by the conformance tests alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.ops.base import Case

C, H = 6, 4
BAG, ITEMS, MAP, FRAMES = ((7, C),), ((2, 7, C),), ((2, C, 7, 5),), ((2, 3, C, 5, 4),)


class Bag(nn.Module):
    """As in github.com/AMLab-Amsterdam/AttentionDeepMIL: one bag, `gated` or not."""

    def __init__(self, gated: bool = False) -> None:
        super().__init__()
        self.v, self.u, self.w = nn.Linear(C, H), nn.Linear(C, H), nn.Linear(H, 2)
        self.gated = gated

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.v(x))
        a = self.w(a * torch.sigmoid(self.u(x)) if self.gated else a)
        return torch.mm(F.softmax(torch.transpose(a, 1, 0), dim=1), x)


class Additive(nn.Module):
    """Bahdanau's scores (arXiv 1409.0473) of a state and each item; `how` says what is done with the softmax."""

    def __init__(self, how: str = "sum") -> None:
        super().__init__()
        self.w, self.u, self.v = nn.Linear(C, H), nn.Linear(C, H), nn.Linear(H, 1)
        self.how = how

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        scores = self.v(torch.tanh(self.w(x) + self.u(state).unsqueeze(1)))  # (B, N, 1)
        weights = torch.softmax(scores, dim=2 if self.how == "channels" else 1)
        weights = weights.expand_as(x) if self.how == "expanded" else weights
        if self.how == "bmm":
            return torch.bmm(weights.transpose(1, 2), x).squeeze(1)
        if self.how == "einsum":
            return torch.einsum("bn,bnc->bc", weights.squeeze(-1), x)
        if self.how == "mean":
            return (weights * x).mean(1)
        if self.how == "over-channels":
            return (weights * x).sum(2)
        if self.how == "kept":
            return (weights * x).sum(1, keepdim=True)
        return (weights * x).sum(1)


class Shared(Additive):
    """The weights are a result, too."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        weights = torch.softmax(self.v(torch.tanh(self.w(x) + self.u(state).unsqueeze(1))).squeeze(-1), dim=-1)
        return (weights.unsqueeze(-1) * x).sum(1), weights


class Masked(nn.Module):
    """Items that do not count get a score of minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(C, 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        scores = self.score(x).squeeze(-1).masked_fill(padding > 2, float("-inf"))
        return (scores.softmax(-1).unsqueeze(1) @ x).squeeze(1)


class Queries(nn.Module):
    """Several learned queries, each with weights of its own."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.query = nn.Linear(C, count, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x).softmax(1).transpose(1, 2) @ x


class Places(nn.Module):
    """Attention over the places of a map: a softmax over all of them, a product, and a sum (`how`)."""

    def __init__(self, how: str = "product") -> None:
        super().__init__()
        self.score = nn.Conv2d(C, 1, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        weights = F.softmax(self.score(x).view(b, 1, h * w), dim=2)
        if self.how == "matmul":  # as in GCNet
            return torch.matmul(x.view(b, c, h * w).unsqueeze(1), weights.unsqueeze(-1)).view(b, c, 1, 1)
        if self.how == "steps":
            return (x * weights.view(b, 1, h, w)).sum(3).sum(2)
        if self.how == "rows":
            return (x * weights.view(b, 1, h, w)).sum(3)
        if self.how == "everything":
            return (x * weights.view(b, 1, h, w)).sum((1, 2, 3))
        return (x * weights.view(b, 1, h, w)).sum((2, 3))


class Columns(nn.Module):
    """Places counted column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Conv2d(C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        weights = self.score(x).transpose(2, 3).flatten(1).softmax(1).view(b, 1, w, h).transpose(2, 3)
        return (x * weights).sum((2, 3))


class Frames(nn.Module):
    """Temporal attention: frames (B, T, C, H, W) summed to one map."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(C, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x.mean((3, 4))).softmax(1)
        return (x * weights[..., None, None]).sum(1)


class Channelwise(nn.Module):
    """Attentive statistics (arXiv 1803.10963): each channel has weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(x).softmax(1) * x).sum(1)


class Scales(nn.Module):
    """Attention to scale (arXiv 1511.03339): each place has weights for the scales."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.attention = nn.Conv2d(C, H, 1), nn.Conv2d(2 * C, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.interpolate(F.avg_pool2d(x, 2, 2, ceil_mode=True), size=x.shape[2:], mode="bilinear")
        weights = self.attention(torch.cat([x, coarse], 1)).softmax(1)
        return torch.stack([self.score(x), self.score(coarse)], 1).mul(weights.unsqueeze(2)).sum(1)


class Separable(nn.Module):
    """MobileViT v2's attention (arXiv 2206.02680): the patches of each place are pooled to one context."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(C, 1 + 2 * C, 1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([1, C, C], dim=1)
        context = (k * q.softmax(-1)).sum(dim=-1, keepdim=True)
        return self.out(F.relu(v) * context.expand_as(v))


class Normalised(nn.Module):
    """SwiftFormer's additive attention (arXiv 2303.15446): weights divided by their norm instead of a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.w = nn.Parameter(torch.randn(C, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k = F.normalize(self.q(x), dim=-1), F.normalize(self.k(x), dim=-1)
        weights = F.normalize(q @ self.w * C**-0.5, dim=1)
        return self.out((weights * q).sum(dim=1, keepdim=True) * k) + q


class Cosine(nn.Module):
    """A similarity of two tensors: a sum of a normalised one, but no weights of items."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(1)


class Classifier(nn.Module):
    """A softmax over classes and an expectation over constants: no items."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(C, H)
        self.register_buffer("places", torch.arange(H).float())

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x).softmax(-1) * self.places).sum(-1)


STATE = (*ITEMS, (2, C))
FOUND = ("AttentionPool",)
IMAGE = ("batch", "height", "width")
CASES = (
    Case("bag", Bag, BAG, FOUND),
    Case("bag-gated", lambda: Bag(gated=True), BAG, FOUND),
    Case("additive", Additive, STATE, FOUND),
    Case("additive-kept", lambda: Additive("kept"), STATE, FOUND),
    Case("additive-expanded", lambda: Additive("expanded"), STATE, FOUND),
    Case("additive-bmm", lambda: Additive("bmm"), STATE, FOUND),
    Case("additive-einsum", lambda: Additive("einsum"), STATE, FOUND),
    Case("weights-used-elsewhere", Shared, STATE, FOUND),
    Case("masked", Masked, (*ITEMS, (2, 7)), FOUND),
    Case("queries", Queries, ITEMS, FOUND),
    Case("places", Places, MAP, FOUND, dynamic=IMAGE),
    Case("places-matmul", lambda: Places("matmul"), MAP, FOUND, dynamic=IMAGE),
    Case("places-steps", lambda: Places("steps"), MAP, FOUND),
    Case("places-of-one", Places, ((1, C, 5, 3),), FOUND),
    Case("columns", Columns, MAP, FOUND),
    Case("frames", Frames, FRAMES, FOUND),
    Case("mean", lambda: Additive("mean"), STATE, missed="expected their sum"),
    Case("over-channels", lambda: Additive("over-channels"), STATE, missed="expected the same"),
    Case("softmax-over-one", lambda: Additive("channels"), STATE),
    Case("rows", lambda: Places("rows"), MAP, missed="expected the same"),
    Case("everything", lambda: Places("everything"), MAP, missed="also sums over"),
    Case("channelwise", Channelwise, ITEMS, missed="expected one for each item"),
    Case("scales", Scales, MAP, FOUND, dynamic=IMAGE),
    Case("separable", Separable, MAP, FOUND, dynamic=IMAGE),
    Case("separable-of-one", Separable, ((1, C, 4, 9),), FOUND),
    Case("divided-by-norm", Normalised, ITEMS, missed="divided by their norm"),
    Case("cosine", Cosine, (*ITEMS, *ITEMS)),
    Case("classifier", Classifier, ITEMS),
)
