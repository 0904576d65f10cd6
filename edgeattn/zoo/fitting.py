"""Fitting a module to examples: losses by task, augmentation, and one cycle of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.errors import UsageError

Labels: TypeAlias = Tensor | list[Tensor]  # classes (N,), masks (N, H, W), or the boxes (K, 5) of each picture
Batch: TypeAlias = tuple[tuple[Tensor, ...], Labels]  # inputs in the order of `forward`, labels
Augment: TypeAlias = Callable[[tuple[Tensor, ...], Labels], Batch]


@dataclass(frozen=True)
class Settings:
    """How a model is trained: passes over `samples` samples in batches, the highest rate of the cycle, and the seed."""

    epochs: int = 20
    samples: int = 4000
    batch: int = 64
    rate: float = 4e-3
    decay: float = 0.05
    augment: Augment | None = None
    seed: int = 0


def fit(module: nn.Module, inputs: tuple[Tensor, ...], labels: Labels, task: str, settings: Settings) -> list[float]:
    """Train by AdamW on one cycle of the learning rate; returns the mean loss of each epoch. Ends in eval mode.

    A module with `training_loss(*inputs, labels)` is trained by it, any other by the task's loss of its output.

    Raises:
        UsageError: the module has no loss of its own and the task none for all.
    """
    loss_of = _loss(module, task)
    count = len(labels)
    steps = -(-count // settings.batch)
    optimiser = torch.optim.AdamW(module.parameters(), weight_decay=settings.decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, total_steps=steps * settings.epochs)
    losses = []
    module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third less time on a CPU
    for _ in range(settings.epochs):
        total = 0.0
        order = torch.randperm(count)
        for start in range(0, count, settings.batch):
            chosen, truth = taken(inputs, labels, order[start : start + settings.batch])
            if settings.augment is not None:
                chosen, truth = settings.augment(chosen, truth)
            loss = loss_of(tuple(map(_channels_last, chosen)), truth)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            cycle.step()
            total += float(loss.detach())
        losses.append(total / steps)
    module.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return losses


def taken(inputs: tuple[Tensor, ...], labels: Labels, chosen: Tensor) -> Batch:
    """The samples of these numbers."""
    own = labels[chosen] if isinstance(labels, Tensor) else [labels[int(number)] for number in chosen]
    return tuple(tensor[chosen] for tensor in inputs), own


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _loss(module: nn.Module, task: str) -> Callable[[tuple[Tensor, ...], Labels], Tensor]:
    own: Callable[..., Tensor] | None = getattr(module, "training_loss", None)
    if own is not None:
        return lambda inputs, labels: own(*inputs, labels)
    if task not in LOSSES:
        raise UsageError(f"{task} has no loss for all: give {type(module).__name__} training_loss(*inputs, labels)")
    return lambda inputs, labels: LOSSES[task](module(*inputs), labels)


def classification_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of logits (N, C), with labels smoothed by 0.1."""
    return F.cross_entropy(logits, classes, label_smoothing=0.1)


def segmentation_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy of scores (N, C, H, W) plus 1 - the mean Dice of the classes, probabilities counted as pixels.

    Source: Milletari et al., V-Net, arXiv 1606.04797, for the Dice loss.
    """
    masks = masks.long()
    wanted = F.one_hot(masks, scores.shape[1]).movedim(3, 1).to(scores.dtype)
    p = scores.softmax(1)
    both, sizes = (p * wanted).sum((0, 2, 3)), (p + wanted).sum((0, 2, 3))
    return F.cross_entropy(scores, masks) + 1 - ((2 * both + 1) / (sizes + 1)).mean()


def saliency_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Binary cross entropy of probabilities (N, 1, H, W) plus 1 - IoU of each picture.

    Source: Qin et al., BASNet, CVPR 2019, without its SSIM term.
    """
    wanted = masks.unsqueeze(1).to(probabilities.dtype)
    both = (probabilities * wanted).sum((1, 2, 3))
    either = (probabilities + wanted).sum((1, 2, 3)) - both
    return F.binary_cross_entropy(probabilities, wanted) + 1 - ((both + 1) / (either + 1)).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "classification": classification_loss,
    "segmentation": segmentation_loss,
    "saliency": saliency_loss,
}


def jittered(inputs: tuple[Tensor, ...], labels: Labels) -> Batch:
    """Pictures a little turned, sheared, scaled and shifted, each its own way; for labels that stay true."""
    (images,) = inputs
    affine = torch.eye(2, 3) + torch.randn(len(images), 2, 3) * 0.08
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return (F.grid_sample(images, grid, padding_mode="border", align_corners=False),), labels


def mirrored(inputs: tuple[Tensor, ...], labels: Labels) -> Batch:
    """About half of the pictures (N, C, H, W) mirrored left to right, with their masks or boxes."""
    (images,) = inputs
    turned = torch.rand(len(images)) < 0.5
    images = torch.where(turned[:, None, None, None], images.flip(3), images)
    if isinstance(labels, Tensor):
        return (images,), torch.where(turned[:, None, None], labels.flip(2), labels)
    return (images,), _mirrored_boxes(labels, turned, images.shape[3])


def _mirrored_boxes(labels: Sequence[Tensor], turned: Tensor, width: int) -> list[Tensor]:
    """x1 and x2 change places: (width - x2, y1, width - x1, y2, class)."""
    order, sign = torch.tensor([2, 1, 0, 3, 4]), torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0])
    shift = torch.tensor([float(width), 0.0, float(width), 0.0, 0.0])
    return [shift + sign * boxes[:, order] if flip else boxes for boxes, flip in zip(labels, turned, strict=True)]
