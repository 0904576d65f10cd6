"""What is seen of a tensor, and where methods clip it, against numpy and against definitions by the letter."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgeattn.calibrate import observers
from edgeattn.calibrate.observers import (
    BINS,
    ENOUGH,
    KEPT,
    LEVELS,
    MERGED,
    SAMPLED,
    Seen,
    merge,
    nothing,
    observe,
    range_of,
)
from edgeattn.errors import InputError

Array = NDArray[np.float32]
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SAMPLES = st.lists(hnp.arrays(np.float32, st.integers(0, 30), elements=FINITE), min_size=1, max_size=6)


def seen_of(x: Array, before: Seen | None = None, start: int = 0, floor: float | None = None) -> Seen:
    return observe({"x": x}, {"x": floor}, start, before or nothing(1, True))


def total(parts: list[Array]) -> Seen:
    return functools.reduce(merge, [seen_of(part) for part in parts], nothing(1, True))


def same(one: Seen, other: Seen) -> bool:
    fields = ("min", "max", "exponent", "counts")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


# What is seen


@given(SAMPLES, st.randoms(use_true_random=False))
def test_merging_gives_the_same_in_any_order_and_grouping(parts: list[Array], random) -> None:  # type: ignore[no-untyped-def]
    whole = total(parts)
    shuffled = random.sample(parts, len(parts))
    cut = random.randint(0, len(parts))
    assert same(merge(total(shuffled[:cut]), total(shuffled[cut:])), whole)
    assert same(merge(total(shuffled[cut:]), total(shuffled[:cut])), whole)
    assert same(merge(whole, nothing(1, True)), whole)


@given(SAMPLES)
def test_what_was_seen_before_changes_nothing(parts: list[Array]) -> None:
    streamed = nothing(1, True)
    for part in parts:
        streamed = merge(streamed, seen_of(part, streamed))
    assert same(streamed, total(parts))


@given(SAMPLES)
def test_bins_hold_what_numpy_counts_between_their_ends(parts: list[Array]) -> None:
    values = np.concatenate(parts)
    seen = total(parts)
    width = 2.0 ** float(seen.exponent[0])
    assert np.array_equal(
        seen.counts[0], np.histogram(np.abs(values.astype(np.float64)), np.arange(BINS + 1) * width)[0]
    )
    assert seen.counts.sum() == values.size
    if values.size:
        assert (seen.min[0], seen.max[0]) == (values.min(), values.max())


@given(hnp.arrays(np.float32, 40, elements=st.floats(2**-10, 2**10, width=32)))
def test_a_histogram_uses_at_least_half_of_its_bins(values: Array) -> None:
    assert np.flatnonzero(seen_of(values).counts[0])[-1] >= BINS // 2


def test_several_tensors_are_seen_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    values = {str(i): (rng.standard_normal((i, 3, 5)) * 10.0 ** (i - 20)).astype(np.float32) for i in range(1, 40)}
    seen = observe(values, dict.fromkeys(values), 7, nothing(len(values), True))
    for place, array in enumerate(values.values()):
        alone = seen_of(array, start=7)
        assert (seen.min[place], seen.max[place]) == (alone.min[0], alone.max[0])
        assert np.array_equal(seen.counts[place], alone.counts[0])


def test_extremes_count_every_value_and_histograms_a_share_that_moves() -> None:
    values = np.zeros(SAMPLED * 20 + 7, np.float32)
    values[-1], values[12345] = -3.0, 5.0
    seen = [seen_of(values + np.float32(1e-3), start=start) for start in range(50)]
    assert {(round(float(s.min[0]), 3), round(float(s.max[0]), 3)) for s in seen} == {(-2.999, 5.001)}
    assert all(SAMPLED / 2 < s.counts.sum() <= SAMPLED for s in seen)
    found = {int(s.counts[0, BINS // 2 :].sum()) for s in seen}
    assert found == {0, 1}, "some samples show the place of the 5, others do not"


def test_of_many_samples_each_adds_to_some_histograms_until_they_hold_enough() -> None:
    count, sizes = 2000, {"large": SAMPLED, "less": SAMPLED // 8, "small": 60}
    values = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    rng, seen = np.random.default_rng(0), nothing(3, True)
    for start in rng.integers(0, 2**32, count):
        seen = merge(seen, observe(values, dict.fromkeys(values), int(start), seen, count))
    large, less, small = seen.counts.sum(1)
    assert small == count * sizes["small"]
    assert all(0.7 * ENOUGH < held < 2 * ENOUGH for held in (large, less))


def test_without_a_histogram_only_extremes_are_kept() -> None:
    seen = observe({"x": np.array([1, -2], np.float32)}, {"x": None}, 0, nothing(1, False))
    assert (seen.min[0], seen.max[0], seen.counts.size) == (-2, 1, 0)
    assert merge(seen, seen).counts.size == 0


def test_a_known_floor_stands_for_the_minimum() -> None:
    seen = seen_of(np.array([2, 3], np.float32), floor=0.0)
    assert (seen.min[0], seen.max[0]) == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(value: float) -> None:
    values = {"fine": np.ones(3, np.float32), "broken": np.array([1, value, 2], np.float32)}
    with pytest.raises(InputError, match=f"'broken' holds {value}"):
        observe(values, dict.fromkeys(values), 0, nothing(2, True))


def test_what_masks_write_is_left_out() -> None:
    seen = seen_of(np.array([-np.inf, 2, -3, -np.inf], np.float32))
    assert (seen.min[0], seen.max[0], seen.counts.sum()) == (-3, 2, 2)
    masked = seen_of(np.full(3, -np.inf, np.float32))
    assert same(merge(masked, seen), seen)


# Where methods clip


SHAPES = {
    "normal": lambda rng: rng.standard_normal(60000),
    "laplace": lambda rng: rng.laplace(size=60000),
    "relu": lambda rng: np.maximum(rng.standard_normal(60000), 0),
    "student": lambda rng: rng.standard_t(3, size=60000),
    "uniform": lambda rng: rng.uniform(-1, 1, 60000),
    "outlier": lambda rng: np.append(rng.standard_normal(60000), 100.0),
}


@pytest.fixture(params=SHAPES)
def values(request: pytest.FixtureRequest) -> Array:
    drawn: Array = SHAPES[request.param](np.random.default_rng(0)).astype(np.float32)
    return drawn


def in_parts(values: Array) -> Seen:
    return total(np.array_split(values, 40))


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(values: Array, percentile: float) -> None:
    seen = in_parts(values)
    clip = range_of(seen, 0, "percentile", percentile).high
    width = 2.0 ** float(seen.exponent[0])
    exact = np.percentile(np.abs(values), percentile, method="inverted_cdf")
    assert min(exact, values.max()) - 1e-6 <= clip <= exact + width


def divergence(counts: NDArray[np.int64], end: int) -> float:
    """KL(P || Q) as the slides of TensorRT's calibration spell it, bin by bin."""
    p, inside = counts[:end].astype(float), counts[:end].sum()
    p[-1] += counts[end:].sum()
    q = np.zeros(end)
    for index in range(MERGED):
        first, last = index * end // MERGED, (index + 1) * end // MERGED
        held = np.flatnonzero(p[first:last]) + first
        if held.size:
            q[held] = max(counts[first:last].sum(), 1e-4) / held.size
    taken = p > 0
    return float((p[taken] / p.sum() * np.log(p[taken] / p.sum() / (q[taken] / inside))).sum())


