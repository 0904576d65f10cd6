from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from edgeattn.errors import InputError
from edgeattn.metrics.detection import Detection

Boxes = list[np.ndarray]


def theirs(truth: Boxes, found: Boxes) -> dict[str, float]:
    """What pycocotools says of the same boxes."""

    def box(row: np.ndarray) -> dict[str, Any]:
        x1, y1, x2, y2 = (float(v) for v in row[:4])
        return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}

    def category(number: float) -> int:
        return int(number if number >= 0 else -1 - number) + 1

    annotations = [
        {**box(row), "image_id": image, "category_id": category(row[4]), "iscrowd": int(row[4] < 0)}
        for image, rows in enumerate(truth, start=1)
        for row in rows
    ]
    results = [
        {**box(row), "image_id": image, "category_id": category(row[5]), "score": float(row[4])}
        for image, rows in enumerate(found, start=1)
        for row in rows
        if row[4] > 0
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(1, len(truth) + 1)],
        "categories": [{"id": number} for number in range(1, 5)],
        "annotations": [{"id": index, **item} for index, item in enumerate(annotations, start=1)],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results) if results else COCO(), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"map50": evaluation.stats[1], "map": evaluation.stats[0]}


def ours(truth: Boxes, found: Boxes) -> dict[str, float]:
    metric = Detection()
    for boxes, rows in zip(truth, found, strict=True):
        metric.add(rows[None], [boxes])
    return metric.result()


def scene(rng: np.random.Generator, grid: bool) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, some of them crowds, and detections near them and elsewhere; on a grid there are many ties."""
    count = int(rng.integers(0, 6))
    low, size = rng.uniform(0, 20, (count, 2)), rng.uniform(3, 15, (count, 2))
    classes = rng.integers(0, 3, (count, 1)).astype(float)
    true = np.hstack([low, low + size, np.where(rng.random((count, 1)) < 0.2, -1 - classes, classes)])
    near = np.repeat(true, 3, axis=0)
    near[:, :4] += rng.normal(0, rng.choice([0.5, 2.0]), near[:, :4].shape)
    near[:, 2:4] = np.maximum(near[:, 2:4], near[:, :2] + 1)
    near[:, 4] = np.where(rng.random(len(near)) < 0.8, np.where(near[:, 4] < 0, -1 - near[:, 4], near[:, 4]), 3)
    if grid:
        true[:, :4], near[:, :4] = np.rint(true[:, :4]), np.rint(near[:, :4])
    scores = np.round(rng.uniform(0.05, 1, len(near)), 1 if grid else 6)
    return true, rng.permutation(np.column_stack([near[:, :4], scores, near[:, 4]]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 5), grid=st.booleans())
def test_average_precision_is_pycocotools(seed: int, images: int, grid: bool) -> None:
    rng = np.random.default_rng(seed)
    truth, found = (list(part) for part in zip(*(scene(rng, grid) for _ in range(images)), strict=True))
    if not any((boxes[:, 4] >= 0).any() for boxes in truth) or not any(map(len, found)):
        return
    assert ours(truth, found) == pytest.approx(theirs(truth, found), abs=1e-12)


def test_only_the_hundred_best_of_a_class_in_an_image_count() -> None:
    true = np.array([[0, 0, 10, 10, 0]], float)
    wrong = np.tile([20.0, 20, 30, 30, 0.9, 0], (100, 1))
    right = np.array([[0, 0, 10, 10, 0.5, 0]])
    for rows, expected in ((np.vstack([right, wrong]), 0.0), (np.vstack([right, wrong[1:]]), 0.01)):
        assert ours([true], [rows]) == pytest.approx(theirs([true], [rows]), abs=1e-12)
        assert ours([true], [rows])["map50"] == pytest.approx(expected)


def test_average_precision_worked_by_hand() -> None:
    true = np.array([[0, 0, 10, 10, 0], [20, 0, 30, 10, 0]], float)
    found = np.array([[0, 0, 10, 10, 0.9, 0], [40, 0, 50, 10, 0.8, 0], [20, 0, 30, 6, 0.7, 0]], float)
    # Precision 1 up to recall 0.5 (51 of 101 points), then 2/3; from IoU 0.65 on, the third box is wrong too.
    at_60 = (51 + 50 * 2 / 3) / 101
    assert ours([true], [found]) == pytest.approx({"map50": at_60, "map": (3 * at_60 + 7 * 51 / 101) / 10})


def test_a_crowd_counts_neither_way_and_padding_not_at_all() -> None:
    true = np.array([[0, 0, 10, 10, 1], [20, 0, 60, 40, -2]], float)
    found = np.array([[22, 2, 30, 10, 0.9, 1], [24, 2, 30, 10, 0.8, 1], [0, 0, 10, 10, 0.7, 1]], float)
    assert ours([true], [found]) == {"map50": 1, "map": 1}
    padded = np.vstack([found, [[0, 0, 0, 0, 0, 0], [0, 0, 9, 9, 0.99, -1], [0, 0, 9, 9, np.nan, 1]]])
    assert ours([true], [padded]) == {"map50": 1, "map": 1}


def test_boxes_that_nobody_found_count_and_images_without_boxes_do_too() -> None:
    true, none = np.array([[0, 0, 10, 10, 0]], np.float32), np.zeros((0, 6), np.float32)
    assert ours([true], [none]) == {"map50": 0, "map": 0}
    false_alarm = np.array([[0, 0, 10, 10, 0.9, 0]], np.float32)
    hit = np.array([[0, 0, 10, 10, 0.5, 0]], np.float32)
    assert ours([true[:0], true], [false_alarm, hit])["map50"] == 0.5
    assert ours([true[:0]], [false_alarm]) == {}


@pytest.mark.parametrize("label", [3, np.zeros((4, 4), int)])
def test_what_is_no_boxes_is_refused(label: Any) -> None:
    with pytest.raises(InputError, match="the label holds no boxes"):
        Detection().add(np.zeros((1, 2, 6)), [label])
