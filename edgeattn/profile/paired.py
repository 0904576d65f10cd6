"""What differs between two callables that ran in turns: of turns next to each other, so that drift hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import comb

from edgeattn.profile.report import Interval
from edgeattn.profile.timing import Turns

__all__ = ["difference_ms", "median_bounds", "ratio"]

TAIL = 0.025  # of the chance, outside of each bound


def ratio(one: Turns, other: Turns) -> tuple[float, Interval]:
    """How many times as long one takes, by the median run of a turn: the median over pairs of turns, and its bounds."""
    pairs = zip(one, other, strict=True)
    return _middle([statistics.median(own) / statistics.median(against) for own, against in pairs])


def difference_ms(one: Turns, other: Turns) -> tuple[float, Interval]:
    """How many milliseconds longer one takes, by the fastest run of a turn, to which whatever else runs only adds.

    Returns:
        The median over pairs of turns, and its bounds.
    """
    return _middle([(min(own) - min(against)) / 1e6 for own, against in zip(one, other, strict=True)])


def _middle(values: Sequence[float]) -> tuple[float, Interval]:
    return statistics.median(values), median_bounds(values)


def median_bounds(values: Sequence[float]) -> Interval:
    """Bounds that hold the median of what independent values are drawn from with 95 % confidence, or all there are.

    Whatever the distribution, as many values lie below its median as heads come up when a coin is tossed: the bounds
    are the k-th value from either end, k the largest with P(fewer than k heads) <= 2.5 %.
    """
    count, k = len(values), 1
    chance = (1 + count) / 2**count  # of at most one head
    while chance <= TAIL:
        k += 1
        chance += comb(count, k) / 2**count
    ordered = sorted(values)
    return ordered[k - 1], ordered[-k]
