"""What goes away and comes back, with sources of a few lines and faults made to order."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.camera.frame import EndOfStream, Frame, Source
from edgeattn.camera.reconnect import FIRST_DELAY_S, LAST_DELAY_S, Reconnecting, next_delay
from edgeattn.errors import InputError, SourceError, UsageError

Step = Frame | BaseException | threading.Event


def frame(index: int = 0) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), index, 0.0, 0.0, "inner")


class Scripted:
    """A source that gives frames and raises errors one after the other; an Event hangs until it is set."""

    uri, live, fps = "inner", True, None
    corrupt = 2

    def __init__(self, *steps: Step) -> None:
        self._steps = iter(steps)
        self.closed, self.used_up = threading.Event(), threading.Event()

    def read(self, timeout: float) -> Frame | None:
        step = next(self._steps, None)
        if step is None:
            self.used_up.set()
            self.closed.wait(timeout)
            return None
        if isinstance(step, threading.Event):
            step.wait(30)
            return None
        if isinstance(step, BaseException):
            raise step
        time.sleep(0.002)  # a reader that waits gets each of them
        return step

    def close(self) -> None:
        self.closed.set()


def opener(*attempts: Source | BaseException) -> Callable[[], Source]:
    """Opens one after the other, and hangs when they are used up."""
    left = iter(attempts)

    def open_next() -> Source:
        attempt = next(left, None) or Scripted()
        if isinstance(attempt, BaseException):
            raise attempt
        return attempt

    return open_next


@pytest.fixture
def reconnecting() -> Iterator[Callable[..., Reconnecting]]:
    made = []

    def make(*attempts: Source | BaseException, **options: object) -> Reconnecting:
        made.append(Reconnecting("outer", opener(*attempts), **({"jitter": lambda: 0.01} | options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for source in made:
        source.close()


Make = Callable[..., Reconnecting]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_delays_double_up_to_a_limit_and_begin_again_after_a_good_while(lives: list[float]) -> None:
    delay = 0.0
    for lived in lives:
        last, delay = delay, next_delay(delay, lived)
        assert FIRST_DELAY_S <= delay <= LAST_DELAY_S
        assert (
            delay == FIRST_DELAY_S if lived > last else delay == LAST_DELAY_S or delay == max(2 * last, FIRST_DELAY_S)
        )


def test_delays_without_a_connection() -> None:
    delays = [0.0]
    while len(delays) < 9:
        delays.append(next_delay(delays[-1], 0.0))
    assert delays[1:] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_lost_connections_are_opened_anew_and_each_change_is_said(reconnecting: Make) -> None:
    said: list[tuple[str, str]] = []
    attempts = [
        SourceError("outer: not there"),
        Scripted(frame(0), EndOfStream()),
        SourceError("still away"),
        Scripted(frame(0), frame(1), SourceError("broken")),
        Scripted(frame(0)),
    ]
    source = reconnecting(*attempts, on_state=lambda *words: said.append(words))
    frames = [source.read(5) for _ in range(4)]
    assert [(one.index, one.epoch, one.source) for one in frames if one] == [
        (0, 0, "outer"), (1, 1, "outer"), (2, 1, "outer"), (3, 2, "outer"),
    ]  # fmt: skip
    source.close()
    assert said == [
        ("connecting", ""), ("backoff", "not there"), ("connecting", ""), ("live", ""), ("backoff", "the stream ended"),
        ("connecting", ""), ("backoff", "still away"), ("connecting", ""), ("live", ""), ("backoff", "broken"),
        ("connecting", ""), ("live", ""), ("closed", ""),
    ]  # fmt: skip
    assert all(one.closed.is_set() for one in attempts if isinstance(one, Scripted))


def test_only_the_newest_frame_waits_and_gaps_show_the_rest(reconnecting: Make) -> None:
    script = Scripted(*map(frame, range(200)))
    source = reconnecting(script)
    first = source.read(5)
    assert script.used_up.wait(30)
    second = source.read(0)
    assert first is not None
    assert second is not None
    assert first.index < second.index == 199
    assert source.read(0) is None


def test_a_stalled_source_is_stale_then_given_up_and_replaced(reconnecting: Make) -> None:
    hung = threading.Event()
    said: list[str] = []
    source = reconnecting(
        Scripted(frame(0), hung), Scripted(frame(0)), stall=0.3, on_state=lambda state, _: said.append(state)
    )
    began = time.monotonic()
    frames = [source.read(5), source.read(5)]
    assert [one.epoch for one in frames if one] == [0, 1]
    assert time.monotonic() - began >= 0.3
    assert said == ["connecting", "live", "stale", "backoff", "connecting", "live"]
    assert source.corrupt == 4
    hung.set()


def test_a_source_that_hangs_while_it_opens_is_given_up(reconnecting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.camera.reconnect.CONNECT_S", 0.2)
    hung = threading.Event()
    source = reconnecting(Scripted(hung), Scripted(frame(0)))
    assert source.read(5) is not None
    assert source.epoch == 0
    hung.set()


def test_the_limit_follows_the_announced_rate(reconnecting: Make) -> None:
    slow = Scripted(frame(0))
    slow.fps = 0.5  # type: ignore[assignment]
    now = [0.0]
    source = reconnecting(slow, clock=lambda: now[0])
    deadline = time.monotonic() + 5
    while source.read(0) is None:
        assert time.monotonic() < deadline
    for now[0], state in [(6.6, "live"), (6.7, "stale"), (19.9, "stale"), (20.0, "backoff")]:
        source.read(0)
        assert source.state == state


def test_a_jump_of_the_wall_clock_changes_nothing(reconnecting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter([0.0, 1e10, 5.0] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    source = reconnecting(Scripted(*map(frame, range(20))))
    found = source.read(5)
    while found and found.index < 19:
        found = source.read(5)
    assert found
    assert (found.epoch, source.state) == (0, "live")


@pytest.mark.parametrize("where", ["connecting", "backoff", "live"])
def test_close_wakes_a_reader_at_once_wherever_it_waits(reconnecting: Make, where: str) -> None:
    hung = threading.Event()
    attempts = {"connecting": Scripted(hung), "backoff": SourceError("away"), "live": Scripted(frame(0), hung)}
    source = reconnecting(attempts[where], jitter=lambda: 60.0)
    if where == "live":
        source.read(5)
    threading.Timer(0.1, source.close).start()
    began = time.monotonic()
    with pytest.raises(EndOfStream):
        source.read(60)
    assert time.monotonic() - began < 5
    assert source.state == "closed"
    hung.set()


def test_what_no_repetition_cures_is_raised_before_the_first_frame_and_tried_again_after(reconnecting: Make) -> None:
    refused = UsageError("the camera refuses the password")
    with pytest.raises(UsageError, match="refuses"):
        reconnecting(SourceError("booting"), refused, Scripted(frame(0))).read(5)
    source = reconnecting(Scripted(frame(0), SourceError("rebooted")), refused, Scripted(frame(0)))
    frames = [source.read(5), source.read(5)]
    assert [one.epoch for one in frames if one] == [0, 1]


def test_a_defect_is_raised_and_never_tried_again(reconnecting: Make) -> None:
    source = reconnecting(Scripted(frame(0), ZeroDivisionError("a defect")), Scripted(frame(0)))
    source.read(5)
    with pytest.raises(ZeroDivisionError):
        source.read(5)
    with pytest.raises(EndOfStream):
        source.read(5)


def test_a_lost_connection_is_freed_without_the_garbage_collector() -> None:
    class Breaking(Scripted):
        def read(self, timeout: float) -> Frame | None:
            if found := super().read(0):
                return found
            raise SourceError("lost")

    attempts = [Scripted(frame(0)), Breaking(frame(0))]
    lost = weakref.ref(attempts[1])
    gc.disable()
    source = Reconnecting("outer", attempts.pop, jitter=lambda: 0.01)
    try:
        while source.epoch == 0:
            source.read(5)
        deadline = time.monotonic() + 5
        while lost() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        gc.enable()
        source.close()


def test_threads_end_with_their_connections(reconnecting: Make) -> None:
    before = set(threading.enumerate())
    source = reconnecting(Scripted(frame(0), InputError("x")), Scripted(frame(0), EndOfStream()), Scripted(frame(0)))
    for _ in range(3):
        source.read(5)
    source.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
