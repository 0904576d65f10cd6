from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn import __version__, profile
from edgeattn.reports.latency import latency_report


def test_measured_times_are_what_the_callables_take() -> None:
    def sleeper(seconds: float) -> Callable[[], None]:
        return lambda: time.sleep(seconds)

    found = profile.measure({"a": sleeper(0.002), "b": sleeper(0.006)}, batch=4, warmup_s=0.0, duration_s=0.1)
    assert 2.0 <= found["a"].p50_ms < 6.0 <= found["b"].p50_ms
    assert found["a"].throughput == pytest.approx(4000 / found["a"].mean_ms)


def test_runs_are_interleaved_and_each_turn_begins_uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "TURN_S", 0.0)
    calls: list[str] = []
    found = profile.measure(
        {name: lambda name=name: calls.append(name) for name in "ab"},  # type: ignore[misc]
        warmup_s=0.0,
        duration_s=0.0,
        min_runs=3,
    )
    assert "".join(calls) == "ab" + "aabb" * 3
    assert found["a"].runs == found["b"].runs == 3


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


def test_the_environment_names_versions_and_processor() -> None:
    found = profile.environment()
    assert found["edgeattn"] == __version__
    assert found["numpy"] == np.__version__
    assert int(found["cores"]) >= 1
    assert all(isinstance(value, str) and value for value in found.values())
