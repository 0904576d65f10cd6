"""A clock for searches: an engine takes there what a test says, on any machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from edgeattn import profile, search
from edgeattn.backends import backend_named
from edgeattn.backends.base import Session
from edgeattn.engine import Engine
from edgeattn.search import timing
from tests.graphs import Array

CPU_BACKENDS = ("openvino", "onnxruntime")
RUN_S = 0.001  # of an engine that nothing slows down


class Clock:
    """What timing reads of the module `time`; nothing but `sleep` moves it."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now / 1e9

    def sleep(self, seconds: float) -> None:
        self.now += round(1e9 * seconds)


def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches time each engine five times, and none in one thread."""
    monkeypatch.setattr(timing, "ROUNDS", (5,))
    monkeypatch.setattr(timing, "ROUND_S", 0.0)
    monkeypatch.setattr(profile.timing, "TURN_S", 0.0)
    monkeypatch.setattr(search, "SHORT_MS", 0.0)


def slowed(monkeypatch: pytest.MonkeyPatch, delay_s: Callable[[Engine], float]) -> None:
    """Let every run of an engine take so much longer than a millisecond, and nothing else any time."""
    clock = Clock()
    for module in (timing, profile.timing):
        monkeypatch.setattr(module, "time", clock)
    for backend in map(backend_named, CPU_BACKENDS):

        def load(engine: Engine, profiling: bool = False, real: Callable[..., Session] = backend.load) -> Session:
            session, taken = real(engine, profiling), RUN_S + delay_s(engine)

            def infer(feeds: dict[str, Array]) -> dict[str, Array]:
                clock.sleep(taken)
                return session.infer(feeds)

            return dataclasses.replace(session, infer=infer)

        monkeypatch.setattr(backend, "load", load)
