from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from edgeattn.profile.paired import difference_ms, median_bounds, ratio
from edgeattn.profile.timing import Turns


def turns(pace: list[float], scale: float, seed: int) -> Turns:
    drawn = np.random.default_rng(seed)
    return [[round(scale * base * noise) for noise in drawn.normal(1, 0.05, 20)] for base in pace]


@pytest.mark.parametrize("times", [0.9, 1.0, 1.1])
def test_a_ratio_survives_a_machine_that_gets_three_times_slower(times: float) -> None:
    pace = [float(base) for base in 1e6 * np.linspace(1, 3, 60)]
    found, (low, high) = ratio(turns(pace, times, 0), turns(pace, 1.0, 1))
    assert low < found < high
    assert found == pytest.approx(times, rel=0.02)
    assert high - low < 0.03


def test_a_difference_is_in_milliseconds_and_what_runs_beside_is_not_in_it() -> None:
    disturbed = [[5_000_000, 5_000_000 + disturbance, 9_000_000] for disturbance in range(0, 900_000, 100_000)]
    assert difference_ms(disturbed, [[3_000_000]] * 9) == (2.0, (2.0, 2.0))


@pytest.mark.parametrize("draw", ["standard_t", "exponential"])
def test_bounds_hold_the_median_as_often_as_they_say(draw: str) -> None:
    drawn = np.random.default_rng(2)
    truth = {"standard_t": 0.0, "exponential": np.log(2)}[draw]
    samples = [getattr(drawn, draw)(*([2] if draw == "standard_t" else []), size=21) for _ in range(1000)]
    held = sum(low <= truth <= high for low, high in (median_bounds(sample) for sample in samples))
    assert 0.94 <= held / 1000 <= 0.985  # the exact chance is 97.3 %


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=80, unique=True))
def test_bounds_are_the_innermost_that_the_binomial_distribution_allows(values: list[float]) -> None:
    """scipy has the distribution; with fewer than six values no bounds are as sure, and all there are is taken."""
    ordered, count = sorted(values), len(values)
    k = max((k for k in range(1, count // 2 + 1) if binom.cdf(k - 1, count, 0.5) <= 0.025), default=1)
    assert median_bounds(values) == (ordered[k - 1], ordered[-k])
