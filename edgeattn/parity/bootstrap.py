"""How far a metric can be trusted that was measured on so many samples and no more: bootstrap intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgeattn.metrics import ERRORS, Metric

if TYPE_CHECKING:
    from edgeattn.tensors import Array

__all__ = ["LEVEL", "RESAMPLES", "Interval", "intervals"]

Interval: TypeAlias = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
AT_ONCE = 1 << 18  # weights in memory


def intervals(
    reference: Metric, engine: Metric, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Percentile intervals of each metric: of the `reference`, of the `engine`, and of the `drop` between them.

    A resample draws as many samples as there are, with replacement: `default_rng(seed).integers(0, n, n)`, resample
    after resample. Both sides have the same one, so what makes a sample hard for both does not widen the drop's
    interval. A resample on which a metric has no meaning (no box, no object) is left out of its interval.

    Returns:
        By metric and side (low, high); empty where there are fewer than two samples, or not the same on both sides.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, sections 6 and 13.
    """
    if reference.samples < 2 or reference.samples != engine.samples:
        return {}
    drawn: dict[tuple[str, str], list[Array]] = defaultdict(list)
    for weights in _weights(reference.samples, resamples, np.random.default_rng(seed)):
        ours, theirs = engine.resampled(weights), reference.resampled(weights)
        for name in (name for name in theirs if name in ours):
            drop = ours[name] - theirs[name] if name in ERRORS else theirs[name] - ours[name]
            for side, values in (("reference", theirs[name]), ("engine", ours[name]), ("drop", drop)):
                drawn[name, side].append(values)
    found: dict[str, dict[str, Interval]] = defaultdict(dict)
    for (name, side), parts in drawn.items():
        values = np.concatenate(parts)
        if np.isfinite(values).any():
            tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
            low, high = np.quantile(values[np.isfinite(values)], tails)
            found[name][side] = (float(low), float(high))
    return dict(found)


def _weights(samples: int, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each resample holds each sample, many resamples at once."""
    step = max(1, AT_ONCE // samples)
    for start in range(0, resamples, step):
        rows = range(start, min(start + step, resamples))
        counts = [np.bincount(rng.integers(0, samples, samples), minlength=samples) for _ in rows]
        yield np.asarray(counts, np.float64)
