"""Contenders that take turns, each in a process of its own: what the benches share.

Where its memory lies makes one process faster than the next by a tenth and more, as long as it lives; so each
contender lives several times, and its figure is the median over its lives.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

TURN_S = 0.1
CLOSE = 1.15
PAUSE_S = 0.3  # until the threads of whoever ran before have stopped spinning
Result = TypeVar("Result")


@dataclass(frozen=True)
class Time:
    """Milliseconds of one run, and the most megabytes that running added to the process."""

    ms: float
    mb: float


def serve(make: Callable[[], Callable[[], object]]) -> None:
    """The child: for each line on stdin one turn; on stdout its median milliseconds and the megabytes added so far."""
    call = make()
    before = peak_mb()
    call()
    print(flush=True)  # ready
    for _ in sys.stdin:
        call()
        times = []
        end = time.perf_counter() + TURN_S
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        print(json.dumps({"ms": median(times), "mb": peak_mb() - before}), flush=True)


def peak_mb() -> float:
    """The most memory this process has held, in MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def compete(commands: Mapping[str, Sequence[str]], lives: int, rounds: int) -> tuple[dict[str, Time], dict[str, str]]:
    """Let commands that `serve` take turns; returns the times of those that ran, and why the others did not."""
    turns: dict[str, list[list[Time]]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    for _ in range(lives):
        with contextlib.ExitStack() as stack:
            children = {}
            for name, command in commands.items():
                if name not in failed:
                    children[name] = _attempt(name, partial(stack.enter_context, _child(command)), failed)
                    turns[name].append([])
            order = list(children)
            for _ in range(rounds):
                for name in order:
                    if name not in failed:
                        time.sleep(PAUSE_S)
                        turns[name][-1] += filter(None, [_attempt(name, children[name], failed)])
                order.append(order.pop(0))  # nobody always runs after the same one
    return {name: _summary(found) for name, found in turns.items() if name not in failed}, failed


def beside(one: Callable[[], object], other: Callable[[], object]) -> float:
    """The time of one call over the other's, in turns in this process: the median of nine rounds."""
    from edgeattn.profile import measure

    rounds = [measure({"one": one, "other": other}, warmup_s=0.1, duration_s=0.3, min_runs=3) for _ in range(9)]
    return median(times["one"].p50_ms / times["other"].p50_ms for times in rounds)


def besides(command: Callable[[str, str], Sequence[str]], one: str, rivals: Mapping[str, float], lives: int) -> float:
    """The time of one contender over that of the fastest rival, where the two take turns in one process.

    `rivals` are milliseconds by name; as two processes of one engine differ by a tenth, all within 15 % of the fastest
    may be it, and the largest ratio counts. `command` makes processes that print what `beside` gives for two names; a
    ratio is the median of so many. Who comes first takes the better memory, so they change places. What a process that
    dies has to say goes to stderr; where all do, NaN.
    """
    least = min(rivals.values())
    ratios = [_beside(command, one, name, lives) for name, ms in rivals.items() if ms <= CLOSE * least]
    return max((ratio for ratio in ratios if not math.isnan(ratio)), default=math.nan)


def _beside(command: Callable[[str, str], Sequence[str]], one: str, other: str, lives: int) -> float:
    found = []
    for life in range(lives):
        pair = (one, other) if life % 2 == 0 else (other, one)
        child = subprocess.run(command(*pair), stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode == 0:
            found.append(float(child.stdout.splitlines()[-1]) ** (1 if life % 2 == 0 else -1))
    return median(found) if found else math.nan


def _summary(lives: Sequence[Sequence[Time]]) -> Time:
    most = max(turn.mb for life in lives for turn in life)
    return Time(median(median(turn.ms for turn in life) for life in lives), most)


def _attempt(name: str, act: Callable[[], Result], failed: dict[str, str]) -> Result | None:
    """What it returns; None where the child dies, and its last words noted."""
    try:
        return act()
    except RuntimeError as err:
        failed[name] = str(err)
        return None


@contextlib.contextmanager
def _child(command: Sequence[str]) -> Iterator[Callable[[], Time]]:
    """A contender in its process, ready: what is yielded lets it run and returns what it measured."""
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as words,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=words, text=True) as process,
    ):

        def line() -> str:
            if text := process.stdout.readline():
                return text
            code = process.wait()
            words.seek(0)
            raise RuntimeError((words.read().splitlines() or [f"died with exit code {code}"])[-1])

        def turn() -> Time:
            with contextlib.suppress(BrokenPipeError):  # then there is no line either
                process.stdin.write("\n")
                process.stdin.flush()
            return Time(**json.loads(line()))

        try:
            line()
            yield turn
        finally:
            process.kill()
