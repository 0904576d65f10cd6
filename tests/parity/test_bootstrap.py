from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

from edgeattn.metrics import Metric, task_named
from edgeattn.parity.bootstrap import intervals
from edgeattn.parity.findings import MetricParity

CLASSES = 4


def classified(labels: np.ndarray, answers: np.ndarray) -> Metric:
    metric = task_named("classification")()
    metric.add(np.eye(CLASSES)[answers], labels.tolist())
    return metric


def sides(count: int, wrong: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, the original's answers and the engine's, which is wrong in most of the same places."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, CLASSES, count)
    original = np.where(rng.random(count) < wrong, (labels + 1) % CLASSES, labels)
    engine = np.where(rng.random(count) < wrong / 4, (labels + 2) % CLASSES, original)
    return labels, original, engine


def test_intervals_are_the_percentiles_of_scikit_learns_figures_on_the_same_resamples() -> None:
    labels, original, engine = sides(97)
    found = intervals(classified(labels, original), classified(labels, engine), resamples=200)["top1"]
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 97, 97) for _ in range(200)]
    scores = np.array([[accuracy_score(labels[row], side[row]) for row in rows] for side in (original, engine)])
    expected = {"reference": scores[0], "engine": scores[1], "drop": scores[0] - scores[1]}
    for side, values in expected.items():
        assert found[side] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=1e-12)


def test_intervals_are_scipys_paired_bootstrap() -> None:
    labels, original, engine = sides(400)
    found = intervals(classified(labels, original), classified(labels, engine), resamples=4000, seed=3)["top1"]
    right = (original == labels).astype(float), (engine == labels).astype(float)
    theirs = stats.bootstrap(
        right, lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, method="percentile", n_resamples=4000,
        rng=np.random.default_rng(1), vectorized=True,
    ).confidence_interval  # fmt: skip
    assert found["drop"] == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_pairing_makes_the_interval_of_the_drop_narrower_than_those_of_the_sides() -> None:
    labels, original, engine = sides(300)
    found = intervals(classified(labels, original), classified(labels, engine))["top1"]
    widths = {side: high - low for side, (low, high) in found.items()}
    assert widths["drop"] < 0.7 * widths["reference"]


def test_the_interval_holds_the_true_drop_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        labels = np.zeros(120, int)
        original = (rng.random(120) < 0.1).astype(int)
        engine = np.where(rng.random(120) < 0.1, 1, original)  # the true drop is 0.9 * 0.1
        low, high = intervals(classified(labels, original), classified(labels, engine), 300)["top1"]["drop"]
        held += low <= 0.09 <= high
    assert held >= 88


def test_an_error_that_rises_is_a_drop() -> None:
    metrics = task_named("saliency")(), task_named("saliency")()
    mask = np.array([[0, 1]])
    for shift in (0.1, 0.2, 0.3):
        metrics[0].add(mask[None, None].astype(float), [mask])
        metrics[1].add(np.array([[[[shift, 1.0]]]]), [mask])
    low, high = intervals(*metrics)["mae"]["drop"]
    assert 0.05 <= low < high <= 0.15


def test_boxes_that_a_resample_lacks_do_not_make_it_worthless() -> None:
    metrics = task_named("detection")(), task_named("detection")()
    box = np.array([[0, 0, 10, 10, 0]], np.float32)
    found = np.array([[[0, 0, 10, 10, 0.9, 0]]])
    for metric in metrics:
        for boxes in (box, box[:0], box[:0]):
            metric.add(found[:, : len(boxes)], [boxes])
    assert intervals(*metrics)["map50"] == {"reference": (1, 1), "engine": (1, 1), "drop": (0, 0)}


def test_too_few_samples_or_unequal_sides_have_no_interval() -> None:
    one, two, none = (classified(np.zeros(count, int), np.zeros(count, int)) for count in (1, 2, 0))
    assert intervals(one, one) == {}
    assert intervals(two, one) == {}
    assert intervals(none, none) == {}
    assert set(intervals(two, two)) == {"top1"}


@pytest.mark.parametrize(("drop", "interval", "words"), [
    (0.002, (-0.001, 0.004), "within the bound, and so is its interval"),
    (0.002, (-0.004, 0.012), "within the bound, but 400 samples cannot tell 0.20 % from 1.20 %"),
    (0.0, (0.0, 0.0), "within the bound, but 400 samples cannot tell 0.00 % from 0.75 %"),  # 3 / 400
    (0.01, (0.006, 0.014), "beyond the bound, and so is its interval"),
    (0.01, (0.001, 0.02), "beyond the bound, but 400 samples cannot tell 1.00 % from 0.10 %"),
])  # fmt: skip
def test_the_bound_judges_the_figure_and_the_words_the_interval(
    drop: float, interval: tuple[float, float], words: str
) -> None:
    metric = MetricParity("top1", 0.9, 0.9 - drop, None, 400, 0.005, {"drop": interval})
    assert metric.standing == words
    assert bool(metric.failures) == words.startswith("beyond")


def test_without_a_bound_nothing_stands_to_it() -> None:
    assert MetricParity("top1", 0.9, 0.9, None, 400, None, {"drop": (0.0, 0.1)}).standing == ""
    assert MetricParity("top1", 0.9, 0.9, None, 1, 0.1).standing == ""
