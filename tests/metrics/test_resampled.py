"""Weighing samples is the same as having them several times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.metrics import TASKS, Label, task_named

Sample = tuple[np.ndarray, Label]


def sample(task: str, rng: np.random.Generator) -> Sample:
    """An output (1, ...) and a label that is partly right; an image may have no object and no box."""
    if task == "classification":
        return rng.normal(size=(1, 7)), int(rng.integers(0, 7))
    mask = rng.integers(-1, 3, (5, 7)) if task == "segmentation" else rng.integers(-1, rng.integers(1, 3), (5, 7))
    if task == "segmentation":
        return rng.normal(size=(1, 3, 5, 7)) + 2 * (np.arange(3)[:, None, None] == mask), mask
    if task == "saliency":
        return np.clip(0.5 * mask + rng.random((1, 1, 5, 7)) / 2, 0, 1), mask
    low = rng.uniform(0, 20, (rng.integers(0, 4), 2))
    true = np.column_stack([low, low + rng.uniform(3, 15, low.shape), rng.integers(-2, 2, len(low))])
    near = np.repeat(true, 3, axis=0) + rng.normal(0, 1, (3 * len(true), 5)) * [1, 1, 1, 1, 0]
    return np.column_stack([near[:, :4], rng.random(len(near)), np.abs(near[:, 4])])[None], true.astype(np.float32)


def figures(task: str, samples: list[Sample]) -> dict[str, float]:
    metric = task_named(task)()
    for output, label in samples:
        metric.add(output, [label])
    return metric.result()


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
def test_a_weight_is_so_many_copies(task: str, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [sample(task, rng) for _ in range(count)]
    weights = rng.integers(0, 3, (3, count))
    weights[0] = 1
    metric = task_named(task)()
    for output, label in samples:
        metric.add(output, [label])
    assert metric.samples == count
    found = metric.resampled(weights.astype(float))
    for row, copies in enumerate(weights):
        expected = figures(task, [samples[index] for index in np.repeat(np.arange(count), copies)])
        for name, values in found.items():
            assert expected.get(name, np.nan) == pytest.approx(values[row], abs=1e-12, nan_ok=True)


def fed(task: str, count: int) -> Any:
    metric, rng = task_named(task)(), np.random.default_rng(0)
    for _ in range(count):
        output, label = sample(task, rng)
        metric.add(output, [label])
    return metric


@pytest.mark.parametrize(("task", "name"), [("segmentation", "miou"), ("detection", "map50")])
def test_the_mean_over_the_classes_is_the_figure(task: str, name: str) -> None:
    metric = fed(task, 9)
    assert np.mean(list(metric.by_class().values())) == pytest.approx(metric.result()[name])


def test_the_classes_of_a_classifier_add_up_by_their_sizes() -> None:
    metric = fed("classification", 40)
    sizes = {label: metric.labels.count(label) for label in metric.by_class()}
    right = sum(size * metric.by_class()[label] for label, size in sizes.items())
    assert right / 40 == pytest.approx(metric.result()["top1"])


def test_the_curve_of_detections_has_the_average_precision_below_it() -> None:
    metric = fed("detection", 30)
    recalls, precisions = zip(*metric.curve(), strict=True)
    assert recalls == pytest.approx(np.linspace(0, 1, 101))
    assert np.mean(precisions) == pytest.approx(metric.result()["map50"])
    assert list(precisions) == sorted(precisions, reverse=True)


def test_the_curve_of_a_perfect_map_is_perfect_at_every_threshold() -> None:
    metric, mask = task_named("saliency")(), np.array([[0, 1, 1]])
    metric.add(mask[None, None].astype(float), [mask])
    points = metric.curve()
    assert points[0] == (1.0, 1.0)
    assert points[-1] == (1.0, pytest.approx(2 / 3))  # at threshold 0 all pixels are chosen
    assert set(points[:-1]) == {(1.0, 1.0)}


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_what_has_no_threshold_has_no_curve(task: str) -> None:
    assert fed(task, 3).curve() == []
