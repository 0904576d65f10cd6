"""How long each stage takes and what becomes of the frames: one meter, which everything that shows numbers reads."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeattn.camera.frame import Frame

# `capture` is a frame's age when the pipeline takes it up, `decode` the part of that from its first byte to the
# picture; `wait` is for the engine and for other sources' frames. `age` is that of the result, the sum of all but
# `decode`. `sink` is the time of any sink for a result.
STAGES = ("capture", "decode", "preprocess", "wait", "inference", "postprocess", "age", "sink")

_STEPS = 8  # buckets to a factor of 2
_BOUNDS = tuple(1e-5 * 2 ** (step / _STEPS) for step in range(24 * _STEPS + 1))  # seconds; beyond them is one more
_RECENT = 5.0  # seconds that the rate of now looks back
_REMEMBERED = 256


@dataclass(frozen=True)
class Histogram:
    """Times in seconds, in buckets that are 2^(1/8) apart, from 10 us to 168 s; `largest` is exact."""

    counts: tuple[int, ...]
    sum: float
    largest: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The time that this share of all stays below, in seconds, within 4.5 %; NaN where there is none."""
        rank = max(1, math.ceil(share * self.count))
        reached = 0
        for index, count in enumerate(self.counts):
            reached += count
            if reached >= rank:
                middle = _BOUNDS[index] * 2 ** (-0.5 / _STEPS) if index < len(_BOUNDS) else math.inf
                return min(middle, self.largest)
        return math.nan

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, how many are at most that) at each factor of 2; the last bound is infinite."""
        ends = range(0, len(_BOUNDS), _STEPS)
        return [(_BOUNDS[end], sum(self.counts[: end + 1])) for end in ends] + [(math.inf, self.count)]

    def to_json(self) -> dict[str, float | int | None]:
        """Milliseconds: `p50_ms`, `p95_ms`, `p99_ms`, `max_ms`, `mean_ms`, and `count`; null where there is none."""
        count = self.count
        if not count:
            return {**dict.fromkeys(("p50_ms", "p95_ms", "p99_ms", "max_ms", "mean_ms")), "count": 0}
        quantiles = {f"p{share}_ms": 1000 * self.quantile(share / 100) for share in (50, 95, 99)}
        return {**quantiles, "max_ms": 1000 * self.largest, "mean_ms": 1000 * self.sum / count, "count": count}


@dataclass(frozen=True)
class SourceStats:
    """One source: its state in words and why it is in it, frames read and how many became results, and why not all.

    `dropped` counts by reason: `newer` (a newer frame took its place), `age` (older than allowed), `corrupt` (could
    not be decoded). `reconnects` is how often it was opened anew.
    """

    uri: str
    state: str
    frames: int
    results: int
    dropped: Mapping[str, int]
    reconnects: int
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {**self.__dict__, "dropped": dict(self.dropped)}


@dataclass(frozen=True)
class Stats:
    """All that was counted, at one moment.

    `rate` is results in a second over the last 5 s, `mean_rate` over the whole run, both (N - 1) / span. `stages` has
    a histogram for each of `STAGES`. `missed` counts, by sink, results that a newer one replaced before it took them.
    """

    elapsed: float
    rate: float
    mean_rate: float
    stages: Mapping[str, Histogram]
    sources: tuple[SourceStats, ...]
    missed: Mapping[str, int]

    @property
    def frames(self) -> int:
        return sum(source.frames for source in self.sources)

    @property
    def results(self) -> int:
        return sum(source.results for source in self.sources)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Frames that became no result, by reason."""
        total: Counter[str] = Counter()
        for source in self.sources:
            total.update(source.dropped)
        return dict(total)

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in milliseconds, of each stage and of the result's age."""
        return {
            "elapsed_s": self.elapsed,
            "frames": self.frames,
            "results": self.results,
            "dropped": dict(self.dropped),
            "rate": self.rate,
            "mean_rate": self.mean_rate,
            "stages": {name: histogram.to_json() for name, histogram in self.stages.items()},
            "sources": [source.to_json() for source in self.sources],
            "missed": dict(self.missed),
        }

    def __str__(self) -> str:
        from edgeattn.reports.text import table

        rows = []
        for name, histogram in self.stages.items():
            if histogram.count:
                quantiles = (f"{1000 * histogram.quantile(share):.2f}" for share in (0.5, 0.95, 0.99))
                rows.append((name, *quantiles, f"{1000 * histogram.largest:.2f}"))
        lost = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count) or "none"
        total = (
            f"{self.results} results of {self.frames} frames in {self.elapsed:.1f} s, {self.mean_rate:.1f} a second; "
            f"dropped: {lost}"
        )
        return "\n".join([table(rows, ("stage", "p50 ms", "p95 ms", "p99 ms", "max ms"), "lrrrr"), total])


