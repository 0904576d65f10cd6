"""What is remembered of a tensor's values while samples stream by, and where a quantiser should clip them.

A `Seen` holds the extremes and histograms of magnitudes whose bins are a power of two wide. A wider range doubles the
width by adding pairs of bins, which is exact; so `merge` is associative and commutative, and what comes out does not
depend on how samples were split or in which order they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import InputError
from edgeattn.precision.ranges import Range

if TYPE_CHECKING:
    from edgeattn.tensors import Array

BINS = 2048
LEVELS = 127  # of a signed 8-bit number, on each side of zero
KEPT = 0.99  # of the magnitudes, at least, that the entropy method leaves below the clip
MERGED = 128  # bins that the entropy method compares with; TensorRT's and ONNX Runtime's number
SAMPLED = 4096  # values of a tensor that one run adds to its histogram, at most
ENOUGH = 1 << 18  # values of a histogram: where all runs together have more, they take turns
_BLOCK = 16  # neighbours that are taken together: a cache line
_PART = 1 << 17  # values whose extremes are looked for together: as many as a core's own cache holds
_TOGETHER = 16  # tensors that are binned together, while their values are in the cache
_LEAST_EXPONENT = -120  # where float32 still scales by a power of two exactly


@dataclass(frozen=True, eq=False)
class Seen:
    """The values of T tensors: `min` and `max` of all (of none, `min` is above `max`), and histograms of magnitudes.

    `counts[t, i]` is for i <= |x| / 2**exponent[t] < i + 1; there are `BINS` of them, or none where only extremes are
    kept. Shapes (T,), (T,), (T,) and (T, BINS or 0).
    """

    min: Array
    max: Array
    exponent: Array
    counts: Array

    def peak(self) -> Array:
        """The largest magnitude of each tensor; -inf of no values."""
        return np.maximum(-self.min, self.max)


def nothing(tensors: int, histogram: bool) -> Seen:
    """What was seen of tensors before the first sample."""
    ends = np.full(tensors, np.inf)
    return Seen(ends, -ends, np.full(tensors, _LEAST_EXPONENT), np.zeros((tensors, BINS * histogram), np.int64))


def observe(
    values: Mapping[str, Array], floors: Mapping[str, float | None], start: int, before: Seen, runs: int = 1
) -> Seen:
    """Look at the values of one run, of one sample or some; histograms are made where `before` has them.

    All values count for the extremes; a histogram takes blocks of neighbours at even distances, up to `SAMPLED` values,
    of as many runs as give `ENOUGH`. Minus infinity, which masks write, is left out.

    Args:
        values: float arrays of any shape, by name.
        floors: by name, a lower bound that is known, as a Relu's 0, and taken for the minimum; or None.
        start: any number, the run's own; it says which tensors' histograms it adds to, and moves the blocks, so that
            runs do not all show the same places.
        before: what was seen before. Its bins are taken where they are wide enough, which spares work and changes
            nothing.
        runs: how many there are in all.

    Raises:
        InputError: a value is nan or plus infinity; says which tensor's.
    """
    ends: list[tuple[float, float]] = []
    taken: dict[int, Array] = {}
    for place, (name, array) in enumerate(values.items()):
        flat = array.reshape(-1)
        low, high = _ends(flat, floors[name])
        if low == -math.inf:
            flat = flat[flat != -np.inf]
            low = np.minimum.reduce(flat, initial=np.inf)
        if math.isnan(high) or math.isnan(low) or high == math.inf:
            raise InputError(f"value {name!r} holds {high}")
        ends.append((low, high))
        if before.counts.size and (start + place) % _turns(flat.size, runs) == 0:
            taken[place] = _some(flat, start)  # while it is in the cache
    least, most = np.array(ends, np.float64).reshape(-1, 2).T
    seen = Seen(least, most, before.exponent, before.counts[:, :0])
    return _counted(seen, taken) if before.counts.size else seen


def _ends(values: Array, floor: float | None) -> tuple[float, float]:
    """The least and the largest value; of both, part by part, since the second pass over it finds it in the cache."""
    if floor is not None:
        return floor, np.maximum.reduce(values, initial=-np.inf)
    parts = [values[first : first + _PART] for first in range(0, values.size, _PART)]
    ends = [(np.minimum.reduce(part), np.maximum.reduce(part)) for part in parts]
    if len(ends) == 1:
        return ends[0]
    both: Array = np.array(ends).reshape(-1, 2)
    return np.minimum.reduce(both[:, 0], initial=np.inf), np.maximum.reduce(both[:, 1], initial=-np.inf)


def _counted(seen: Seen, taken: Mapping[int, Array]) -> Seen:
    """With a histogram of the values that were taken of some tensors, whose bins are wide enough for all of them."""
    peak = seen.peak()
    needed = np.frexp(np.maximum(peak, 0))[1] - (BINS.bit_length() - 1)
    exponent = np.maximum(seen.exponent, np.where(peak > 0, needed, _LEAST_EXPONENT))
    counts = np.zeros((len(peak), BINS), np.int64)
    chosen = list(taken)
    for first in range(0, len(chosen), _TOGETHER):
        places = chosen[first : first + _TOGETHER]
        sizes = [taken[place].size for place in places]
        magnitudes = np.abs(np.concatenate([taken[place] for place in places], dtype=np.float32))
        magnitudes *= np.repeat(np.exp2(-exponent[places]).astype(np.float32), sizes)
        bins = magnitudes.astype(np.intp)
        bins += np.repeat(np.arange(len(places)) * BINS, sizes)
        counts[places] = np.bincount(bins, minlength=len(places) * BINS).reshape(-1, BINS)
    return Seen(seen.min, seen.max, exponent, counts)


def _turns(size: int, runs: int) -> int:
    """Of how many runs one adds to the histogram of a tensor of this size."""
    return max(1, runs * min(size, SAMPLED) // ENOUGH)


def _some(values: Array, start: int) -> Array:
    if values.size <= SAMPLED:
        return values
    blocks = values[: values.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    step = -(-len(blocks) // (SAMPLED // _BLOCK))
    step += 1 - step % 2  # an even step would meet the same columns of most maps again and again
    return blocks[start % step :: step].reshape(-1)


def merge(one: Seen, other: Seen) -> Seen:
    """What was seen of the same tensors in both."""
    exponent = np.maximum(one.exponent, other.exponent)
    counts = _coarser(one, exponent) + _coarser(other, exponent)
    return Seen(np.minimum(one.min, other.min), np.maximum(one.max, other.max), exponent, counts)


def _coarser(seen: Seen, exponent: Array) -> Array:
    doublings = exponent - seen.exponent
    if not doublings.any() or not seen.counts.size:
        return seen.counts
    counts = seen.counts.copy()
    for place in np.flatnonzero(doublings):
        joined = min(2 ** int(doublings[place]), BINS)
        counts[place] = 0
        counts[place, : BINS // joined] = seen.counts[place].reshape(-1, joined).sum(1)
    return counts


def range_of(seen: Seen, place: int, method: str, percentile: float) -> Range:
    """The range of one tensor, clipped by a method.

    `minmax` clips nothing. The others find the magnitude t beyond which to clip, and clip to [-t, t], as far as values
    reach there; so a signed quantiser and one that follows `low` and `high` both fit.

    - `percentile`: that share of the magnitudes lies below t.
    - `entropy`: t loses least information, by the divergence of the clipped histogram from the same one in 128 bins.
    - `mse`: t makes the least mean square error of rounding to -127 .. 127 steps of t / 127.
    """
    least, most, counts = float(seen.min[place]), float(seen.max[place]), seen.counts[place]
    clip = peak = max(-least, most)
    if method in THRESHOLDS and counts.any():
        clip = min(peak, THRESHOLDS[method](counts, percentile) * 2.0 ** int(seen.exponent[place]))
    return rounded(least, most, max(least, -clip), min(most, clip))


def rounded(*numbers: float) -> Range:
    """A range of float32 numbers, each by the shortest decimal that means it."""
    return Range(*(float(str(np.float32(number))) for number in numbers))


def percentile_clip(counts: Array, percentile: float) -> int:
    """The end of the bin in which a percentile of the magnitudes lies; as of all clips, in bins."""
    upto = np.cumsum(counts)
    return int(np.searchsorted(upto, upto[-1] * (percentile / 100))) + 1


def entropy_clip(counts: Array) -> int:
    """The end of the histogram that diverges least from itself in `MERGED` bins of equal width.

    With P the first i bins, all that lies beyond added to the last, and Q the same without what lies beyond, its bins
    merged to `MERGED` and each spread evenly over those that P has: the i of least KL(P || Q). The first bin counts as
    the second does: zeros, of which a Relu makes many, are exact in any range. The first i hold `KEPT` of the
    magnitudes: of values far from zero, as a gate's, one bin with everything in it would diverge least. Sums over
    ranges of bins are differences of running sums, so that all i are looked at together.

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017; for the first bin NVIDIA's pytorch-quantization.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1
    if used <= MERGED:
        return used
    counts = counts[:used].astype(np.float64)
    counts[0] = counts[1]
    ends = np.arange(MERGED, used + 1)
    upto, filled, entropies = (_running(item) for item in (counts, counts > 0, _xlogx(counts)))
    inside, last = upto[ends], counts[ends - 1]
    outside = upto[-1] - inside
    edges = ends[:, None] * np.arange(MERGED + 1) // MERGED
    sums, holders = np.diff(upto[edges]), np.diff(filled[edges])
    holders[:, -1] += (last == 0) & (outside > 0)
    evenly = np.log(np.maximum(sums, 1e-4) / np.maximum(holders, 1))
    cross = (sums * evenly).sum(1) + outside * evenly[:, -1]
    own = entropies[ends - 1] + _xlogx(last + outside)
    with np.errstate(divide="ignore"):
        divergence = (own - cross) / upto[-1] + np.log(inside)  # but for the logarithm of all, the same for each
    divergence[inside < KEPT * upto[-1]] = np.inf
    return int(ends[np.argmin(divergence)])


