"""What differs between two callables that ran in turns: of turns next to each other, so that drift hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from math import comb

from edgeattn.profile.report import Interval
from edgeattn.profile.timing import Turns

__all__ = ["MIN_GAIN", "Times", "beats", "difference_ms", "fastest", "median_bounds", "ratio", "ratios"]

TAIL = 0.025  # of the chance, outside of each bound
MIN_GAIN = 0.01  # less is not worth leaving the first choice for

Times = tuple[float, ...]  # of the median run of each round; of short runs the fastest are luck


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


def fastest(times: Mapping[str, Times]) -> str:
    """The name that no later one beats beyond the noise."""
    best, *others = times
    for name in others:
        if beats(times[name], times[best]):
            best = name
    return best


def beats(new: Times, old: Times) -> bool:
    """Whether it is faster beyond the noise: by 1 % in the median round, and at all with 95 % confidence."""
    found = ratios(new, old)
    return statistics.median(found) <= 1 - MIN_GAIN and median_bounds(found)[1] < 1


def ratios(one: Times, other: Times) -> list[float]:
    """What one takes of the other's time, in each round, the least first."""
    return sorted(own / against for own, against in zip(one, other, strict=True))