def test_entropy_finds_the_least_divergence_by_its_definition(values: Array) -> None:
    seen = in_parts(values[::4])
    counts = seen.counts[0].copy()
    counts[0] = counts[1]
    used = int(np.flatnonzero(counts)[-1]) + 1
    least = max(MERGED, int(np.searchsorted(np.cumsum(counts), KEPT * counts.sum())) + 1)
    exact = {end: divergence(counts, end) for end in (*range(least, used + 1, 3), used)}
    found = observers.entropy_clip(seen.counts[0])
    assert divergence(counts, found) <= min(exact.values()) + 1e-9


def test_entropy_keeps_a_gate_whose_values_are_far_from_zero() -> None:
    gate = np.random.default_rng(0).uniform(0.4, 1, 5000).astype(np.float32)
    assert range_of(in_parts(gate), 0, "entropy", 0.0).high > 0.95


def rounding_error(values: Array, clip: float) -> float:
    x, step = np.abs(values.astype(np.float64)), clip / LEVELS
    return float(((np.clip(np.rint(x / step), 0, LEVELS) * step - x) ** 2).mean())


def test_mse_clips_where_rounding_loses_least(values: Array) -> None:
    found = range_of(in_parts(values), 0, "mse", 0.0)
    clip = max(-found.low, found.high)
    peak = np.abs(values).max()
    least = min(rounding_error(values, t) for t in np.linspace(peak / 100, peak, 150))
    assert rounding_error(values, clip) <= least * 1.02


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
def test_a_range_never_leaves_what_was_seen(values: Array, method: str) -> None:
    found = range_of(in_parts(values), 0, method, 99.99)
    assert found.min <= found.low <= found.high <= found.max
    assert (np.float32(found.min), np.float32(found.max)) == (values.min(), values.max())


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
@pytest.mark.parametrize("x", [[0.0], [-2.5], [1e-42], [3e38, -3e38], [0.0, 1e-30, 1e30]], ids=str)
def test_few_and_extreme_values_have_a_range(method: str, x: list[float]) -> None:
    found = range_of(seen_of(np.array(x, np.float32)), 0, method, 99.99)
    assert found.min <= found.low <= found.high <= found.max
