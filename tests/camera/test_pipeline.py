from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import edgeattn.camera
from edgeattn.backends.base import Session
from edgeattn.camera import Frame
from tests.cameras import Ticking, gray, level_of, mean_session

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def slowed(session: Session, seconds: float) -> Session:
    def infer(feeds: dict[str, Any]) -> dict[str, Any]:
        time.sleep(seconds)
        return session.infer(feeds)

    return replace(session, infer=infer)


# Files: every frame


def test_every_frame_of_a_file_becomes_a_result_in_order_however_slow_the_reader(session: Session) -> None:
    heard: list[int] = []
    pipeline = edgeattn.camera.open(map(gray, range(60)), session, sinks=[lambda r: heard.append(r.frame.index)])
    for index, result in enumerate(pipeline):
        time.sleep(0.001)
        assert (result.frame.index, level_of(result.outputs)) == (index, index)
    assert heard == list(range(60))
    stats = pipeline.stats()
    assert (stats.frames, stats.results, stats.dropped, stats.missed) == (60, 60, {}, {})
    assert [source.state for source in stats.sources] == ["ended"]


def test_frames_that_wait_are_few(session: Session) -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()

    def frames() -> Iterator[Frame]:
        for index in range(100):
            now = time.monotonic()
            frame = Frame(gray(index), index, now, now, "custom")
            alive.add(frame)
            yield frame

    most = 0
    for _ in edgeattn.camera.open(frames(), session):
        gc.collect(0)
        most = max(most, len(alive))
    assert most <= 12


def test_size_may_change_from_frame_to_frame(session: Session) -> None:
    sizes = [(5, 7), (1, 1), (30, 2), (8, 8)]
    results = list(edgeattn.camera.open([gray(10 * n, size) for n, size in enumerate(sizes)], session))
    assert [level_of(result.outputs) for result in results] == [0, 10, 20, 30]
    assert [result.frame.image.shape[:2] for result in results] == sizes


def test_stages_add_up_to_the_age_and_reach_the_meter(session: Session) -> None:
    pipeline = edgeattn.camera.open(map(gray, range(5)), slowed(session, 0.01), sinks=[lambda _: None])
    for result in pipeline:
        stages = result.stages
        parts = [stages[name] for name in ("capture", "preprocess", "wait", "inference", "postprocess")]
        assert sum(parts) == pytest.approx(result.age, abs=1e-9)
        assert 0 <= stages["decode"] <= stages["capture"]
        assert stages["inference"] >= 0.01
        assert min(stages.values()) >= 0
    histograms = pipeline.stats().stages
    assert {name: histogram.count for name, histogram in histograms.items()} == dict.fromkeys(histograms, 5)


def test_an_event_is_plain_values_and_its_time_is_the_clocks_on_the_wall(session: Session) -> None:
    [result] = edgeattn.camera.open([gray(3)], session)
    event = result.to_json()
    assert list(event) == ["index", "source", "epoch", "captured_at", "age_ms", "stages", "result"]
    assert time.time() - 10 < event["captured_at"] < time.time()
    assert event["age_ms"] == pytest.approx(1000 * result.age)
    assert event["result"]["task"] == "classification"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2))
def test_every_frame_of_every_file_becomes_one_result_in_any_batch(lengths: list[int], least: int, more: int) -> None:
    with mean_session(least, least + more) as session:
        given = [map(gray, range(50 * source, 50 * source + length)) for source, length in enumerate(lengths)]
        seen: dict[str, list[int]] = {f"custom:{source}": [] for source in range(len(lengths))}
        for result in edgeattn.camera.open(given, session, batch_wait=0.001):
            seen[result.frame.source].append(level_of(result.outputs))
    assert list(seen.values()) == [
        list(range(50 * source, 50 * source + length)) for source, length in enumerate(lengths)
    ]


