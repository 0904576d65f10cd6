"""Eight networks with attention in the shapes that people deploy, for the benches: nothing is downloaded.

Weights are random and seeded, and made to behave like trained ones on photographs: BatchNorm statistics are measured
on them, residual branches are weaker than what they are added to, queries and keys are large enough that attention
looks somewhere, and the last layer is fitted to tell the photographs apart, or their bright places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.export import export_model
from edgeattn.model import Model
from edgeattn.nn import CBAM, AttentionGate, SelectiveKernel, SelfAttention2d, SqueezeExcite
from edgeattn.tensors import TensorSpec
from edgeattn.zoo.blocks import conv_bn_act
from edgeattn.zoo.data.sources import crop, photographs

if TYPE_CHECKING:
    from edgeattn.tensors import Array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOGRAPHS = 12
SETTLING = {64: 24, 224: 48, 256: 48, 512: 6}  # crops that a network is settled on, by their side
SETTLING_SEED = 1234
RIDGE = 0.1  # over the mean variance of the features
BRANCH = 0.5  # size of a residual branch
SCORE_STD = 2.0  # of attention's scores over the keys
SMOOTH = 0.3  # of a kernel's power, where no shortcut carries what is smooth


class Residual(nn.Module):
    """`relu(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body, self.shortcut = body, nn.Sequential()
        if stride != 1 or in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def bottleneck(
    in_channels: int, channels: int, stride: int, attention: Callable[[int], nn.Module] | None = None
) -> Residual:
    """ResNet's: 1x1, 3x3 with the stride, 1x1, and a gate."""
    inner = channels // 4
    gate = [attention(channels)] if attention else []
    body = nn.Sequential(
        *conv_bn_act(in_channels, inner, 1), *conv_bn_act(inner, inner, 3, stride),
        nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels), *gate,
    )  # fmt: skip
    return Residual(body, in_channels, channels, stride)


def selective(in_channels: int, channels: int, stride: int) -> Residual:
    """SKNet's basic block: selective kernels, 3x3."""
    kernels = SelectiveKernel(in_channels, channels, stride=stride, rd_ratio=1 / 8, rd_divisor=16)
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return Residual(nn.Sequential(kernels, conv, nn.BatchNorm2d(channels)), in_channels, channels, stride)


class PlaceAttention(nn.Module):
    """BoTNet's self-attention over a map of `size` x `size`, with scores of relative places that q makes."""

    def __init__(self, channels: int, size: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size, dim = heads, size, channels // heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.rows, self.columns = (nn.Parameter(torch.randn(2 * size - 1, dim) * dim**-0.5) for _ in range(2))

    def relative(self, q: Tensor, places: Tensor) -> Tensor:
        """Scores of q (B, H, W, d) with the embedding of each distance: (B, H, W, keys along W)."""
        B, H, W, _ = q.shape
        scores = F.pad((q @ places.T).reshape(B * H, W, 2 * W - 1), (0, 1)).flatten(1)
        return F.pad(scores, (0, W - 1)).reshape(B * H, W + 1, 2 * W - 1)[:, :W, W - 1 :].reshape(B, H, W, W)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q, k, v = (part.reshape(B * self.heads, -1, H * W).transpose(1, 2) for part in self.qkv(x).chunk(3, 1))
        grid = q.reshape(-1, H, W, C // self.heads)
        along = self.relative(grid, self.columns).unsqueeze(3)  # (BH, H, W, 1, W)
        across = self.relative(grid.transpose(1, 2), self.rows).transpose(1, 2).unsqueeze(4)  # (BH, H, W, H, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=(along + across).reshape(-1, H * W, H * W))
        return out.transpose(1, 2).reshape(x.shape)


def transformer_bottleneck(in_channels: int, channels: int, stride: int, size: int) -> Residual:
    """BoTNet's: attention in the place of the 3x3, and a mean where there is a stride."""
    inner = channels // 4
    pool = [nn.AvgPool2d(2)] if stride == 2 else []
    body = nn.Sequential(
        *conv_bn_act(in_channels, inner, 1), PlaceAttention(inner, size), *pool, nn.BatchNorm2d(inner), nn.ReLU(),
        nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels),
    )  # fmt: skip
    return Residual(body, in_channels, channels, stride)


def resnet(stem: nn.Module, stages: Sequence[Sequence[Callable[..., nn.Module]]], widths: Sequence[int]) -> nn.Module:
    """Stem, stages of residual blocks, mean over places, 1000 scores; widths are the stem's and the stages'."""
    blocks = []
    for number, stage in enumerate(stages):
        for index, make in enumerate(stage):
            before = widths[number] if index == 0 else widths[number + 1]
            blocks.append(make(before, widths[number + 1], 2 if number and not index else 1))
    head = nn.Linear(widths[-1], 1000)
    return nn.Sequential(stem, nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def resnet50(attention: Callable[[int], nn.Module]) -> nn.Module:
    """ResNet-50 with a gate in each block."""
    block = partial(bottleneck, attention=attention)
    return resnet(conv_bn_act(3, 64, 7, 2), [[block] * count for count in (3, 4, 6, 3)], (64, 256, 512, 1024, 2048))


def skresnet18() -> nn.Module:
    """ResNet-18 with selective kernels."""
    return resnet(conv_bn_act(3, 64, 7, 2), [[selective] * 2] * 4, (64, 64, 128, 256, 512))


def botnet26t() -> nn.Module:
    """BoTNet-26 for 256 x 256, as timm has it: attention in three of the eight blocks."""
    stem = nn.Sequential(conv_bn_act(3, 24, 3, 2), conv_bn_act(24, 32), conv_bn_act(32, 64))
    at_16, at_8 = partial(transformer_bottleneck, size=16), partial(transformer_bottleneck, size=8)
    stages = [[bottleneck] * 2, [bottleneck] * 2, [bottleneck, at_16], [at_16, at_8]]
    return resnet(stem, stages, (64, 256, 512, 1024, 2048))


class Block(nn.Module):
    """A ViT's block, queries, keys and values from one layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(dim), nn.LayerNorm(dim), heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A ViT over 14 x 14 patches and a class token; DeiT is the same in another width."""

    def __init__(self, dim: int, heads: int, depth: int = 12) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 16, 16)
        self.token, self.places = (nn.Parameter(torch.randn(1, n, dim)) for n in (1, 197))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 1000)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class AttentionUNet(nn.Module):
    """Attention U-Net in half of its usual widths, one mask of scores."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        double = [nn.Sequential(conv_bn_act(a, b), conv_bn_act(b, b)) for a, b in [(3, widths[0]), *pairs]]
        self.down = nn.ModuleList(double)
        self.rise = nn.ModuleList(conv_bn_act(b, a) for a, b in pairs)
        self.gates = nn.ModuleList(AttentionGate(a, a) for a, _ in pairs)
        self.join = nn.ModuleList(nn.Sequential(conv_bn_act(b, a), conv_bn_act(a, a)) for a, b in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for depth, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if depth else x)
            skips.append(x)
        levels = zip(skips[:-1], self.rise, self.gates, self.join, strict=True)
        for skip, rise, gate, join in reversed(list(levels)):
            x = rise(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = join(torch.cat([gate(skip, x), x], 1))
        return self.head(x)


def sagan() -> nn.Module:
    """A discriminator's first map of 64 x 64 places, each of which looks at all others."""
    attention = SelfAttention2d(64)
    nn.init.ones_(attention.gamma)
    return nn.Sequential(conv_bn_act(3, 64), attention, nn.BatchNorm2d(64), nn.Conv2d(64, 1, 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and the side of the image
    "seresnet50": (partial(resnet50, SqueezeExcite), 224),
    "skresnet18": (skresnet18, 224),
    "botnet26t": (botnet26t, 256),
    "vit_tiny": (partial(ViT, 192, 3), 224),
    "deit_small": (partial(ViT, 384, 6), 224),
    "cbam_resnet50": (partial(resnet50, CBAM), 224),
    "attunet": (AttentionUNet, 512),
    "sagan": (sagan, 64),
}


def photos(size: int, count: int, seed: int = 0) -> Array:
    """Crops of real photographs, each in its turn, normalised: (count, 3, size, size), float32.

    The n-th is of photograph n modulo `PHOTOGRAPHS`. Different seeds give different crops.
    """
    rng = np.random.default_rng(seed)
    sources = (*photographs("train"), *photographs("test"))
    crops = np.stack([crop(sources[index % PHOTOGRAPHS], size, rng, smallest=256) for index in range(count)])
    scaled = (crops.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def network(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, int, int, int]]:
    """One of `NETWORKS` in eval mode, the same for a seed of its weights, and the shape of its input at batch 1."""
    make, size = NETWORKS[name]
    torch.manual_seed(seed)
    module = make()
    _strengthen(module)
    _settle(module, torch.from_numpy(photos(size, SETTLING[size], SETTLING_SEED)))
    return module.eval().requires_grad_(False), (1, 3, size, size)


def exported(name: str, path: Path, seed: int = 0) -> Path:
    """Write a network as ONNX at batch 1."""
    module, shape = network(name, seed)
    export_model(Model(module, (TensorSpec("x", "float32", shape),), name), path, check=False)
    return path


def _strengthen(module: nn.Module) -> None:
    """Weights of a trained network's size: unit variance through each layer, scores of `SCORE_STD`."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    for layer in module.modules():
        if isinstance(layer, Residual):
            last = [part for part in layer.body.modules() if isinstance(part, nn.BatchNorm2d)][-1]
            last.weight.data *= BRANCH
        if isinstance(layer, Block):
            layer.proj.weight.data *= BRANCH
            layer.mlp[-1].weight.data *= BRANCH
        if isinstance(layer, (Block, PlaceAttention)):
            layer.qkv.weight.data[: 2 * len(layer.qkv.weight) // 3] *= SCORE_STD**0.5
        if isinstance(layer, AttentionUNet):
            for kernel in (part.weight for part in layer.modules() if getattr(part, "kernel_size", 0) == (3, 3)):
                flat = torch.randn(*kernel.shape[:2], 1, 1) * kernel.std()
                kernel.data = (1 - SMOOTH) ** 0.5 * kernel.data + SMOOTH**0.5 * flat
        if isinstance(layer, SelfAttention2d):
            for part in (layer.query, layer.key):
                part.weight.data *= (SCORE_STD / part.out_channels**0.5) ** 0.5


@torch.no_grad()
def _settle(module: nn.Module, images: Tensor) -> None:
    """Measure BatchNorm's statistics, and fit the last layer by least squares, on one batch."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics of all that it sees
    head = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))][-1]
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module.train()(images)
    hook.remove()
    features = seen[0].movedim(1, -1).flatten(0, -2).double()
    targets = _targets(images, head.weight.shape[0]).double()
    mean, aim = features.mean(0), targets.mean(0)
    centred = features - mean
    covariance = centred.T @ centred / len(features)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(mean))
    weight = torch.linalg.solve(covariance, centred.T @ (targets - aim) / len(features)).T
    head.weight.data.copy_(weight.reshape(head.weight.shape))
    head.bias.data.copy_(aim - weight @ mean)


def _targets(images: Tensor, outputs: int) -> Tensor:
    """What the last layer is to say: a code for each photograph, or whether a place is brighter than most."""
    if outputs > 1:
        codes = torch.randn(PHOTOGRAPHS, outputs)
        return codes[torch.arange(len(images)) % PHOTOGRAPHS]
    gray = F.avg_pool2d(images.mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)
    return torch.sign(gray - gray.mean((2, 3), keepdim=True)).reshape(-1, 1)