@dataclass(eq=False)
class _Times:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    sum: float = 0.0
    largest: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.sum += seconds
        self.largest = max(self.largest, seconds)


class Meter:
    """Counts, from any thread. `sources` are asked for their `state` and `corrupt` packets where they know them.

    `names` tells them apart: two cameras of one address that differ in their passwords only have the same URI.
    """

    def __init__(self, sources: Sequence[Any]) -> None:
        self._sources = sources
        self.names: list[str] = []
        seen: Counter[str] = Counter()
        for source in sources:
            uri = str(source.uri)
            seen[uri] += 1
            self.names.append(uri if seen[uri] == 1 else f"{uri} ({seen[uri]})")
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._stages = {name: _Times() for name in STAGES}
        self._frames, self._results = [0] * len(sources), [0] * len(sources)
        self._next, self._epochs = [0] * len(sources), [0] * len(sources)
        self._gaps, self._over = [0] * len(sources), [False] * len(sources)
        self._dropped: list[Counter[str]] = [Counter() for _ in sources]
        self._missed: Counter[str] = Counter()
        self._first = 0.0
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)

    def captured(self, source: int, frame: Frame) -> None:
        """Count a frame, and those that its source dropped before it, which its index tells."""
        with self._lock:
            gap = frame.index - self._next[source] if frame.epoch == self._epochs[source] else 0
            self._frames[source] += 1 + gap
            self._gaps[source] += gap
            self._next[source], self._epochs[source] = frame.index + 1, frame.epoch

    def dropped(self, source: int, reason: str, count: int = 1) -> None:
        """Count frames that become no result."""
        if count:
            with self._lock:
                self._dropped[source][reason] += count

    def ended(self, source: int) -> None:
        """Note that a source gives no more frames."""
        self._over[source] = True

    def result(self, source: int, stages: Mapping[str, float], now: float) -> None:
        """Count a result with its times in seconds."""
        with self._lock:
            self._results[source] += 1
            self._first = self._first or now
            self._ends.append(now)
            for name, seconds in stages.items():
                self._stages[name].add(seconds)

    def delivered(self, seconds: float) -> None:
        """Count the time that a sink took for a result."""
        with self._lock:
            self._stages["sink"].add(seconds)

    def missed(self, sink: str, count: int) -> None:
        """Count results that a sink did not come to."""
        if count:
            with self._lock:
                self._missed[sink] += count

    def snapshot(self) -> Stats:
        """All of it, as it is now."""
        now = time.monotonic()
        with self._lock:
            recent = [end for end in self._ends if now - end <= _RECENT]
            span = self._ends[-1] - self._first if self._ends else 0.0
            return Stats(
                elapsed=now - self._began,
                rate=_rate(len(recent), recent[-1] - recent[0] if recent else 0.0),
                mean_rate=_rate(sum(self._results), span),
                stages={
                    name: Histogram(tuple(times.counts), times.sum, times.largest)
                    for name, times in self._stages.items()
                },
                sources=tuple(self._source(index) for index in range(len(self._sources))),
                missed=dict(self._missed),
            )

    def _source(self, index: int) -> SourceStats:
        source = self._sources[index]
        corrupt = int(getattr(source, "corrupt", 0))
        dropped = self._dropped[index] + Counter(corrupt=corrupt, newer=max(0, self._gaps[index] - corrupt))
        return SourceStats(
            uri=self.names[index],
            state="ended" if self._over[index] else str(getattr(source, "state", "live")),
            frames=self._frames[index],
            results=self._results[index],
            dropped=dropped,
            reconnects=self._epochs[index],
            reason="" if self._over[index] else str(getattr(source, "reason", "")),
        )


def _rate(count: int, span: float) -> float:
    return (count - 1) / span if span > 0 else 0.0
