from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeattn.parity.deviation import Deviation
from edgeattn.parity.report import OutputParity
from edgeattn.tolerance import TOLERANCES

Array = NDArray[Any]
EXACT = 1e-12  # relative; what sums in another order may cost in float64


def judge(got: Array, truth: Array, own: Array | None = None, cuts: tuple[int, ...] = ()) -> OutputParity:
    deviation = Deviation("y")
    names = [f"image{row}" for row in range(len(got))]
    for rows in np.split(np.arange(len(got)), sorted(cuts)):
        part = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0, 0)
        deviation.add(names[part], got[part], truth[part], None if own is None else own[part])
    return deviation.judged(TOLERANCES["float16"])


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 7),
    shape=st.lists(st.integers(1, 5), max_size=3),
    cuts=st.sets(st.integers(1, 6), max_size=3),
)
def test_batches_add_up_to_what_numpy_says_of_all_at_once(
    seed: int, rows: int, shape: list[int], cuts: set[int]
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((rows, *shape))
    got = (truth + 1e-3 * rng.standard_normal(truth.shape)).astype(np.float32)
    found = judge(got, truth, cuts=tuple(cut for cut in cuts if cut < rows))
    error = got.astype(np.float64) - truth
    at = np.unravel_index(np.abs(error).argmax(), error.shape)
    assert found.max_abs == np.abs(error).max()
    assert found.relative_max == np.abs(error).max() / np.abs(truth).max()
    assert math.isclose(found.relative_l2, np.linalg.norm(error) / np.linalg.norm(truth), rel_tol=EXACT)
    assert math.isclose(found.sqnr_db, -20 * math.log10(np.linalg.norm(error) / np.linalg.norm(truth)), rel_tol=EXACT)
    cosine = np.vdot(got.astype(np.float64), truth) / np.linalg.norm(got.astype(np.float64)) / np.linalg.norm(truth)
    assert math.isclose(found.cosine, cosine, rel_tol=EXACT)
    assert (found.worst_sample, found.worst_index) == (f"image{at[0]}", tuple(at[1:]))
    assert sum(count for _, _, count in found.histogram) == np.count_nonzero(error)
    assert found.histogram[-1][0] <= math.log10(np.abs(error).max()) <= found.histogram[-1][1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails(bad: float) -> None:
    truth = np.ones((3, 5))
    got = truth.astype(np.float32)
    got[1, 2] = bad
    found = judge(got, truth)
    assert found.failures == ("output 'y': 1 of 15 values are not finite",)
    assert found.max_abs == 0


def test_infinities_that_the_reference_has_too_are_right() -> None:
    truth = np.array([[1.0, -np.inf, np.nan, np.inf]])
    found = judge(truth.astype(np.float32), truth)
    assert found.passed
    assert found.undefined == "y: 3 of 4 values of the original are not finite"
    assert not judge(truth.astype(np.float32)[:, ::-1], truth).passed


def test_a_reference_that_overflows_in_the_dtype_does_not_excuse_the_engine() -> None:
    truth = np.full((1, 4), 7e4)
    overflowing = np.array([[np.inf] * 4])
    assert judge(truth.astype(np.float32), truth, overflowing).own_l2 is None
    assert not judge(overflowing.astype(np.float16), truth, overflowing).passed


def test_the_limit_is_twice_the_references_own_error() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((2, 50))
    noise = 0.01 * rng.standard_normal(truth.shape)
    assert judge((truth + 1.9 * noise).astype(np.float32), truth, truth + noise).passed
    assert not judge((truth + 2.2 * noise).astype(np.float32), truth, truth + noise).passed


def test_an_output_of_zeros_must_stay_zeros() -> None:
    zeros = np.zeros((2, 3), np.float32)
    same = judge(zeros, zeros)
    assert (same.passed, same.cosine, same.sqnr_db, same.worst, same.histogram) == (True, 1.0, math.inf, "-", ())
    assert not judge(zeros + 1e-6, zeros).passed


def test_another_shape_or_kind_is_said_and_not_measured() -> None:
    truth = np.ones((2, 3))
    assert judge(np.ones((2, 4), np.float32), truth).failures == ("output 'y' has shape 2x4, expected 2x3",)
    assert judge(np.ones((2, 3), np.int64), truth).failures == ("output 'y' is int64, expected float64",)


def test_whole_numbers_are_counted_not_subtracted() -> None:
    truth = np.arange(1000).reshape(10, 100)
    got = truth.astype(np.int32)
    assert judge(got, truth).passed
    got[:3, :7] += 900
    found = judge(got, truth)
    assert found.relative_l2 == found.relative_max == 21 / 1000
    assert found.failures == ("output 'y': the share of values that differ is 0.021, the limit is 0.01",)
    assert judge(got, truth, own=truth + (np.arange(1000).reshape(10, 100) < 11)).passed


def test_an_output_without_a_batch_axis_names_every_sample_of_its_batch() -> None:
    deviation = Deviation("y")
    deviation.add(["a", "b"], np.array(2.0, np.float32), np.array(1.0), None)
    assert deviation.judged(TOLERANCES["float32"]).worst == "a, b []"


def test_bfloat16_outputs_are_measured_as_numbers() -> None:
    import ml_dtypes

    truth = np.array([[1.0, 3.0]])
    assert judge(truth.astype(ml_dtypes.bfloat16), truth).relative_l2 == 0
