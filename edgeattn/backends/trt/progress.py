"""The builder's phases as one fraction, and the way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Phase:
    parent: _Phase | None
    steps: int
    done: int = 0


class Progress:
    """What TensorRT reports of a build, from any of its threads, told to one callback at a time.

    `failure` is what the callback raised; the build stops at the next step after that, or after `cancel`.
    """

    def __init__(self, report: Callable[[str, float | None], None]) -> None:
        self.failure: BaseException | None = None
        self._report = report
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._furthest = 0.0

    def cancel(self) -> None:
        """Stop the build at its next step."""
        self._cancelled.set()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(self._phases.get(parent or ""), max(steps, 1))
            self._tell(name)

    def step(self, name: str, step: int) -> bool:
        """Note a finished step; False asks TensorRT to stop."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._tell(name)
        return not self._cancelled.is_set()

    def finish(self, name: str) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name].done = self._phases[name].steps
                self._tell(name)
                del self._phases[name]

    def monitor(self, trt: Any) -> Any:
        """This progress as a `trt.IProgressMonitor`."""
        progress = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                progress.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return progress.step(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                progress.finish(phase_name)

        return Monitor()

    def _tell(self, name: str) -> None:
        phase: _Phase | None = self._phases[name]
        fraction = 0.0
        while phase is not None:
            fraction = min((phase.done + fraction) / phase.steps, 1.0)
            phase = phase.parent
        self._furthest = max(self._furthest, fraction)
        if self._cancelled.is_set():
            return
        try:
            self._report(name, self._furthest)
        except BaseException as err:  # an exception must not travel through TensorRT: it comes out after the build
            self.failure = err
            self.cancel()
