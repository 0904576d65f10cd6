"""Cameras and streams that go away and come back.

    connecting --first frame--> live <--frame-- stale <--no frame for a third of the limit-- live
    any of them --an error, the end, no frame within the limit--> backoff --0.5 to 30 s--> connecting

Each connection has a thread of its own that opens the source and holds its newest frame, so that a library which never
comes back keeps nobody waiting: it is given up, and ends by itself whenever it returns. Only monotonic time is used.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Condition, Thread
from typing import Literal, TypeAlias

from edgeattn.camera.frame import EndOfStream, Frame, Source
from edgeattn.errors import EdgeAttnError, SourceError

State: TypeAlias = Literal["connecting", "live", "stale", "backoff", "closed"]
OnState: TypeAlias = Callable[[State, str], None]

CONNECT_S = 15.0  # until the first frame: a stream's next key frame may be seconds away
STALL_S, STALL_FRAMES = 3.0, 10
FIRST_DELAY_S, LAST_DELAY_S = 0.5, 30.0
_POLL_S = 1.0
_JOIN_S = 0.2


def next_delay(last: float, lived: float) -> float:
    """The next back-off in seconds: twice the last, or the first again where the connection lived longer than that."""
    return FIRST_DELAY_S if lived > last else min(LAST_DELAY_S, max(FIRST_DELAY_S, 2 * last))


class Reconnecting:
    """A live source that is opened anew whenever it is lost, and gives the newest frame only.

    `index` goes on from one connection to the next; what was lost in between is not known, so it leaves no gap there.
    `epoch` counts the connections that gave frames, from 0.

    Args:
        uri: its name, without credentials.
        open_source: opens it. A SourceError, or the end of the stream, is a fault that is tried again; another
            EdgeAttnError is raised by `read` if it comes before there was a frame, and anything else always.
        stall: seconds without a frame after which it is lost; max(3, 10 frame times) by default.
        on_state: called at each change with the new state and the reason, by the thread that reads or closes; it must
            not block.
        clock: monotonic seconds.
        jitter: the factor of each back-off, so that many clients of a server do not come back together.
    """

    live = True

    def __init__(
        self,
        uri: str,
        open_source: Callable[[], Source],
        *,
        stall: float | None = None,
        on_state: OnState | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1),
    ) -> None:
        self.uri = uri
        self.state: State = "connecting"
        self.reason = ""
        self.epoch = 0
        self._open, self._stall, self._on_state, self._clock, self._jitter = open_source, stall, on_state, clock, jitter
        self._changed = Condition()
        self._connection: _Connection | None = None
        self._first_index = self._next_index = 0
        self._corrupt = 0
        self._delay = 0.0
        self._since = clock()  # of the last frame or, before it, of the connection
        self._alive_at: float | None = None  # when this connection gave its first frame
        self._retry_at = self._since

    @property
    def fps(self) -> float | None:
        """What the source announces, once it is open."""
        source = self._connection and self._connection.source
        return source.fps if source else None

    @property
    def corrupt(self) -> int:
        """How many packets were skipped."""
        return self._corrupt + (self._connection.corrupt if self._connection else 0)

    def read(self, timeout: float) -> Frame | None:
        """The newest frame that was not read yet, or None where none came within `timeout` seconds.

        Raises:
            EndOfStream: it was closed.
            EdgeAttnError: see `open_source`.
        """
        deadline = self._clock() + timeout
        with self._changed:
            while True:
                frame = self._advance()
                left = deadline - self._clock()
                if frame is not None or left <= 0:
                    return frame
                self._changed.wait(max(0.0, min(left, self._next_event() - self._clock())))

    def close(self) -> None:
        """Give it up. A thread that waits in `read` is woken at once."""
        with self._changed:
            connection, self._connection = self._connection, None
            if self.state != "closed":
                self._set("closed", "")
            self._changed.notify_all()
        if connection:
            connection.give_up()
            connection.thread.join(_JOIN_S)

    def _advance(self) -> Frame | None:
        """Let time pass: one step of the machine, and the frame if there is one."""
        if self.state == "closed":
            raise EndOfStream(self.uri)
        now = self._clock()
        connection = self._connection
        if connection is None:
            if now >= self._retry_at:
                self._connect(now)
        elif connection.frame is not None:
            frame, connection.frame = connection.frame, None
            return self._received(frame, now)
        elif connection.failure is not None:
            self._fault(connection.failure, now)
        elif now - self._since >= self._limit():
            self._fault(SourceError(f"no frame for {now - self._since:.1f} s"), now)
        elif self.state == "live" and now - self._since >= self._limit() / 3:
            self._set("stale", f"no frame for {now - self._since:.1f} s")
        return None

    def _next_event(self) -> float:
        """When `_advance` has something to do by itself."""
        if self._connection is None:
            return self._retry_at
        return self._since + self._limit() / (3 if self.state == "live" else 1)

    def _limit(self) -> float:
        """How long there may be no frame."""
        if self._alive_at is None:
            return max(CONNECT_S, self._stall or 0)
        return self._stall or max(STALL_S, STALL_FRAMES / (self.fps or STALL_FRAMES))

    def _connect(self, now: float) -> None:
        self._since, self._alive_at, self._first_index = now, None, self._next_index
        self._connection = _Connection(self._open, self._changed, self.uri)
        self._set("connecting", "")

    def _received(self, frame: Frame, now: float) -> Frame:
        self._since = now
        if self._alive_at is None:
            self._alive_at = now
            self.epoch += 1 if self._next_index else 0
        if self.state != "live":
            self._set("live", "")
        index = self._first_index + frame.index
        self._next_index = index + 1
        return replace(frame, index=index, source=self.uri, epoch=self.epoch)

    def _fault(self, err: BaseException, now: float) -> None:
        """End the connection, and wait before the next; raise what trying again cannot cure."""
        connection, self._connection = self._connection, None
        if connection:
            connection.give_up()
            self._corrupt += connection.corrupt
        was_there = isinstance(err, EdgeAttnError) and self._next_index > 0
        if not was_there and not isinstance(err, SourceError | EndOfStream):
            self._set("closed", str(err))
            raise err
        self._delay = next_delay(self._delay, 0.0 if self._alive_at is None else now - self._alive_at)
        self._retry_at = now + self._delay * self._jitter()
        self._set("backoff", "the stream ended" if isinstance(err, EndOfStream) else str(err))

    def _set(self, state: State, reason: str) -> None:
        self.state, self.reason = state, reason.removeprefix(f"{self.uri}: ")
        if self._on_state:
            self._on_state(state, self.reason)


class _Connection:
    """One attempt: `frame` is the newest that nobody took, `failure` what ended it; both are set under `changed`."""

    def __init__(self, open_source: Callable[[], Source], changed: Condition, name: str) -> None:
        self.source: Source | None = None
        self.frame: Frame | None = None
        self.failure: BaseException | None = None
        self._open, self._changed = open_source, changed
        self._given_up = False
        self.thread = Thread(target=self._run, name=f"edgeattn {name}", daemon=True)
        self.thread.start()

    @property
    def corrupt(self) -> int:
        return int(getattr(self.source, "corrupt", 0))

    def give_up(self) -> None:
        """End it as soon as the source lets go of its thread."""
        self._given_up = True
        self.failure = self.frame = None  # its traceback leads back here: frames would stay until the next collection
        if self.source:
            self.source.close()

    def _run(self) -> None:
        try:
            self.source = self._open()
            while not self._given_up:
                frame = self.source.read(_POLL_S)
                with self._changed:
                    self.frame = frame or self.frame
                    self._changed.notify_all()
        except BaseException as err:  # whatever it is, the reader must know
            with self._changed:
                self.failure = None if self._given_up else err
                self._changed.notify_all()
        finally:
            if self.source:
                self.source.close()
