from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeattn.errors import UsageError
from edgeattn.zoo.fitting import (
    Settings,
    fit,
    jittered,
    mirrored,
    saliency_loss,
    segmentation_loss,
    taken,
)
from edgeattn.zoo.resnet import ResNet


def halves() -> tuple[Tensor, Tensor]:
    """Pictures whose left half is bright in class 1."""
    images = torch.rand(64, 1, 16, 16) * 0.1
    labels = torch.arange(64) % 2
    images[labels == 1, :, :, :8] += 1
    return images, labels


def test_fitting_is_reproducible_and_learns() -> None:
    images, labels = halves()

    def fitted() -> tuple[nn.Module, list[float]]:
        torch.manual_seed(3)
        model = ResNet((4, 8), classes=2)
        return model, fit(model, (images,), labels, "classification", Settings(30, batch=16, augment=jittered))

    (first, losses), (second, _) = fitted(), fitted()
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not first.training
    assert torch.equal(first(images).argmax(1), labels)
    assert len(losses) == 30
    assert losses[-1] < losses[0]


class OwnLoss(nn.Module):
    """Learns the mean of what it is shown, by a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("its own loss decides what runs")

    def training_loss(self, x: Tensor, y: Tensor, labels: list[Tensor]) -> Tensor:
        self.seen += [len(boxes) for boxes in labels]
        return ((x + y - self.mean) ** 2).mean()


def test_a_module_s_own_loss_gets_inputs_in_order_and_labels_of_any_kind() -> None:
    module = OwnLoss()
    boxes = [torch.zeros(count, 5) for count in (0, 1, 2, 3, 4)]
    fit(
        module,
        (torch.full((5, 1), 2.0), torch.ones(5, 1)),
        boxes,
        "detection",
        Settings(400, batch=2, rate=0.1, decay=0),
    )
    assert module.mean.item() == pytest.approx(3, abs=0.05)
    assert sorted(module.seen[:5]) == [0, 1, 2, 3, 4]


def test_detection_without_a_loss_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear training_loss"):
        fit(nn.Linear(1, 1), (torch.zeros(1, 1),), [torch.zeros(0, 5)], "detection", Settings())


def test_segmentation_loss_is_cross_entropy_plus_the_missing_dice() -> None:
    masks = torch.tensor([[[0, 1], [2, 1]]])
    right = 50.0 * nn.functional.one_hot(masks, 3).movedim(3, 1)
    assert segmentation_loss(right, masks).item() == pytest.approx(0, abs=1e-6)
    # Without an opinion p = 1/3 everywhere: intersections n/3, sizes n + 4/3, with 1, 2 and 1 pixels.
    dice = sum((2 * n / 3 + 1) / (n + 4 / 3 + 1) for n in (1, 2, 1)) / 3
    assert segmentation_loss(torch.zeros(1, 3, 2, 2), masks).item() == pytest.approx(math.log(3) + 1 - dice)


def test_saliency_loss_is_cross_entropy_plus_the_missing_iou() -> None:
    masks = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    assert saliency_loss(masks.unsqueeze(1).float(), masks).item() == pytest.approx(0, abs=1e-6)
    # At 1/2 everywhere: 1.5 of 3 pixels against 3.5, then 0 against 2.
    iou = ((1.5 + 1) / (3.5 + 1) + (0 + 1) / (2 + 1)) / 2
    assert saliency_loss(torch.full((2, 1, 2, 2), 0.5), masks).item() == pytest.approx(math.log(2) + 1 - iou)


@given(st.integers(1, 4), st.integers(3, 9), st.integers(3, 9), st.integers(0, 99))
def test_mirrored_boxes_stay_around_their_mirrored_objects(count: int, height: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    images, boxes = torch.zeros(count, 2, height, width), []
    for image in images:
        x, y = int(torch.randint(width, ())), int(torch.randint(height, ()))
        image[:, y:, x : x + 2] = 1
        boxes.append(torch.tensor([[x, y, min(x + 2, width), height, 3]], dtype=torch.float32))
    (turned,), moved = mirrored((images,), boxes)
    (also,), masks = mirrored((images,), images[:, 0].long())
    assert isinstance(masks, Tensor)
    assert torch.equal(also[:, 0].long(), masks)
    for image, (box,) in zip(turned, moved, strict=True):
        rows, columns = torch.nonzero(image[0], as_tuple=True)
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 3]
        assert box.tolist() == [float(value) for value in around]


def test_about_half_of_the_pictures_are_mirrored_and_the_others_stay() -> None:
    images = torch.rand(200, 1, 2, 3)
    (turned,), _ = mirrored((images,), torch.zeros(200, 2, 3))
    same = (turned == images).flatten(1).all(1)
    assert torch.equal(turned[~same], images[~same].flip(3))
    assert 60 < int(same.sum()) < 140


def test_jitter_moves_pictures_a_little_and_keeps_their_labels() -> None:
    images, labels = torch.zeros(20, 1, 33, 33), torch.arange(20)
    images[:, :, 14:19, 14:19] = 1
    (moved,), kept = jittered((images,), labels)
    assert torch.equal(kept, labels)
    assert not torch.equal(moved, images)
    assert moved.sum().item() == pytest.approx(images.sum().item(), rel=0.3)


def test_taking_keeps_inputs_and_labels_together() -> None:
    x, boxes = torch.arange(4.0), [torch.full((1, 5), float(n)) for n in range(4)]
    (first,), own = taken((x,), boxes, torch.tensor([3, 1]))
    assert first.tolist() == [3, 1]
    assert [int(each[0, 0]) for each in own] == [3, 1]
