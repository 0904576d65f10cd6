"""Is one engine slower than another, beyond the noise, and where?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.backends import session_of
from edgeattn.backends.base import Progress, silent
from edgeattn.engine import read_engine, read_sidecar
from edgeattn.errors import InputError, UsageError
from edgeattn.profile.align import Difference, differences
from edgeattn.profile.engine import feeds_of, profile_engine
from edgeattn.profile.machine import environment
from edgeattn.profile.paired import ratio
from edgeattn.profile.report import Interval, ProfileReport
from edgeattn.profile.saved import read_profile
from edgeattn.profile.timing import Turns, measure_turns
from edgeattn.reports.text import table
from edgeattn.tensors import format_shape

if TYPE_CHECKING:
    from edgeattn.tensors import Shape

__all__ = ["ComparisonReport", "compare_engines", "compare_profiles"]

SHOWN = 20
FEWEST_TURNS = 6  # with fewer, no bounds are as sure as 95 %
LEAST_S = 1.0  # of turns, for each of the two
DEVICE = ("board", "gpu", "cpu", "cores")  # of an environment: where these differ, times say nothing of engines


@dataclass(frozen=True)
class ComparisonReport:
    """An engine against its baseline: `ratio` is how many times as long it takes, `interval` its bounds (95 %).

    `turns` counts the turns in which both ran in one process; 0 where the baseline is a profile that was saved, whose
    time may be another day's. `max_slowdown` is the share that it may be slower, None for any.
    """

    engine: ProfileReport
    baseline: ProfileReport
    ratio: float
    interval: Interval
    turns: int
    differences: tuple[Difference, ...]
    max_slowdown: float | None = None

    @property
    def gate(self) -> str:
        """`failed` or `passed` where that is beyond the noise, else `undecided`; empty where nothing was asked."""
        if self.max_slowdown is None:
            return ""
        low, high = (bound - 1 for bound in self.interval)
        if 0 < self.turns < FEWEST_TURNS:
            return "undecided"
        return "failed" if low > self.max_slowdown else "passed" if high <= self.max_slowdown else "undecided"

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        low, high = (bound - 1 for bound in self.interval)
        said = f"it takes {self.ratio:.3f} times as long as the baseline, between {low:+.1%} and {high:+.1%} (95 %)"
        if self.max_slowdown is None:
            faster = "slower" if low > 0 else "faster" if high < 0 else "no difference beyond the noise"
            return f"{faster}: {said}"
        longer = "; measure longer (--duration)" if self.gate == "undecided" else ""
        return f"{self.gate.upper()}: {said}; at most {self.max_slowdown:+.1%} is allowed{longer}"

    @property
    def notes(self) -> tuple[str, ...]:
        """How the two were compared, and what else is different."""
        paired = f"both ran in turn, {self.turns} turns in one process"
        unpaired = (
            "the baseline is a saved profile: the two did not run in turn, so drift of the machine counts as well"
        )
        here, there = self.engine.environment, self.baseline.environment
        changed = [
            f"{name}: {here.get(name, 'none')}, of the baseline {there.get(name, 'none')}"
            for name in {**there, **here}
            if here.get(name) != there.get(name)
        ]
        return (paired if self.turns else unpaired, *self._layers(), *changed)

    def _layers(self) -> Iterator[str]:
        """What the layers say of the whole."""
        if self.differences:
            found = sum(item.difference_ms for item in self.differences)
            whole = self.engine.latency.p50_ms - self.baseline.latency.p50_ms
            yield f"layers add up to {found:+.3g} ms of {whole:+.3g} ms; the rest is in none, or in no median"
            yield "layers were timed one engine after the other: their differences are less sure than the whole"

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields, with both profiles in full."""
        return {
            "gate": self.gate,
            "verdict": self.verdict,
            "ratio": self.ratio,
            "interval": self.interval,
            "turns": self.turns,
            "max_slowdown": self.max_slowdown,
            "differences": [item.to_json() for item in self.differences],
            "notes": self.notes,
            "engine": self.engine.to_json(),
            "baseline": self.baseline.to_json(),
        }

    def to_html(self) -> str:
        """One self-contained page."""
        from edgeattn.profile.compare_page import compare_page

        return compare_page(self)

    def __str__(self) -> str:
        rows = [
            (f"{report.latency.p50_ms:.3f}", f"{report.latency.p99_ms:.3f}", f"{report.latency.throughput:.1f}", name,
             f"{report.engine} ({report.backend}, {report.precision})")
            for name, report in (("engine", self.engine), ("baseline", self.baseline))
        ]  # fmt: skip
        parts = [table(rows, ("p50 ms", "p99 ms", "samples/s", "", "file"), "rrr")]
        if self.differences:
            parts.append(self._clear())
        return "\n\n".join([*parts, table([("note", note) for note in self.notes]), self.verdict])

    def _clear(self) -> str:
        """What differs beyond the noise, and why."""
        clear = [item for item in self.differences if item.clear]
        rows = [
            (f"{item.difference_ms:+.4f}", f"{item.median_ms:.4f}", f"{item.baseline_ms:.4f}",
             ": ".join(filter(None, (item.name, "; ".join(item.why)))))
            for item in clear[:SHOWN]
        ]  # fmt: skip
        drawn = [table(rows, ("difference", "ms", "baseline", "layers, and why"), "rrr")] if rows else []
        if len(clear) > SHOWN:
            drawn.append(f"... and {len(clear) - SHOWN} smaller differences")
        if noise := len(self.differences) - len(clear):
            drawn.append(f"{noise} of {len(self.differences)} groups of layers differ by no more than the noise")
        return "\n".join(drawn)


