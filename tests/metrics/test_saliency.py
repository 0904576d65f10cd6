from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score, mean_absolute_error, precision_score, recall_score

from edgeattn.errors import InputError
from edgeattn.metrics.saliency import Saliency, s_measure

sides = st.integers(1, 7)
BETA = math.sqrt(0.3)


def judged(values: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    metric = Saliency()
    metric.add(values[None, None], [mask])
    return metric.result()


def all_count(mask: np.ndarray) -> np.ndarray:
    return np.ones(mask.shape, bool)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), height=sides, width=sides, ignore=st.booleans())
def test_f_beta_precision_recall_and_error_are_scikit_learns(seed: int, height: int, width: int, ignore: bool) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(-1 if ignore else 0, 2, (2, height, width))
    masks[:, 0, 0] = 1
    levels = np.array([0, 3, 77, 128, 255])  # between two of them, F does not change
    maps = rng.choice(levels, masks.shape) / 255
    metric = Saliency()
    metric.add(maps[:, None], list(masks))
    curves, adaptive, errors = [], [], []
    for values, mask in zip(maps, masks, strict=True):
        x, y = values[mask >= 0], mask[mask >= 0]
        curves.append([fbeta_score(y, x >= level / 255, beta=BETA, zero_division=0) for level in levels])
        chosen = x >= min(1, 2 * x.mean())
        judges = (partial(fbeta_score, beta=BETA), precision_score, recall_score)
        adaptive.append([judge(y, chosen, zero_division=0) for judge in judges])
        errors.append(mean_absolute_error(y, x))
    expected = dict(zip(["fbeta_adaptive", "precision", "recall"], np.mean(adaptive, 0), strict=True))
    expected |= {"fbeta": np.mean(curves, 0).max(), "mae": np.mean(errors)}
    assert {name: value for name, value in metric.result().items() if name != "smeasure"} == pytest.approx(expected)


def test_thresholds_lie_on_the_255ths() -> None:
    mask, values = np.array([[0, 1]]), np.array([[100.0, 100.9]]) / 255  # no threshold between the two
    assert judged(values, mask)["fbeta"] == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))
    assert judged(values + np.array([[0, 0.2 / 255]]), mask)["fbeta"] == 1


def test_a_map_that_is_the_mask_is_perfect() -> None:
    mask = np.zeros((6, 8), int)
    mask[1:4, 2:7] = 255
    found = judged((mask > 0).astype(float), mask)
    assert found.pop("mae") == 0
    assert set(found) == {"fbeta", "fbeta_adaptive", "precision", "recall", "smeasure"}
    assert all(value == pytest.approx(1) for value in found.values())


def test_images_without_an_object_count_only_where_that_means_something() -> None:
    found = judged(np.full((4, 4), 0.25), np.zeros((4, 4), int))
    assert found == {"smeasure": 0.75, "mae": 0.25}
    both = Saliency()
    mask = np.array([[0, 1]])
    both.add(np.array([[[[0.0, 1.0]]], [[[0.0, 1.0]]]]), [mask, mask * 0])
    assert both.result()["fbeta"] == 1
    assert both.result()["mae"] == 0.25


# The structure measure


def test_structure_of_all_background_and_all_object() -> None:
    values = np.array([[0.2, 0.4], [0.6, 0.4]])
    for mask, expected in ((np.zeros((2, 2), bool), 0.6), (np.ones((2, 2), bool), 0.4)):
        assert s_measure(values, mask, all_count(mask)) == pytest.approx(expected)


def test_structure_worked_by_hand() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
    values = np.array([[0.8, 0.4, 0.0, 0.0], [0.2, 0.0, 0.0, 0.4]])
    # On the object: mean 0.6, sigma sqrt(2 * 0.04); beside it 1 - (0, 0, 0.2, 0, 0, 0.4): mean 0.9, squares 0.14 / 5.
    on = 1.2 / (0.36 + 1 + math.sqrt(0.08))
    beside = 1.8 / (0.81 + 1 + math.sqrt(0.028))
    by_object = 2 / 8 * on + 6 / 8 * beside
    # The centroid is (row 1, column 1.5): round(1.5) = 2, so the blocks are 1x2, 1x2, 1x2 and 1x2.
    # Left above, the mask is all 1 and the map uneven: no covariance, some variance: 0. Right above both are flat: 1.
    # Below, the mask is flat and the map is not: 0, on the left as on the right.
    by_region = 2 / 8 * 1
    assert s_measure(values, mask, all_count(mask)) == pytest.approx((by_object + by_region) / 2)


def test_structure_of_a_block_with_covariance_worked_by_hand() -> None:
    mask = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], bool)
    values = np.array([[0.0, 0.0, 0.5], [0.0, 0.0, 1.0], [0.0, 0.5, 0.0]])
    on = 1.5 / (0.5625 + 1 + math.sqrt(0.125))
    x = np.array([1, 1, 1, 1, 1, 0.5, 1])
    beside = 2 * x.mean() / (x.mean() ** 2 + 1 + x.std(ddof=1))
    # The centroid is (row 1.5, column 3) from 1, so the blocks are 2x3 above and 1x3 below; those on the right are
    # empty. Above: means 0.25 and 1/3, and with n - 1 = 5 the products of the deviations
    dx = np.array([0, 0, 0.5, 0, 0, 1]) - 0.25
    dy = np.array([0, 0, 1, 0, 0, 1]) - 1 / 3
    above = 4 * 0.25 / 3 * (dx @ dy / 5) / ((0.0625 + 1 / 9) * ((dx @ dx + dy @ dy) / 5))
    by_object = 2 / 9 * on + 7 / 9 * beside
    by_region = 6 / 9 * above + 3 / 9 * 0  # below, the mask is flat and the map is not
    assert s_measure(values, mask, all_count(mask)) == pytest.approx((by_object + by_region) / 2)


def test_structure_prefers_the_right_shape_to_the_right_area() -> None:
    mask = np.zeros((16, 16), int)
    mask[4:12, 4:12] = 1
    blurred, elsewhere = np.where(mask > 0, 0.7, 0.1), np.roll(mask, 7, axis=1).astype(float)
    assert 0.7 < judged(blurred, mask)["smeasure"] < 1
    assert judged(elsewhere, mask)["smeasure"] < 0.4


def test_a_border_that_is_ignored_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    mask, values = rng.integers(0, 2, (7, 9)), rng.random((7, 9))
    framed = np.pad(mask, 3, constant_values=-1)
    assert judged(np.pad(values, 3, constant_values=0.5), framed) == pytest.approx(judged(values, mask))


# What it takes


def test_a_wrong_engines_numbers_are_counted_not_refused() -> None:
    found = judged(np.array([[np.nan, -3.0, 7.0, np.inf]]), np.array([[0, 0, 1, 1]]))
    assert found["mae"] == 0


@pytest.mark.parametrize(("mask", "said"), [
    (np.array([[0, 2]]), "class 2; saliency knows 0, and 1 or 255"),
    (np.zeros((2, 2), int), "let the model resize"),
    (1, "label 1 is no mask"),
])  # fmt: skip
def test_a_mask_that_does_not_fit_is_refused(mask: np.ndarray | int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Saliency().add(np.zeros((1, 1, 1, 2)), [mask])


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (13, 1)])
def test_odd_sizes_have_finite_figures(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        found = judged(rng.random(size), rng.integers(0, 2, size))
        assert all(0 <= value <= 1 for value in found.values())
