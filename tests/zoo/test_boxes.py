from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeattn.zoo.boxes import around, assigned, centres, detections, focal_loss, giou_loss, pairwise_iou, suppressed


def random_boxes(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = 40 * torch.rand(1, count, 2, generator=generator)
    return torch.cat([low, low + 5 + 20 * torch.rand(1, count, 2, generator=generator)], 2)


def iou_by_pixels(a: Tensor, b: Tensor) -> float:
    """By counting the cells of a grid of whole coordinates."""
    grids = []
    for x1, y1, x2, y2 in (a.int().tolist(), b.int().tolist()):
        grid = np.zeros((100, 100), bool)
        grid[y1:y2, x1:x2] = True
        grids.append(grid)
    return float((grids[0] & grids[1]).sum() / max((grids[0] | grids[1]).sum(), 1))


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_iou_is_the_share_of_common_pixels(seed: int) -> None:
    boxes = random_boxes(seed, 6).round()[0]
    found = pairwise_iou(boxes, boxes)
    for i in range(6):
        for j in range(6):
            assert found[i, j].item() == pytest.approx(iou_by_pixels(boxes[i], boxes[j]), abs=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=40, deadline=None)
def test_suppression_is_that_of_the_greedy_loop(seed: int, count: int, threshold: float) -> None:
    boxes = random_boxes(seed, count)
    classes = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (1, count)))
    hidden = suppressed(boxes, classes, threshold, rounds=count)[0]
    kept: list[int] = []
    for i in range(count):
        rivals = [j for j in kept if classes[0, j] == classes[0, i]]
        if all(pairwise_iou(boxes[0, i : i + 1], boxes[0, j : j + 1]).item() <= threshold for j in rivals):
            kept.append(i)
    assert torch.nonzero(hidden == 0).flatten().tolist() == kept


def test_detections_are_sorted_and_hold_one_box_an_object() -> None:
    box = torch.tensor([10.0, 10.0, 30.0, 30.0])
    boxes = torch.stack([box, box + 1, box + 30, box])[None]
    scores = torch.tensor([[[0.1, 0.7], [0.1, 0.9], [0.6, 0.2], [0.5, 0.1]]])
    rows = detections(boxes, scores, 4)[0]
    assert torch.allclose(rows[:, 4], torch.tensor([0.9, 0.0, 0.6, 0.5]))
    assert rows[:, 5].tolist() == [1, 1, 0, 0]
    assert torch.equal(rows[0, :4], box + 1)


def test_giou_of_equal_boxes_is_no_loss_and_of_far_ones_is_nearly_two() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert giou_loss(box, box).item() == pytest.approx(0)
    assert 1.9 < giou_loss(box, box + 200).item() < 2


def test_focal_loss_without_focus_is_half_the_cross_entropy() -> None:
    logits, truth = torch.randn(50), (torch.rand(50) > 0.5).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / 2
    assert torch.allclose(focal_loss(logits, truth, alpha=0.5, gamma=0), expected)


def test_a_place_belongs_to_the_smallest_box_around_it() -> None:
    points = centres(8, 8, 8, torch.zeros(1))
    large, small = [0.0, 0.0, 64.0, 64.0, 3.0], [24.0, 24.0, 40.0, 40.0, 1.0]
    classes, boxes = assigned(points, torch.full((64,), 8.0), [torch.tensor([large, small]), torch.zeros(0, 5)])
    middle = 8 * 3 + 3  # its centre is (28, 28)
    assert classes[0, middle] == 1
    assert boxes[0, middle].tolist() == small[:4]
    assert classes[0, 0] == -1  # in the large box, but far from its middle
    assert (classes[1] == -1).all()


def test_a_box_around_a_point_has_its_distances() -> None:
    found = around(torch.tensor([[5.0, 6.0]]), torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    assert found.tolist() == [[[4, 4, 8, 10]]]