def compare_engines(
    engine: str | Path,
    baseline: str | Path,
    *,
    shapes: Mapping[str, Shape] | None = None,
    batch: int | None = None,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    duration_s: float = 3.0,
    layers: bool = True,
    memory: bool = True,
    max_slowdown: float | None = None,
    trust: bool = False,
    progress: Progress = silent,
) -> ComparisonReport:
    """Profile two engines on the same input, and time them against each other, in turns.

    Args:
        engine: the one that is asked about.
        baseline: the one that it is held against, or a profile of it that was saved as `.json`: then what was measured
            at two times is compared.
        shapes: of the inputs, by name; the baseline's may have other names, and are taken in order.
        batch: the first size of every input, instead of a shape.
        data: a folder of real samples, the first of which is fed; seeded random numbers without it.
        recipe: how images become inputs.
        duration_s: how long each of the two is measured, for its profile and again in turns.
        layers: whether to say where the difference is.
        memory: whether processes of their own are started to see what the engines take.
        max_slowdown: the share that the engine may take longer; see `ComparisonReport.gate`.
        trust: go on where a sidecar does not describe its plan.
        progress: called with a phase and its fraction.

    Raises:
        UsageError: shapes that one of them does not take; a bound, and a profile of another device.
        InputError: an engine or a profile is refused, or the profile was measured at other shapes.
    """
    profile = partial(
        profile_engine, data=data, recipe=recipe, duration_s=duration_s, layers=layers, memory=memory, trust=trust,
        progress=progress,
    )  # fmt: skip
    if Path(baseline).suffix == ".json":
        saved = read_profile(baseline)
        _require_comparable(environment(), saved, max_slowdown)
        return compare_profiles(profile(engine, shapes=shapes, batch=batch), saved, max_slowdown)
    own, names = ([spec.name for spec in read_sidecar(path, trust).inputs] for path in (engine, baseline))
    if len(names) != len(own):
        raise UsageError(f"{baseline} has {len(names)} inputs, {engine} {len(own)}: they cannot be compared")
    report = profile(engine, shapes=shapes, batch=batch)
    other = profile(baseline, shapes=dict(zip(names, report.shapes.values(), strict=True)))
    progress("timing the two in turns", None)
    turns = _in_turns([(engine, report), (baseline, other)], (data, recipe), duration_s, trust)
    return ComparisonReport(report, other, *ratio(*turns), len(turns[0]), differences(report, other), max_slowdown)


def _in_turns(
    profiles: Sequence[tuple[str | Path, ProfileReport]],
    fed: tuple[str | Path | None, str | Path | None],
    duration_s: float,
    trust: bool,
) -> list[Turns]:
    """The turns of engines that are open side by side, each on the input of its profile."""
    with ExitStack() as stack:
        calls = {}
        for place, (path, profile) in enumerate(profiles):
            engine = read_engine(path, trust)
            session = stack.enter_context(session_of(engine, str(path)))
            feeds, _ = feeds_of(engine.sidecar, session, profile.shapes, *fed)
            calls[str(place)] = partial(session.run, feeds)
        turns = measure_turns(calls, duration_s=max(duration_s, LEAST_S), min_turns=FEWEST_TURNS)
        return list(turns.values())


def compare_profiles(
    engine: ProfileReport, baseline: ProfileReport, max_slowdown: float | None = None
) -> ComparisonReport:
    """Compare what was measured at two times; the bounds of both count in full.

    Raises:
        UsageError: a bound was asked for, and the two were measured on other devices.
        InputError: they were measured at other shapes.
    """
    _require_comparable(engine.environment, baseline, max_slowdown)
    if [*engine.shapes.values()] != [*baseline.shapes.values()]:
        said = [", ".join(map(format_shape, report.shapes.values())) for report in (engine, baseline)]
        raise InputError(f"the baseline was measured at {said[1]}, the engine at {said[0]}: give --shapes")
    (low, high), (other_low, other_high) = engine.interval_ms, baseline.interval_ms
    return ComparisonReport(
        engine,
        baseline,
        engine.latency.p50_ms / baseline.latency.p50_ms,
        (low / other_high, high / other_low),
        0,
        differences(engine, baseline),
        max_slowdown,
    )


def _require_comparable(here: Mapping[str, str], baseline: ProfileReport, max_slowdown: float | None) -> None:
    other = [name for name in DEVICE if here.get(name) != baseline.environment.get(name)]
    if other and max_slowdown is not None:
        said = ", ".join(f"{name} {baseline.environment.get(name)}, here {here.get(name)}" for name in other)
        raise UsageError(f"the baseline was measured on another device ({said}): measure it here to hold a bound to it")
