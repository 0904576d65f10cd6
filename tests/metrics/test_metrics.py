from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgeattn.errors import UsageError
from edgeattn.metrics import ERRORS, TASKS, Label, find_task, task_named, task_with

MASK = np.zeros((3, 5), np.int32)
BOXES = np.zeros((0, 5), np.float32)
SCORES = np.zeros((2, 7))
MAP = np.full((2, 1, 3, 5), 0.5)
LOGITS = MAP - 3
PLANES = np.zeros((2, 4, 3, 5))
CLASSES = np.zeros((2, 3, 5), np.int64)
FOUND = np.zeros((2, 9, 6))


@pytest.mark.parametrize(("label", "outputs", "expected"), [
    (3, [SCORES], ("classification", 0)),
    (3, [PLANES, SCORES], ("classification", 1)),
    (3, [SCORES[:, :1]], None),
    (3, [PLANES], None),
    (MASK, [SCORES, PLANES], ("segmentation", 1)),
    (MASK, [CLASSES], ("segmentation", 0)),
    (MASK, [MAP], ("saliency", 0)),
    (MASK, [LOGITS], None),
    (MASK, [FOUND], None),
    (BOXES, [PLANES, FOUND], ("detection", 1)),
    (BOXES, [PLANES], None),
    (np.zeros((4, 5), np.int64), [FOUND], None),
    (np.zeros(3, np.int64), [SCORES, PLANES, MAP, CLASSES, FOUND], None),
])  # fmt: skip
def test_label_and_output_tell_the_task(
    label: Label, outputs: Sequence[np.ndarray], expected: tuple[str, int] | None
) -> None:
    assert find_task(label, outputs) == expected


def test_the_task_that_is_asked_for_is_the_only_one_thought_of() -> None:
    assert find_task(MASK, [MAP], "segmentation") == ("segmentation", 0)
    assert find_task(MASK, [PLANES], "saliency") is None
    with pytest.raises(UsageError, match="unknown task 'saliencyy'; did you mean 'saliency'"):
        find_task(MASK, [MAP], "saliencyy")


def test_every_metric_has_one_task() -> None:
    names = [name for kind in TASKS.values() for name in kind.NAMES]
    assert len(set(names)) == len(names)
    assert set(names) >= ERRORS
    for task, kind in TASKS.items():
        assert {task_with(name) for name in kind.NAMES} == {task}
    with pytest.raises(UsageError, match="unknown metric 'moiu'; did you mean 'miou'"):
        task_with("moiu")


@pytest.mark.parametrize("task", TASKS)
def test_a_metric_of_nothing_says_nothing(task: str) -> None:
    assert task_named(task)().result() == {}


@pytest.mark.parametrize(("task", "output", "label"), [
    ("classification", np.array([[0.1, 2.0, -1.0]]), 1),
    ("segmentation", np.random.default_rng(0).normal(size=(1, 4, 7, 5)), np.zeros((7, 5), int)),
    ("detection", np.array([[[0, 0, 4, 4, 0.9, 2], [1, 1, 5, 4, 0.8, 0], [9, 9, 9, 9, 0, 1]]], float), BOXES),
])  # fmt: skip
def test_an_output_agrees_fully_with_its_own_answers(task: str, output: np.ndarray, label: Label) -> None:
    assert task_named(task).fits(label, output)
    metric = task_named(task)()
    metric.add(output, metric.answers(output))
    assert set(metric.result().values()) == {1.0}
