"""A small ResNet with CBAM, trained on the handwritten digits that come with scikit-learn.

Source: He et al. 2016 (basic block) and Woo et al. 2018, arXiv:1807.06521, figure 3: CBAM acts on the output of a
block's convolutions, before the shortcut is added.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edgeattn.errors import InputError, MissingDependencyError, one_line
from edgeattn.nn import CBAM

WEIGHTS = Path(__file__).with_name("cbam_resnet_digits.safetensors")


class CBAMBlock(nn.Module):
    """`relu(cbam(bn(conv(relu(bn(conv(x)))))) + shortcut(x))`."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            CBAM(channels, rd_ratio=1 / 8),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` (B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class CBAMResNet(nn.Module):
    """Stem, stages of two `CBAMBlock`s each, global average, linear classifier.

    Args:
        in_channels: channels of the image.
        classes: length of the logits.
        widths: channels of each stage; every stage after the first halves the map.
    """

    def __init__(self, in_channels: int = 1, classes: int = 10, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            blocks += [CBAMBlock(before, width, 2 if stage else 1), CBAMBlock(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images `x` (B, C, H, W); returns logits (B, classes)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def cbam_resnet_digits(pretrained: bool = True) -> CBAMResNet:
    """A `CBAMResNet` for 1x32x32 images of the digits 0 to 9, prepared by `calibration/digits.toml`.

    Raises:
        InputError: the weights are missing or damaged.
        MissingDependencyError: safetensors is not installed.
    """
    model = CBAMResNet().eval()
    if pretrained:
        _load(model, WEIGHTS)
    return model


def _load(model: nn.Module, path: Path) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as err:
        raise MissingDependencyError("reading weights needs safetensors: pip install 'edgeattn[torch]'") from err
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as err:
        raise InputError(f"cannot load {path}: {one_line(err)}; scripts/train_zoo makes it again") from err
