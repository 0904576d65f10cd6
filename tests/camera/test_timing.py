from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.camera import timing
from edgeattn.camera.frame import Frame
from edgeattn.camera.timing import STAGES, Histogram, Meter, Stats

TIMES = st.lists(st.floats(1e-5, 150), min_size=1, max_size=200)


def meter(*uris: str) -> Meter:
    return Meter([SimpleNamespace(uri=uri) for uri in uris or ("test:",)])


def histogram_of(times: list[float]) -> Histogram:
    counted = meter()
    for seconds in times:
        counted.delivered(seconds)
    return counted.snapshot().stages["sink"]


@given(TIMES, st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_quantiles_are_within_their_bound(times: list[float], share: float) -> None:
    exact = float(np.quantile(times, share, method="inverted_cdf"))
    assert histogram_of(times).quantile(share) == pytest.approx(exact, rel=0.045)


@given(TIMES)
def test_buckets_count_what_is_at_most_their_bound(times: list[float]) -> None:
    histogram = histogram_of(times)
    for bound, count in histogram.buckets():
        assert count == sum(seconds <= bound for seconds in times)
    assert histogram.buckets()[-1] == (math.inf, len(times))
    assert histogram.sum == pytest.approx(sum(times))
    assert histogram.largest == max(times)


def test_times_beyond_the_buckets_are_counted_at_their_ends() -> None:
    histogram = histogram_of([0.0, 1e-9, 1e4])
    assert histogram.count == 3
    assert histogram.quantile(0.5) <= 1e-5
    assert 150 < histogram.quantile(1.0) <= 1e4


def test_nothing_counted_is_no_number_and_plain_json() -> None:
    stats = meter().snapshot()
    assert math.isnan(stats.stages["age"].quantile(0.5))
    json.dumps(stats.to_json(), allow_nan=False)
    assert "0 results of 0 frames" in str(stats)


def snapshot_at(counted: Meter, now: float, monkeypatch: pytest.MonkeyPatch) -> Stats:
    monkeypatch.setattr(timing.time, "monotonic", lambda: now)
    return counted.snapshot()


def test_thirty_frames_at_thirty_a_second_are_that_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = meter()
    for index in range(30):
        counted.result(0, {"age": 0.01}, 100 + index / 30)
    stats = snapshot_at(counted, 101, monkeypatch)
    assert stats.rate == pytest.approx(30)
    assert stats.mean_rate == pytest.approx(30)


def test_the_rate_falls_to_zero_when_nothing_comes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = meter()
    for index in range(30):
        counted.result(0, {}, 100 + index / 30)
    stats = snapshot_at(counted, 110, monkeypatch)
    assert stats.rate == 0
    assert stats.mean_rate == pytest.approx(30)


def test_what_is_counted_is_counted_by_source_and_reason() -> None:
    counted = meter("a", "b")
    for source, index, epoch in ((0, 0, 0), (1, 0, 0), (1, 1, 2)):
        counted.captured(source, Frame(np.zeros((1, 1, 3), np.uint8), index, 0, 0, "", epoch))
    counted.dropped(1, "newer")
    counted.dropped(0, "age", 0)
    counted.missed("preview", 3)
    counted.result(1, dict.fromkeys(STAGES, 0.001), 1.0)
    counted.ended(0)
    stats = counted.snapshot()
    first, second = stats.sources
    assert (first.state, first.frames, first.results, first.dropped) == ("ended", 1, 0, {})
    assert (second.uri, second.frames, second.results, second.reconnects) == ("b", 2, 1, 2)
    assert (stats.frames, stats.results, stats.dropped, stats.missed) == (3, 1, {"newer": 1}, {"preview": 3})
    assert stats.to_json()["sources"][1]["dropped"] == {"newer": 1}


def test_a_source_that_knows_its_state_and_losses_is_asked() -> None:
    source = SimpleNamespace(uri="rtsp://host", state="BACKOFF", corrupt=4)
    stats = Meter([source]).snapshot()
    assert stats.sources[0].state == "BACKOFF"
    assert stats.dropped == {"corrupt": 4}


def test_gaps_in_the_indices_of_one_connection_are_dropped_frames() -> None:
    counted = meter()
    for index, epoch in ((0, 0), (1, 0), (4, 0), (9, 1), (10, 1)):
        counted.captured(0, Frame(np.zeros((1, 1, 3), np.uint8), index, 0, 0, "", epoch))
    stats = counted.snapshot()
    assert (stats.frames, stats.dropped) == (7, {"newer": 2})


def test_gaps_that_broken_packets_left_are_counted_once() -> None:
    source = SimpleNamespace(uri="rtsp://host", corrupt=0)
    counted = Meter([source])
    for index, corrupt in ((0, 0), (3, 1)):
        source.corrupt = corrupt
        counted.captured(0, Frame(np.zeros((1, 1, 3), np.uint8), index, 0, 0, ""))
    assert counted.snapshot().dropped == {"corrupt": 1, "newer": 1}


def test_the_reason_of_a_state_is_told_until_the_source_ends() -> None:
    lost = Meter([SimpleNamespace(uri="cam:", state="backoff", reason="Connection refused")])
    assert lost.snapshot().to_json()["sources"][0]["reason"] == "Connection refused"
    lost.ended(0)
    assert lost.snapshot().sources[0].reason == ""
