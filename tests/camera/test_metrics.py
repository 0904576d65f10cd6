from __future__ import annotations

import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from edgeattn.camera.frame import Frame
from edgeattn.camera.sinks.metrics import serve_metrics
from edgeattn.camera.timing import STAGES, Meter


class Camera:
    uri, state, corrupt = 'rtsp://cam/"odd\\name"', "stale", 4


@pytest.fixture
def scraped() -> dict[str, Metric]:
    meter = Meter([Camera()])
    for index in range(10):
        meter.captured(0, Frame(np.zeros((1, 1, 3), np.uint8), index, 0.0, 0.0, Camera.uri, epoch=index // 4))
        if index % 3:
            meter.result(0, dict.fromkeys(STAGES, 0.01 * (index + 1)), now=float(index))
    meter.dropped(0, "newer", 3)
    meter.missed("Preview", 5)
    server = serve_metrics(("127.0.0.1", 0), meter.snapshot)
    with urllib.request.urlopen(f"{server.url}metrics", timeout=5) as answer:
        text = answer.read().decode()
    server.close()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(family: Metric, name: str, **labels: str) -> float:
    [found] = [item.value for item in family.samples if item.name == name and labels.items() <= item.labels.items()]
    return float(found)


def test_counters_are_the_meters(scraped: dict[str, Metric]) -> None:
    for name, expected in (("frames", 10), ("results", 6), ("reconnects", 2)):
        family = scraped[f"edgeattn_camera_{name}"]
        assert family.type == "counter"
        assert value(family, f"edgeattn_camera_{name}_total", source=Camera.uri) == expected
    dropped = scraped["edgeattn_camera_dropped"]
    assert value(dropped, "edgeattn_camera_dropped_total", source=Camera.uri, reason="newer") == 3
    assert value(dropped, "edgeattn_camera_dropped_total", reason="corrupt") == 4
    assert value(scraped["edgeattn_camera_missed"], "edgeattn_camera_missed_total", sink="Preview") == 5


def test_a_source_is_in_one_state(scraped: dict[str, Metric]) -> None:
    states = {item.labels["state"]: item.value for item in scraped["edgeattn_camera_source_state"].samples}
    assert states["stale"] == sum(states.values()) == 1


def test_times_are_histograms(scraped: dict[str, Metric]) -> None:
    age = scraped["edgeattn_camera_frame_age_seconds"]
    assert age.type == "histogram"
    assert value(age, "edgeattn_camera_frame_age_seconds_count") == 6
    assert value(age, "edgeattn_camera_frame_age_seconds_sum") == pytest.approx(0.02 + 0.03 + 0.05 + 0.06 + 0.08 + 0.09)
    stages = scraped["edgeattn_camera_stage_seconds"]
    assert {item.labels["stage"] for item in stages.samples} == set(STAGES) - {"age"}
    for family, labels in ((age, {}), (stages, {"stage": "inference"})):
        buckets = [item for item in family.samples if "le" in item.labels and labels.items() <= item.labels.items()]
        bounds = [float(item.labels["le"]) for item in buckets]
        counts = [item.value for item in buckets]
        assert bounds == sorted(bounds)
        assert bounds[-1] == float("inf")
        assert counts == sorted(counts)
        assert counts[-1] == 6
        below = [count for bound, count in zip(bounds, counts, strict=True) if bound < 0.02]
        assert below[-1] == 0


def test_a_token_is_asked_of_prometheus_too() -> None:
    server = serve_metrics(("127.0.0.1", 0), Meter([Camera()]).snapshot, "t0ken")
    try:
        url = server.url_of("/metrics")
        assert "t0ken" not in url
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=5)
        asked = urllib.request.Request(url, headers={"Authorization": "Bearer t0ken"})
        with urllib.request.urlopen(asked, timeout=5) as answer:
            assert b"edgeattn_camera_frames_total" in answer.read()
    finally:
        server.close()


def test_memory_is_said(scraped: dict[str, Metric]) -> None:
    assert value(scraped["process_resident_memory_bytes"], "process_resident_memory_bytes") > 1e6