def mse_clip(counts: Array) -> int:
    """The end of the bin at which clipping makes the least expected square error of rounding to steps of t / LEVELS.

    E(t) = sum of x^2 below half a step, step^2 / 12 for each above it, and (|x| - t)^2 beyond t; x are bins' middles.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1
    counts, middles = counts[:used].astype(np.float64), np.arange(used) + 0.5
    number, first, second = (_running(counts * middles**power) for power in range(3))
    ends = np.arange(1, used + 1)
    step = ends / LEVELS
    dead = np.minimum((step / 2).astype(np.intp), ends)
    beyond = [item[-1] - item[ends] for item in (number, first, second)]
    clipped = beyond[2] - 2 * ends * beyond[1] + ends.astype(np.float64) ** 2 * beyond[0]
    error = second[dead] + step**2 / 12 * (number[ends] - number[dead]) + clipped
    return int(ends[np.argmin(error)])


THRESHOLDS: dict[str, Callable[[Array, float], int]] = {
    "entropy": lambda counts, percentile: entropy_clip(counts),
    "percentile": percentile_clip,
    "mse": lambda counts, percentile: mse_clip(counts),
}


def _running(items: Array) -> Array:
    """Sums of the first 0, 1, 2, ... items."""
    sums: Array = np.concatenate([[0.0], np.cumsum(items, dtype=np.float64)])
    return sums


def _xlogx(counts: Array) -> Array:
    logs: Array = counts * np.log(np.maximum(counts, 1))
    return logs
