"""Threads that stand or fall together: the first error of any of them is the error of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edgeattn.errors import EdgeAttnError, one_line


class Crew:
    """Runs work in threads of its own; when one fails, `stop` is called, from that thread, to end the others."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._failure: tuple[str, BaseException] | None = None

    @property
    def failed(self) -> bool:
        """Whether there is an error to raise."""
        return self._failure is not None

    def start(self, stage: str, work: Callable[[], None]) -> None:
        """Start a thread that is called after its stage."""
        # Daemons, so that one that hangs in foreign code does not keep the process.
        thread = threading.Thread(target=self._run, args=(stage, work), name=stage, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, timeout: float) -> tuple[str, ...]:
        """Wait for all others of them, `timeout` seconds at most; the stages of those that still work."""
        deadline = time.monotonic() + timeout
        others = [thread for thread in self._threads if thread is not threading.current_thread()]
        for thread in others:
            thread.join(max(0.0, deadline - time.monotonic()))
        return tuple(thread.name for thread in others if thread.is_alive())

    def attempt(self, stage: str, work: Callable[[], None]) -> bool:
        """Do some work here and now, and keep its error if it is the first; whether there was none."""
        try:
            work()
        except BaseException as err:
            with self._lock:
                self._failure = self._failure or (stage, err)
            return False
        return True

    def raise_failure(self) -> None:
        """Raise the first error, once; it says in which stage it was.

        Raises:
            EdgeAttnError: as it was raised, or from another library's error.
            BrokenPipeError: whoever read what a stage writes has left.
        """
        failure, self._failure = self._failure, None
        if failure is None:
            return
        stage, err = failure
        if isinstance(err, EdgeAttnError):
            err.args = (f"{stage}: {err}",)
            raise err
        if isinstance(err, BrokenPipeError):
            raise err
        raise EdgeAttnError(f"{stage} failed: {type(err).__name__}: {one_line(err)}") from err

    def _run(self, stage: str, work: Callable[[], None]) -> None:
        if not self.attempt(stage, work):
            self._stop()