def test_a_video_is_a_file_of_frames(session: Session, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as video:
        stream = video.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (*range(0, 250, 10), None):
            picture = None if level is None else av.VideoFrame.from_ndarray(gray(level, (48, 64)), format="rgb24")
            video.mux(stream.encode(picture))
    results = list(edgeattn.camera.open(tmp_path / "v.mp4", session))
    assert [result.frame.index for result in results] == list(range(25))
    assert [level_of(result.outputs) for result in results] == pytest.approx(range(0, 250, 10), abs=4)


class Own:
    """The least that is a source."""

    def __init__(self) -> None:
        self.left = [gray(1), None, Image.fromarray(gray(2))]
        self.closed = 0

    def read(self, timeout: float) -> object:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    def close(self) -> None:
        self.closed += 1


def test_what_can_be_read_and_closed_is_a_source(session: Session) -> None:
    class File(Own):
        live = False

    results = list(pipeline := edgeattn.camera.open(own := File(), session))
    assert [level_of(result.outputs) for result in results] == [1, 2]
    assert own.closed == 1
    assert not pipeline.live
    with edgeattn.camera.open(Own(), session) as camera:
        assert camera.live


# Live sources: the newest frame


def test_with_an_engine_three_times_slower_the_newest_frame_wins_and_drops_are_what_they_must_be(
    session: Session,
) -> None:
    period, count = 0.01, 60
    source = Ticking(period, count)
    results = list(pipeline := edgeattn.camera.open(source, slowed(session, 3 * period)))
    stats = pipeline.stats()
    indices = [result.frame.index for result in results]
    assert indices == sorted(set(indices))
    assert indices[-1] == count - 1
    assert stats.frames == count
    assert stats.dropped["newer"] == count - stats.results
    assert 5 <= stats.results <= count / 3 + 3
    assert max(result.age for result in results) < count * period / 2  # a backlog would end at twice that


def test_a_sink_or_reader_that_hangs_cannot_slow_a_camera(session: Session) -> None:
    go = threading.Event()
    pipeline = edgeattn.camera.open(Ticking(0.005, 60), session, sinks=[lambda _: go.wait(10)])
    with pipeline:
        while pipeline.stats().sources[0].state != "ended":
            time.sleep(0.01)
        time.sleep(0.05)
        stats = pipeline.stats()
        go.set()
    assert stats.results + stats.dropped.get("newer", 0) == 60
    assert stats.results > 20
    assert sum(stats.missed.values()) >= stats.results - 9


def test_old_frames_are_dropped(session: Session) -> None:
    stale = itertools.cycle([10.0, 0.0])

    class Late(Ticking):
        def read(self, timeout: float) -> Frame | None:
            frame = super().read(timeout)
            return frame and replace(frame, captured_at=frame.captured_at - next(stale))

    pipeline = edgeattn.camera.open(Late(0.01, 20), session, max_age=5)
    assert all(result.age < 5 for result in pipeline)
    stats = pipeline.stats()
    assert stats.results <= 10
    assert stats.dropped["age"] >= 1
    assert stats.results + stats.dropped["age"] + stats.dropped.get("newer", 0) == 20  # newer ones on a busy machine


def test_files_have_no_age(session: Session) -> None:
    assert len(list(edgeattn.camera.open(map(gray, range(5)), slowed(session, 0.01), max_age=0.001))) == 5


# Several sources


def test_each_source_of_a_batch_gets_its_own_results(session: Session) -> None:
    pictures = [[gray(100 * source + index) for index in range(20)] for source in range(2)]
    seen: dict[str, list[int]] = {}
    sizes: list[int] = []

    def infer(feeds: dict[str, Any]) -> dict[str, Any]:
        sizes.append(len(feeds["x"]))
        return session.infer(feeds)

    pipeline = edgeattn.camera.open([iter(one) for one in pictures], replace(session, infer=infer), batch_wait=1)
    for result in pipeline:
        seen.setdefault(result.frame.source, []).append(level_of(result.outputs))
    assert seen == {"custom:0": list(range(20)), "custom:1": list(range(100, 120))}
    assert sizes[-20:] == [2] * 20


def test_an_engine_of_one_batch_size_is_filled_up() -> None:
    with mean_session(4, 4) as session:
        results = list(edgeattn.camera.open([gray(1), gray(2), gray(3)], session))
    assert [level_of(result.outputs) for result in results] == [1, 2, 3]
    assert all(len(result.outputs["y"]) == 1 for result in results)


def test_more_sources_than_the_batch_holds_take_turns() -> None:
    with mean_session(1, 2) as session:
        results = list(edgeattn.camera.open([map(gray, range(10)) for _ in range(3)], session))
    assert [sum(r.frame.source == f"custom:{n}" for r in results) for n in range(3)] == [10, 10, 10]


def test_two_sources_of_one_name_are_told_apart(session: Session) -> None:
    pipeline = edgeattn.camera.open(["test:?frames=3&live=0", "test:?frames=3&live=0"], session)
    names = Counter(result.frame.source for result in pipeline)
    assert names == {"test:?frames=3&live=0": 3, "test:?frames=3&live=0 (2)": 3}
    assert [source.uri for source in pipeline.stats().sources] == list(names)
