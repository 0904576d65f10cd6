from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import edgeattn.camera
from edgeattn.backends.base import Session
from edgeattn.camera import Frame, Result
from edgeattn.camera.outlets import Sink
from edgeattn.errors import EdgeAttnError, InferenceError, InputError, UsageError
from tests.cameras import Ticking, gray, level_of

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_it_ends_after_so_many_results_or_seconds(session: Session) -> None:
    heard: list[Result] = []
    pipeline = edgeattn.camera.open(map(gray, itertools.cycle(range(9))), session, frames=7, sinks=[heard.append])
    assert len(list(pipeline)) == len(heard) == pipeline.stats().results == 7
    began = time.monotonic()
    edgeattn.camera.open(Ticking(0.01), session, duration=0.2).run()
    assert 0.2 <= time.monotonic() - began < 1


def test_a_second_loop_is_refused_rather_than_empty(session: Session) -> None:
    pipeline = edgeattn.camera.open(map(gray, range(3)), session)
    assert len(list(pipeline)) == 3
    closed = edgeattn.camera.open(map(gray, range(3)), session)
    closed.close()
    for ended in (pipeline, closed):
        with pytest.raises(UsageError, match="has run or was closed; open another"):
            list(ended)


class Blocked(Ticking):
    """A camera that never gives a frame, and wakes only when it is closed."""

    def read(self, timeout: float) -> Frame | None:
        self.closed.wait()
        raise OSError("read from a closed device")


def test_leaving_the_loop_closes_everything_at_once(session: Session) -> None:
    class Closing:
        closed = 0

        def __call__(self, result: Result) -> None: ...

        def close(self) -> None:
            self.closed += 1

    blocked, ticking, sink = Blocked(1), Ticking(0.01), Closing()
    began = time.monotonic()
    for _ in edgeattn.camera.open([blocked, ticking], session, sinks=[sink]):
        break
    assert time.monotonic() - began < 1
    assert blocked.closed.is_set()
    assert ticking.closed.is_set()
    assert sink.closed == 1


def test_closing_before_the_first_frame_closes_sources_and_sinks(session: Session) -> None:
    source, closed = Ticking(1), threading.Event()

    class Closing:
        def __call__(self, result: Result) -> None: ...

        def close(self) -> None:
            closed.set()

    assert edgeattn.camera.open(source, session, sinks=[Closing()]).close() == ()
    assert source.closed.is_set()
    assert closed.is_set()


def test_a_sink_that_hangs_is_named_and_left_behind(session: Session) -> None:
    go = threading.Event()

    def stuck(result: Result) -> None:
        go.wait()

    pipeline = edgeattn.camera.open(Ticking(0.01), session, sinks=[stuck])
    with pipeline:
        while not pipeline.stats().results:
            time.sleep(0.01)
        began = time.monotonic()
        assert pipeline.close() == ("sink stuck",)
        assert time.monotonic() - began < 3
        go.set()


