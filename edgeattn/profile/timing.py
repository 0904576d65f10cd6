"""Measuring time, so that two numbers can be compared: interleaved in one process, in turns."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgeattn.reports.latency import LatencyReport, latency_report

__all__ = ["Turns", "measure", "measure_turns", "median_interval", "rest", "turn"]

TURN_S = 0.05
LONGEST_SPIN_S, LOOK_S = 0.2, 0.001  # how long threads of whoever ran before are waited for
BATCHES = 5
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of batches - 1 degrees of freedom, 95 % between its signs

Turns = list[list[int]]  # nanoseconds of single runs, turn by turn


def measure(
    callables: Mapping[str, Callable[[], object]],
    *,
    batch: int = 1,
    warmup_s: float = 0.2,
    duration_s: float = 1.0,
    min_runs: int = 10,
) -> dict[str, LatencyReport]:
    """Time callables against each other, as `measure_turns` does, and sum up.

    Args:
        callables: what to run, by name; each must have finished its work when it returns.
        batch: samples that one run handles, for the throughput.
        warmup_s: how long each is run before its first measured run, at least once.
        duration_s: how long to measure, times the number of callables.
        min_runs: how often each is measured even if that takes longer.
    """
    found = measure_turns(callables, warmup_s=warmup_s, duration_s=duration_s, min_runs=min_runs)
    return {name: latency_report([spent for turn in turns for spent in turn], batch) for name, turns in found.items()}


def measure_turns(
    callables: Mapping[str, Callable[[], object]],
    *,
    warmup_s: float = 0.2,
    duration_s: float = 1.0,
    min_runs: int = 10,
    min_turns: int = 1,
) -> dict[str, Turns]:
    """Run callables in turns of 50 ms, so that a disturbance hits them all; the n-th turns of all belong together."""
    for run in callables.values():
        end = time.perf_counter() + warmup_s
        run()
        while time.perf_counter() < end:
            run()
    found: dict[str, Turns] = {name: [] for name in callables}
    end = time.perf_counter() + duration_s * len(callables)
    while callables and not (time.perf_counter() >= end and _enough(found, min_runs, min_turns)):
        for name, run in callables.items():
            found[name].append(turn(run, TURN_S))
    return found


def _enough(found: Mapping[str, Turns], min_runs: int, min_turns: int) -> bool:
    return all(len(turns) >= min_turns and sum(map(len, turns)) >= min_runs for turns in found.values())


def turn(
    run: Callable[[], object], seconds: float, seen: Callable[[int, int], object] = lambda start, spent: None
) -> list[int]:
    """Run for some time, at least once, after one run that does not count; `seen` gets each run's start and length."""
    rest()
    run()
    times: list[int] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
        seen(start, times[-1])
    return times


def rest() -> None:
    """Wait until the threads of whoever ran before rest.

    On a few cores, ONNX Runtime's workers take half of the next turn with waiting for more to do, and what runs beside
    them looks several times as slow as it is.
    """
    end = time.perf_counter() + LONGEST_SPIN_S
    while _others_run() and time.perf_counter() < end:
        time.sleep(LOOK_S)


def _others_run() -> bool:
    """Whether another thread of this process runs, or would if it had a core; no, where the system does not tell."""
    own = str(threading.get_native_id())
    for path in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if path.parent.name != own and path.read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def median_interval(turns: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Bounds of the median of all runs with 95 % confidence, by the means of batches of turns.

    median +- t s / sqrt(K), of K = 5 batches of neighbouring turns, s the deviation of their mean medians, t Student's.
    Runs next to each other share what disturbs them, so more batches would pretend to know more than was seen. No bound
    lies beyond what was measured.
    """
    runs = [spent for own in turns for spent in own]
    middle, least, most = statistics.median(runs), min(runs), max(runs)
    batches = min(BATCHES, len(turns))
    if batches < 2:
        return least, most
    medians = [statistics.median(own) for own in turns]
    bounds = [place * len(turns) // batches for place in range(batches + 1)]
    means = [statistics.fmean(medians[start:end]) for start, end in itertools.pairwise(bounds)]
    reach = STUDENT[batches] * statistics.stdev(means) / math.sqrt(batches)
    return max(least, middle - reach), min(most, middle + reach)
