"""A part of a calibration as a file: what a killed run goes on from, and what machines that share the work hand in.

All parts of a calibration say the same `about`; merging them gives the same bytes, however the samples were shared.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn import files
from edgeattn.calibrate.observers import BINS, Seen, merge, range_of, rounded
from edgeattn.data import require_good
from edgeattn.errors import InputError, UsageError, one_line, quote
from edgeattn.precision.ranges import FORMAT, Range, Ranges, lines, read_json

PART_FORMAT = 2  # of parts alone; those of 1 do not name it
_HEADER = ("shard", "done", "samples", "bad", "about")


@dataclass(frozen=True)
class Partial:
    """What was seen of some samples.

    Attributes:
        about: the fields of `Ranges` that are known beforehand, `files` (how many there are in all) and `derived`: by
            name of a value, the fields of the `Derived` that it follows from.
        names: the tensors of `seen`, sorted.
        seen: their values.
        shard: (k, n), the k-th of n.
        done: how many batches of the shard were looked at.
        samples: how many samples these had.
        bad: the files that could not be used, and why.
    """

    about: Mapping[str, Any]
    names: tuple[str, ...]
    seen: Seen
    shard: tuple[int, int] = (1, 1)
    done: int = 0
    samples: int = 0
    bad: tuple[str, ...] = ()


def save_partial(partial: Partial, path: Path) -> None:
    """Write a part, replacing what was there in one step."""
    header = {"format": FORMAT, "part_format": PART_FORMAT, **{name: getattr(partial, name) for name in _HEADER}}
    seen = partial.seen
    rows = zip(
        seen.min.tolist(),
        seen.max.tolist(),
        seen.exponent.tolist(),
        [np.trim_zeros(row, "b").tolist() if row.size else None for row in seen.counts],
        strict=True,
    )
    files.write_atomic(path, lines(header, dict(zip(partial.names, rows, strict=True))))


def load_partial(path: Path) -> Partial:
    """Read a part.

    Raises:
        InputError: it cannot be read, is of another format, or is not what `save_partial` writes.
    """
    document = read_json(path, "part of a calibration")
    if "shard" not in document:
        raise InputError(f"{path} is no part of a calibration but a whole table; expected what --shard wrote")
    if (found := document.get("part_format", 1)) != PART_FORMAT:
        raise InputError(
            f"{path} is a part of format {quote(found)}; this edgeattn reads {PART_FORMAT}; make it again with --shard"
        )
    try:
        rows = dict(sorted(document["tensors"].items()))
        k, n = map(int, document["shard"])
        return Partial(
            dict(document["about"]),
            tuple(rows),
            _seen(list(rows.values())),
            (k, n),
            int(document["done"]),
            int(document["samples"]),
            tuple(map(str, document["bad"])),
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as err:
        raise InputError(f"{path} is no part of a calibration: {one_line(err)}; make it again with --shard") from err


def _seen(rows: Sequence[Any]) -> Seen:
    low, high, exponent, counts = zip(*rows, strict=True)
    histogram = counts[0] is not None
    filled = np.zeros((len(rows), BINS * histogram), np.int64)
    for place, row in enumerate(counts if histogram else ()):
        filled[place, : len(row)] = row
    return Seen(np.array(low, np.float64), np.array(high, np.float64), np.array(exponent, np.int64), filled)


def merge_shards(paths: Sequence[Path]) -> Ranges:
    """Put the parts of one calibration together; their order does not matter.

    Raises:
        InputError: one cannot be read, they are of different calibrations, or too many files are bad.
        UsageError: a part is there twice, or one is missing.
    """
    parts = [load_partial(path) for path in paths]
    whole = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if (part.about, part.names, part.shard[1]) != (whole.about, whole.names, whole.shard[1]):
            names = [name for name in whole.about if whole.about[name] != part.about.get(name)] or ["shards"]
            raise InputError(f"{path} is of another calibration than {paths[0]}: {', '.join(names)} differ")
    numbers, count = sorted(part.shard[0] for part in parts), whole.shard[1]
    if numbers != list(range(1, count + 1)):
        raise UsageError(
            f"shards {', '.join(map(str, numbers))} of {count} are here; expected each of 1 to {count} once"
        )
    return finish(functools.reduce(joined, parts))


def joined(one: Partial, other: Partial) -> Partial:
    """What was seen in two parts of a calibration together."""
    done, samples = one.done + other.done, one.samples + other.samples
    return replace(one, seen=merge(one.seen, other.seen), done=done, samples=samples, bad=one.bad + other.bad)


def finish(whole: Partial) -> Ranges:
    """The table of ranges that a calibration ends in.

    Raises:
        InputError: more than 1 % of the files (and more than one), or all, could not be used.
    """
    about = dict(whole.about)
    count, derived = about.pop("files"), about.pop("derived")
    require_good(whole.bad, count, "the calibration data")
    percentile = about["settings"].get("percentile", 100.0)
    tensors = {
        name: range_of(whole.seen, place, about["method"], percentile)
        for place, name in enumerate(whole.names)
        if whole.seen.min[place] <= whole.seen.max[place]
    }
    tensors |= {name: _follows(tensors[of], *rest) for name, (of, *rest) in derived.items() if of in tensors}
    bad = tuple(sorted(whole.bad))
    return Ranges(samples=whole.samples, bad=bad, tensors=dict(sorted(tensors.items())), **about)


def _follows(found: Range, factor: float, least: float, most: float, shrunk: bool) -> Range:
    pairs = [sorted((low * factor, high * factor)) for low, high in ((found.min, found.max), (found.low, found.high))]
    ends = [(low + least, high + most) for low, high in pairs]
    if shrunk:
        ends = [(min(low, 0.0), max(high, 0.0)) for low, high in ends]
    return rounded(*ends[0], *ends[1])
