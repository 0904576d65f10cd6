"""Small attention networks that tests export and run; random weights, BatchNorm statistics taken from data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelGate(nn.Module):
    """CBAM's channel half: sigmoid(mlp(avg) + mlp(max)) * x."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(), nn.Conv2d(channels // reduction, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))
        return x * torch.sigmoid(pooled)


class SpatialGate(nn.Module):
    """CBAM's spatial half: sigmoid(conv([mean_c x, max_c x])) * x."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class Residual(nn.Module):
    """A basic ResNet block that ends in CBAM."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
            ChannelGate(out),
            SpatialGate(),
        )
        same = stride == 1 and channels == out
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class CbamResNet(nn.Module):
    """A ResNet with CBAM in every block: (B, 3, H, W) to (B, 10)."""

    def __init__(self, width: int = 16, blocks: tuple[int, ...] = (1, 1)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        for stage, count in enumerate(blocks):
            for index in range(count):
                out = width << stage
                layers.append(Residual(channels, out, 2 if stage and not index else 1))
                channels = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP, as in ViT."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """A vision transformer: (B, 3, size, size) to (B, 10)."""

    def __init__(self, size: int = 32, patch: int = 8, dim: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class NonLocal(nn.Module):
    """SAGAN's block: unscaled attention over all positions, x + gamma * attention(x)."""

    def __init__(self, channels: int, gamma: float = 0.5) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels, channels // 4, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.tensor(gamma))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x).flatten(2), self.key(x).flatten(2), self.value(x).flatten(2)
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)
        return x + self.gamma * (v @ weights.transpose(1, 2)).view_as(x)


class ConvNonLocal(nn.Module):
    """Two convolutions around a non-local block: (B, 3, H, W) to (B, 3, H / 2, W / 2)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            NonLocal(width),
            nn.Conv2d(width, 3, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _double_conv(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
        nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
    )  # fmt: skip


class AttentionUNet(nn.Module):
    """A U-Net with additive attention gates: (B, 3, H, W) to logits (B, 2, H, W)."""

    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.theta = nn.ModuleList(nn.Conv2d(w, w, 1) for w in widths[:-1])
        self.phi = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in widths[:-1])
        self.psi = nn.ModuleList(nn.Conv2d(w, 1, 1) for w in widths[:-1])
        self.up = nn.ModuleList(_double_conv(3 * w, w) for w in widths[:-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            x = level(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for theta, phi, psi, up in reversed(list(zip(self.theta, self.phi, self.psi, self.up, strict=True))):
            skip = skips.pop()
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            gate = torch.sigmoid(psi(F.relu(theta(skip) + phi(x))))
            x = up(torch.cat([skip * gate, x], 1))
        return self.head(x)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "cbam": CbamResNet,
    "vit": TinyViT,
    "nonlocal": ConvNonLocal,
    "unet": AttentionUNet,
}


def settled(factory: Callable[[], nn.Module], images: Tensor, seed: int = 0) -> nn.Module:
    """A network in eval mode whose BatchNorm statistics come from `images` (B, C, H, W), with random affine terms."""
    torch.manual_seed(seed)
    module = factory()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(images)
    return module.eval()
