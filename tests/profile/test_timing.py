from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.profile import measure, measure_turns, median_interval, timing
from edgeattn.reports.latency import latency_report


def test_measured_times_are_what_the_callables_take() -> None:
    def sleeper(seconds: float) -> Callable[[], None]:
        return lambda: time.sleep(seconds)

    found = measure({"a": sleeper(0.002), "b": sleeper(0.006)}, batch=4, warmup_s=0.0, duration_s=0.1)
    assert 2.0 <= found["a"].p50_ms < 6.0 <= found["b"].p50_ms
    assert found["a"].throughput == pytest.approx(4000 / found["a"].mean_ms)


def test_runs_are_interleaved_and_each_turn_begins_uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TURN_S", 0.0)
    calls: list[str] = []
    found = measure(
        {name: lambda name=name: calls.append(name) for name in "ab"},  # type: ignore[misc]
        warmup_s=0.0,
        duration_s=0.0,
        min_runs=3,
    )
    assert "".join(calls) == "ab" + "aabb" * 3
    assert found["a"].runs == found["b"].runs == 3


def test_a_turn_begins_when_the_threads_of_others_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([True, True, False])
    monkeypatch.setattr(timing, "_others_run", lambda: next(busy))
    left: list[int] = []
    timing.turn(lambda: left.append(len(list(busy))), 0.0)
    assert left == [0, 0]
    monkeypatch.setattr(timing, "_others_run", lambda: True)
    monkeypatch.setattr(timing, "LONGEST_SPIN_S", 0.01)
    assert timing.turn(lambda: None, 0.0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_a_thread_that_runs_is_seen() -> None:
    data = b"0" * 2**22
    thread = threading.Thread(target=lambda: [hashlib.sha256(data) for _ in range(10)])  # without Python's lock
    thread.start()
    seen = False
    while thread.is_alive():
        seen = seen or timing._others_run()
        time.sleep(0.001)
    assert seen


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=200))
def test_statistics_agree_with_numpy(times_ns: list[int]) -> None:
    report = latency_report(times_ns)
    times = np.array(times_ns) / 1e6
    assert report.mean_ms == pytest.approx(times.mean())
    assert report.coefficient_of_variation == pytest.approx(times.std() / times.mean(), abs=1e-9)
    for share, value in ((50, report.p50_ms), (90, report.p90_ms), (95, report.p95_ms), (99, report.p99_ms)):
        assert value == np.percentile(times, share, method="inverted_cdf")
    assert (report.min_ms, report.max_ms, report.runs) == (times.min(), times.max(), len(times))


def test_unstable_latency_is_said() -> None:
    assert latency_report([10**6] * 20).warning == ""
    unstable = latency_report([10**6] * 19 + [10**7])
    assert "coefficient of variation 135 %" in unstable.warning
    assert unstable.to_json()["warning"] == unstable.warning


def test_turns_of_all_belong_together() -> None:
    found = measure_turns({"a": lambda: None, "b": lambda: time.sleep(0.002)}, warmup_s=0.0, duration_s=0.1)
    assert len(found["a"]) == len(found["b"]) > 0
    assert measure_turns({}, duration_s=0.0) == {}


def test_there_are_as_many_turns_as_asked_for_however_long_they_take() -> None:
    found = measure_turns({"a": lambda: time.sleep(0.001)}, warmup_s=0.0, duration_s=0.0, min_runs=1, min_turns=4)
    assert len(found["a"]) == 4


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), min_size=1, max_size=12))
def test_the_interval_holds_the_median_and_nothing_beyond_what_was_measured(turns: list[list[float]]) -> None:
    low, high = median_interval(turns)
    assert low <= np.median([spent for own in turns for spent in own]) <= high
    assert min(map(min, turns)) <= low
    assert high <= max(map(max, turns))


def test_two_measurements_of_a_drifting_machine_agree_within_their_intervals() -> None:
    """Runs of a turn share its speed, and neighbouring turns nearly share theirs, as where clocks change."""
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(100):
        drift = np.zeros(60)
        for turn in range(1, 60):
            drift[turn] = 0.5 * drift[turn - 1] + rng.normal(0, 0.02)
        runs = np.exp(drift[:, None] + rng.normal(0, 0.01, (60, 15)))
        first, second = median_interval(runs[:20].tolist()), median_interval(runs[40:].tolist())
        agreed += first[0] <= second[1] and second[0] <= first[1]
    assert agreed >= 95
