from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.parity.detections import are_detections, beside
from edgeattn.parity.deviation import Deviation
from edgeattn.tolerance import tolerance_for


def boxes(images: int = 2, rows: int = 9, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    corner, size = generator.uniform(0, 40, (2, images, rows, 2))
    scores = -np.sort(-generator.uniform(0.1, 1, (images, rows, 1)), 1)
    classes = generator.integers(0, 3, (images, rows, 1))
    return np.concatenate([corner, corner + size, scores, classes], 2).astype(np.float32)


@given(st.permutations(range(9)), st.integers(0, 99))
def test_rows_come_back_to_their_places_whatever_their_order(order: list[int], seed: int) -> None:
    truth = boxes(seed=seed)
    np.testing.assert_array_equal(beside(truth[:, order], truth), truth)


def test_two_boxes_that_score_nearly_the_same_may_change_places() -> None:
    truth = boxes()
    truth[:, 3, 4] = truth[:, 4, 4]
    got = truth[:, [0, 1, 2, 4, 3, 5, 6, 7, 8]] + np.float32(1e-4) * (np.arange(6) < 5)
    deviation = Deviation("boxes")
    deviation.add(["a", "b"], got, truth, None)
    assert deviation.judged(tolerance_for("float16")).passed


@pytest.mark.parametrize(("column", "change"), [(0, 9.0), (3, 9.0), (4, 0.4), (5, 1.0)])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_boxes_of_another_place_score_or_class_are_an_error_in_any_picture(
    column: int, change: float, precision: str
) -> None:
    truth = boxes() * np.array([10, 10, 10, 10, 1, 1], np.float32)  # beside 800 pixels, a score is next to nothing
    got = truth.copy()
    got[1, :, column] += change * (10 if column < 4 else 1)
    deviation = Deviation("boxes")
    deviation.add(["a", "b"], got, truth, truth)
    judged = deviation.judged(tolerance_for(precision))
    assert not judged.passed
    assert judged.worst_sample == "b"


def test_a_box_that_moved_is_as_wrong_as_it_scores() -> None:
    truth = boxes()
    got = truth.copy()
    got[1, 2, 3] += 9
    deviation = Deviation("boxes")
    deviation.add(["a", "b"], got, truth, None)
    judged = deviation.judged(tolerance_for("float32"))
    assert (judged.worst_sample, judged.worst_index) == ("b", (2, 3))
    assert judged.max_abs == pytest.approx(9 * truth[1, 2, 4], rel=1e-5)


def test_a_score_counts_in_parts_of_the_picture_and_another_class_as_a_box_that_is_not_there() -> None:
    truth = boxes()
    got = truth.copy()
    got[0, 1, 4] -= 0.05
    assert (truth - beside(got, truth))[0, 1, 4] == pytest.approx(0.05 * truth[..., :4].max(), rel=1e-4)
    got = truth.copy()
    got[0, 1, 5] += 1
    assert (truth - beside(got, truth))[0, 1, :4] == pytest.approx(truth[0, 1, :4] * truth[0, 1, 4])


def test_one_that_barely_enters_where_another_barely_leaves_is_no_failure() -> None:
    truth = boxes(8, 30)
    truth[..., 4] = np.linspace(0.9, 0.01, 30)
    got = truth.copy()
    got[0, -1] = [0, 0, 5, 5, 0.0101, 2]
    deviation = Deviation("boxes")
    deviation.add(["a"] * 8, got, truth, truth)
    assert deviation.judged(tolerance_for("float16")).passed
    got[0, -1, 4] = 0.9
    deviation.add(["a"] * 8, got, truth, truth)
    assert not deviation.judged(tolerance_for("float16")).passed


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("column", range(6))
def test_what_is_no_number_stays_none_and_leaves_the_others_in_their_places(wrong: float, column: int) -> None:
    truth = boxes()
    got = truth[:, ::-1].copy()
    got[0, 3, column] = wrong
    found = beside(got, truth)
    assert 0 < (~np.isfinite(found)).sum() <= 6
    np.testing.assert_array_equal(found[1], truth[1])
    assert (np.abs(found[0] - truth[0]).max(1) == 0).sum() == 8


def test_what_scores_nothing_in_both_is_no_detection() -> None:
    truth, got = boxes(), boxes()
    truth[:, -1, 4] = got[:, -1, 4] = 0
    got[:, -1, :4] += 5
    np.testing.assert_array_equal(beside(got, truth), truth)
    got[:, -1, 4] = 0.5
    assert np.abs(beside(got, truth) - truth).max() >= 2.5


def test_a_missing_detection_is_an_error() -> None:
    truth, got = boxes(), boxes()
    got[0, 4] = 0
    assert (truth - beside(got, truth))[0, 4, 4] == pytest.approx(truth[0, 4, 4] * truth[..., :4].max())


def test_other_arrays_of_six_columns_are_no_detections() -> None:
    generator = np.random.default_rng(0)
    assert are_detections(boxes())
    assert not are_detections(generator.normal(size=(2, 9, 6)))
    assert not are_detections(generator.uniform(size=(2, 9, 6)))
    assert not are_detections(np.zeros((2, 9, 6)))
    assert not are_detections(boxes()[..., :5])
    assert not are_detections(np.full((2, 9, 6), np.nan))
