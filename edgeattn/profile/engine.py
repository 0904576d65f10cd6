"""An engine, measured: whole without instrumentation, and layer by layer, in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.backends import session_of
from edgeattn.backends.base import LayerTimes, Progress, Session, silent
from edgeattn.batches import batch_size
from edgeattn.data import load_recipe, open_data, read_npz
from edgeattn.engine import Sidecar, read_engine
from edgeattn.errors import InputError, UsageError, did_you_mean
from edgeattn.folding import feeding_recipe
from edgeattn.profile.energy import meter
from edgeattn.profile.layers import blocks_of, layers_of, reconciled
from edgeattn.profile.machine import conditions, environment
from edgeattn.profile.memory import memory_of
from edgeattn.profile.provenance import read
from edgeattn.profile.report import Energy, Memory, ProfileReport, Run, Stages
from edgeattn.profile.timing import Turns, median_interval, rest, turn
from edgeattn.reports.latency import latency_report
from edgeattn.tensors import format_shape, random_feeds

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Shape

__all__ = ["feeds_of", "profile_engine"]

ROUNDS = 20
FEWEST_ROUNDS = 5
PATIENCE = 4  # times the duration that was asked for
STEADY_RUNS = 10  # that are compared with as many before them
STEADY = 0.03  # the relative gain below which runs have stopped getting faster
WARMUP_S = 0.3  # at least; the clocks of many machines take as long to rise
MOST_WARMUP_S = 10.0
UNWEIGHED = Memory(None, None, None)
NO_PROVENANCE = "the engine was built before its sidecar said where layers come from: build it again to see its blocks"


@dataclass
class _Measured:
    """What rounds of turns found; times are nanoseconds."""

    plain: Turns = field(default_factory=list)
    instrumented: Turns = field(default_factory=list)
    readings: list[LayerTimes] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    source: str = ""
    joules: float = 0.0
    seconds: float = 0.0

    def energy(self) -> Energy | None:
        """Of one run; None where no meter moved."""
        runs = sum(len(own) + 1 for own in self.plain)  # the uncounted first run of a turn draws too
        if self.joules <= 0:
            return None
        return Energy(1e3 * self.joules / runs, self.joules / self.seconds, self.source)

    @property
    def plain_ms(self) -> float:
        return statistics.median([spent for own in self.plain for spent in own]) / 1e6

    @property
    def instrumented_ms(self) -> float:
        return statistics.median([spent for own in self.instrumented for spent in own] or [0]) / 1e6


def profile_engine(
    path: str | Path,
    *,
    shapes: Mapping[str, Shape] | None = None,
    batch: int | None = None,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    duration_s: float = 3.0,
    layers: bool = True,
    memory: bool = True,
    trust: bool = False,
    progress: Progress = silent,
) -> ProfileReport:
    """Measure an engine: whole, without instrumentation, and its layers, with it, in turns.

    Args:
        path: the engine.
        shapes: of the inputs, by name (the empty name is the only input); the rest at what the engine is best at.
        batch: the first size of every input, instead of a shape.
        data: a folder of real samples, the first of which is fed; seeded random numbers without it.
        recipe: how images become inputs.
        duration_s: how long the whole is measured; layers take about as long again.
        layers: whether layers are timed too.
        memory: whether a process of its own is started to see what the engine takes.
        trust: take a plan that its sidecar does not describe.
        progress: called with a phase and its fraction.

    Raises:
        InputError: the engine, the samples or the shapes are refused.
        UnsupportedError: its backend cannot run here.
        UsageError: shapes of inputs that are not there, or that the samples do not have.
    """
    path = Path(path)
    engine = read_engine(path, trust)
    before = conditions(engine.sidecar.backend)
    with ExitStack() as stack:
        start = time.perf_counter()
        session = stack.enter_context(session_of(engine, str(path)))
        load_ms = 1e3 * (time.perf_counter() - start)
        wanted = _shapes(engine.sidecar, shapes or {}, batch)
        feeds, fed = feeds_of(engine.sidecar, session, wanted, data, recipe)
        given = _shapes_of(feeds, wanted if shapes or batch is not None else {}, fed)
        progress("warming up", None)
        warmup = _warmed(partial(session.run, feeds))
        timed = stack.enter_context(session_of(engine, str(path), profiling=True)) if layers else None
        found = _rounds(session, timed, feeds, duration_s, progress)
        after = conditions(engine.sidecar.backend)
        taken, unknown = memory_of(path, engine.sidecar, session, given, trust) if memory else (UNWEIGHED, "")
        about = {"device": session.device, "shapes": given, "data": fed, "load_ms": load_ms, "memory": taken, **warmup}
        circumstances = {"before": before, "after": after}
        return _report(path, engine.sidecar, found, conditions=circumstances, notes=(unknown,), **about)


def _report(
    path: Path, sidecar: Sidecar, found: _Measured, *, shapes: Mapping[str, Shape], notes: tuple[str, ...], **about: Any
) -> ProfileReport:
    """Add all that follows from the times to what is known already."""
    batch = batch_size(shapes, sidecar.profile)
    known = read(sidecar.provenance, str(path))
    per_sample = any(isinstance(spec.shape[0], str) for spec in sidecar.inputs if spec.shape)
    layers, taken_off_ms = layers_of(found.readings, known.nodes, found.plain_ms, batch, per_sample)
    known_ms = (found.plain_ms, found.instrumented_ms, taken_off_ms)
    low, high = median_interval(found.plain)
    return ProfileReport(
        engine=str(path),
        plan_sha256=sidecar.plan_sha256,
        backend=sidecar.backend,
        precision=sidecar.precision.asked,
        shapes=shapes,
        batch=batch,
        latency=latency_report([spent for own in found.plain for spent in own], batch),
        interval_ms=(low / 1e6, high / 1e6),
        stages=_stages(found.runs, batch),
        layers=layers,
        layer_runs=sum(len(reading.rows) * reading.runs_a_row for reading in found.readings),
        blocks=blocks_of(known, layers, batch),
        energy=found.energy(),
        reconciliation=reconciled(layers, found.readings, *known_ms) if layers else None,
        runs=tuple(found.runs),
        environment=environment(),
        notes=tuple(filter(None, ("" if known.nodes else NO_PROVENANCE, *notes))),
        **about,
    )


def feeds_of(
    sidecar: Sidecar,
    session: Session,
    shapes: Mapping[str, Shape],
    data: str | Path | None,
    recipe: str | Path | None,
) -> tuple[dict[str, Array], str]:
    """What to feed, and in words where it comes from."""
    if data is None:
        if recipe is not None:
            raise UsageError("a recipe is about real samples: give data too, or leave it out")
        return random_feeds(session.inputs, shapes, 0), "seeded random numbers"
    if Path(data).suffix.lower() == ".npz":
        return read_npz(data), str(data)
    own = feeding_recipe(sidecar.graph, load_recipe(recipe) if recipe else None)
    sample = next(iter(open_data(data, session.inputs, own)))
    feeds = {name: np.repeat(array, (shapes[name] or (1,))[0], axis=0) for name, array in sample.feeds.items()}
    return feeds, f"{sample.name} of {data}"


def _shapes(sidecar: Sidecar, asked: Mapping[str, Shape], batch: int | None) -> dict[str, Shape]:
    """The shape of every input: as asked, else what the engine is best at, at the batch that was asked for.

    Raises:
        InputError: a shape that the engine does not take.
        UsageError: a shape of an input that is not there, or a batch beside shapes.
    """
    shapes = {name: tuple(spread.opt) for name, spread in sidecar.profile.items()}
    if asked and batch is not None:
        raise UsageError("a batch says the first size of every input, which the shapes say too: give one of the two")
    for name, shape in asked.items():
        known = next(iter(shapes)) if name == "" and len(shapes) == 1 else name
        if known not in shapes:
            raise UsageError(f"the engine has no input {name!r}; {did_you_mean(name, list(shapes))}")
        shapes[known] = tuple(shape)
    if batch is not None:
        shapes = {name: (batch, *shape[1:]) if shape else shape for name, shape in shapes.items()}
    for name, spread in sidecar.profile.items():
        if not spread.contains(shapes[name]):  # before as many numbers are drawn
            raise InputError(f"input {name!r}: expected shape {spread}, got {format_shape(shapes[name])}")
    return shapes


def _shapes_of(feeds: Mapping[str, Array], asked: Mapping[str, Shape], fed: str) -> dict[str, Shape]:
    """The shapes of what is fed; real samples may be of other sizes than the engine is best at.

    Raises:
        UsageError: they are of other sizes than were asked for.
    """
    shapes = {name: array.shape for name, array in feeds.items()}
    for name, shape in asked.items():
        if shapes.get(name, shape) != shape:
            wanted, found = format_shape(shape), format_shape(shapes[name])
            raise UsageError(
                f"input {name!r} was asked for as {wanted}, and {fed} is {found}: leave one of the two out"
            )
    return shapes


def _warmed(run: Callable[[], object]) -> dict[str, Any]:
    """Run until runs get no faster: the fields of a report that say how long that took."""
    times: list[float] = []
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < MOST_WARMUP_S and (spent < WARMUP_S or not _steady(times)):
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    return {"first_run_ms": times[0], "warmup_ms": 1e3 * spent, "warmup_runs": len(times)}


def _steady(times: Sequence[float]) -> bool:
    if len(times) < 2 * STEADY_RUNS:
        return False
    last, before = times[-STEADY_RUNS:], times[-2 * STEADY_RUNS : -STEADY_RUNS]
    return statistics.median(last) > (1 - STEADY) * statistics.median(before)


def _rounds(
    session: Session,
    timed: Session | None,
    feeds: dict[str, Array],
    duration_s: float,
    progress: Progress,
) -> _Measured:
    """Rounds of a turn without instrumentation and one with it, read after each."""
    power = meter(gpu="timings" in session.details)
    found = _Measured(source=power.source if power else "")
    first = time.perf_counter_ns()
    timings: Callable[[], Mapping[str, float]] = session.details.get("timings", dict)

    def seen(start: int, spent: int) -> None:
        stages = timings()
        found.runs.append(
            Run((start - first) / 1e6, spent / 1e6, *(stages.get(key) for key in ("h2d", "compute", "d2h")))
        )

    began, reading_s = time.perf_counter(), 0.0
    for place in range(ROUNDS):
        if place >= FEWEST_ROUNDS and time.perf_counter() - began - reading_s > PATIENCE * duration_s:
            break  # of an engine that runs for longer than a turn
        progress("measuring", place / ROUNDS)
        rest()  # whose energy is not a run's
        level, start = power.read() if power else 0.0, time.perf_counter()
        found.plain.append(turn(partial(session.run, feeds), duration_s / ROUNDS, seen))
        if power:
            seconds = time.perf_counter() - start
            found.seconds += seconds
            found.joules += power.between(level, power.read(), seconds)
        if timed is not None and timed.layers is not None and (place < FEWEST_ROUNDS or reading_s < duration_s):
            found.instrumented.append(turn(partial(timed.run, feeds), duration_s / ROUNDS))
            start = time.perf_counter()
            found.readings.append(timed.layers())
            reading_s += time.perf_counter() - start
    return found


def _stages(runs: Sequence[Run], batch: int) -> Stages | None:
    """The parts of the runs on a GPU; None where there is none."""
    parts = [(run.host_to_device_ms, run.compute_ms, run.device_to_host_ms) for run in runs]
    known = [tuple(round(1e6 * part) for part in row if part is not None) for row in parts]
    if not known or len(known[0]) < 3:
        return None
    return Stages(*(latency_report([row[place] for row in known], batch) for place in range(3)))