def test_sinks_of_files_get_every_result_however_long_they_take(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeattn.camera.pipeline._GRACE", 0.05)
    heard: list[int] = []

    def slow(result: Result) -> None:
        time.sleep(0.05)
        heard.append(result.frame.index)

    edgeattn.camera.open(map(gray, range(9)), session, sinks=[slow]).run()
    assert heard == list(range(9))


def test_a_sink_may_close_the_pipeline(session: Session) -> None:
    pipelines: list[edgeattn.camera.Pipeline] = []
    late: list[tuple[str, ...]] = []
    pipelines.append(
        edgeattn.camera.open(Ticking(0.01), session, sinks=[lambda result: late.append(pipelines[0].close())])
    )
    pipelines[0].run()
    assert late == [()]


def test_a_generator_is_closed_with_the_pipeline(session: Session) -> None:
    closed = []

    def pictures() -> Iterator[np.ndarray]:
        try:
            yield from map(gray, itertools.cycle(range(9)))
        finally:
            closed.append(True)

    pipeline = edgeattn.camera.open(pictures(), session)
    for _ in pipeline:
        break
    assert closed == [True]


# Errors


def test_a_source_that_cannot_be_closed_is_an_error_and_ends_it(session: Session) -> None:
    class Broken(Ticking):
        def close(self) -> None:
            super().close()
            raise OSError("bus error")

    with pytest.raises(EdgeAttnError, match="closing tick: failed: OSError: bus error"):
        edgeattn.camera.open(Broken(0.01), session, frames=3).run()


def failing_pictures() -> Iterator[np.ndarray]:
    yield gray(0)
    raise RuntimeError("the lens fell off")


def failing_infer(feeds: dict[str, Any]) -> dict[str, Any]:
    raise InferenceError("out of memory")


def failing_sink(result: Result) -> None:
    raise ValueError("no space left\non device")


FAILURES: dict[str, tuple[Callable[[], Any], list[Sink], str, type[Exception]]] = {
    "source": (failing_pictures, [], "^capture of custom:0 failed: RuntimeError: the lens fell off$", EdgeAttnError),
    "picture": (lambda: [gray(0), gray(0)[..., 0]], [], r"^capture of custom:0: .* gave uint8 \(7, 5\);", InputError),
    "engine": (lambda: map(gray, range(99)), [], "^inference: out of memory$", InferenceError),
    "sink": (lambda: map(gray, range(99)), [failing_sink], "failing_sink failed: ValueError: no space", EdgeAttnError),
}


@pytest.mark.parametrize("stage", FAILURES)
@pytest.mark.parametrize("iterated", [True, False])
def test_the_first_error_ends_it_and_says_where_it_was(stage: str, iterated: bool, session: Session) -> None:
    pictures, sinks, said, kind = FAILURES[stage]
    calls = itertools.count()

    def infer(feeds: dict[str, Any]) -> dict[str, Any]:
        return (failing_infer if stage == "engine" and next(calls) else session.infer)(feeds)

    pipeline = edgeattn.camera.open(pictures(), replace(session, infer=infer), sinks=sinks)
    began = time.monotonic()

    def use() -> None:
        with pipeline:
            if iterated:
                pipeline.run()
            else:
                time.sleep(0.2)

    with pytest.raises(kind, match=said) as caught:
        use()
    assert time.monotonic() - began < 2
    assert type(caught.value) is kind


def test_what_was_before_the_error_comes_before_it(session: Session) -> None:
    def pictures() -> Iterator[np.ndarray]:
        yield from map(gray, range(20))
        raise RuntimeError("the lens fell off")

    seen: list[int] = []
    heard: list[int] = []
    pipeline = edgeattn.camera.open(pictures(), session, sinks=[lambda result: heard.append(result.frame.index)])
    with pytest.raises(EdgeAttnError, match="lens"):
        seen.extend(result.frame.index for result in pipeline)
    assert seen == heard == list(range(20))


def test_an_error_ends_cameras_that_wait_for_frames(session: Session) -> None:
    blocked = Blocked(1)
    with pytest.raises(EdgeAttnError, match="lens"):
        edgeattn.camera.open([failing_pictures(), blocked], session).run()
    assert blocked.closed.is_set()


@pytest.mark.parametrize("source", [[], 3, gray(0)], ids=["none", "number", "one picture"])
def test_what_is_no_source_is_refused(source: Any, session: Session) -> None:
    with pytest.raises(UsageError, match="source"):
        edgeattn.camera.open(source, session)


def test_sinks_are_added_before_it_runs(session: Session) -> None:
    heard: list[Result] = []
    pipeline = edgeattn.camera.open([gray(0)], session)
    pipeline.attach(heard.append)
    pipeline.run()
    assert len(heard) == 1
    with pytest.raises(UsageError, match="before the first"):
        pipeline.attach(heard.append)


def test_an_error_of_another_library_keeps_its_cause(session: Session) -> None:
    with pytest.raises(EdgeAttnError) as caught:
        edgeattn.camera.open(failing_pictures(), session).run()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_the_session_is_left_open(session: Session) -> None:
    list(edgeattn.camera.open([gray(0)], session))
    assert level_of(session.run({"x": np.full((1, 3, 8, 8), 5 / 255, np.float32)})) == 5
