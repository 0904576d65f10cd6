from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.profile.exports import chrome_trace, trtexec_layer_info, trtexec_profile, trtexec_times
from edgeattn.profile.report import Layer, ProfileReport, Run
from tests.profile.samples import sample_report

# What TensorRT 11.0's trtexec writes, by samples/common/sampleReporting.cpp, and what TREx's parser asks of it.
PROFILE_KEYS = ["name", "timeMs", "averageMs", "medianMs", "percentage"]
TIMES_KEYS = [
    "startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs",
    "h2dMs", "computeMs", "d2hMs", "latencyMs",
]  # fmt: skip
LAYER_KEYS = {"Name", "LayerType", "Inputs", "Outputs", "ParameterType", "TacticName", "Metadata"}


def layer(module: str, ms: float = 1.0, attention: str = "") -> Layer:
    return Layer(f"layer of {module}", "Conv", "float32", ms, ms, (ms, ms), 0.1, module=module, attention=attention)


def of(*layers: Layer) -> ProfileReport:
    return replace(sample_report(), layers=layers)


def slices(trace: dict[str, Any], track: str) -> list[tuple[str, float, float]]:
    named = {e["args"]["name"]: e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    events = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["tid"] == named.get(track)]
    return [(event["name"], event["ts"], event["dur"]) for event in events]


def test_a_trace_has_every_layer_after_the_other_in_microseconds() -> None:
    report = sample_report(layers=30)
    found = slices(chrome_trace(report), "layers")
    assert [name for name, _, _ in found] == [layer.name for layer in report.layers]
    start = 0.0
    for (_, ts, dur), own in zip(found, report.layers, strict=True):
        assert ts == pytest.approx(start, abs=1e-3 * len(found))
        assert dur == pytest.approx(1e3 * own.median_ms, abs=1e-3)
        start += 1e3 * own.median_ms


def test_modules_are_slices_in_each_other_and_neighbours_are_one() -> None:
    trace = chrome_trace(of(layer("a.b.c"), layer("a.b"), layer(""), layer("a.d"), layer("e")))
    assert slices(trace, "modules") == [
        ("a", 0, 2000), ("a.b", 0, 2000), ("a.b.c", 0, 1000), ("a", 3000, 1000), ("a.d", 3000, 1000), ("e", 4000, 1000),
    ]  # fmt: skip


def test_layers_of_a_block_next_to_each_other_are_one_slice() -> None:
    trace = chrome_trace(of(*(layer("m", attention=block) for block in ("x", "x", "", "y", "x"))))
    assert slices(trace, "attention blocks") == [("x", 0, 2000), ("y", 3000, 1000), ("x", 4000, 1000)]


def test_a_track_without_slices_is_not_announced() -> None:
    trace = chrome_trace(of(layer("")))
    assert [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"] == ["layers"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "a.b", "a.c", "b.a"]), st.floats(0, 1e3)), max_size=12))
def test_perfetto_can_open_any_trace(items: list[tuple[str, float]]) -> None:
    """Its rules: complete events have times of zero or more, are sorted, and on one track nest or do not touch."""
    trace = json.loads(json.dumps(chrome_trace(of(*(layer(module, ms, module[:1]) for module, ms in items)))))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["ph"] for event in trace["traceEvents"]} <= {"X", "M"}
    assert all(isinstance(event[key], int) for event in trace["traceEvents"] for key in ("pid", "tid"))
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    for track in {event["tid"] for event in events}:
        open_ends: list[int] = []
        for event in (event for event in events if event["tid"] == track):
            start, end = round(1e3 * event["ts"]), round(1e3 * (event["ts"] + event["dur"]))
            assert 0 <= start <= end
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


def test_a_profile_has_trtexecs_keys_and_adds_up() -> None:
    report = sample_report(layers=9)
    report = replace(report, layers=tuple(replace(own, mean_ms=1.1 * own.median_ms) for own in report.layers))
    count, *records = trtexec_profile(report)
    assert count == {"count": report.layer_runs}
    assert [list(record) for record in records] == [PROFILE_KEYS] * 9
    assert sum(record["percentage"] for record in records) == pytest.approx(100)
    for record, own in zip(records, report.layers, strict=True):
        assert record["timeMs"] == pytest.approx(record["averageMs"] * report.layer_runs)
        assert (record["averageMs"], record["medianMs"]) == (own.mean_ms, own.median_ms)


def test_layer_info_is_what_trtexec_tells_of_as_many_layers() -> None:
    report = sample_report(layers=9)
    info = trtexec_layer_info(report)
    assert set(info) == {"Layers", "Bindings"}
    assert all(set(own) == LAYER_KEYS for own in info["Layers"])
    assert [own["Name"] for own in info["Layers"]] == [record["name"] for record in trtexec_profile(report)[1:]]
    tensor = info["Layers"][4]["Inputs"][0]
    assert set(tensor) == {"Name", "Dimensions", "Format/Datatype"}
    assert tensor["Dimensions"] == [1, 256, 14, 14]
    nodes = report.layers[4].nodes
    assert info["Layers"][4]["Metadata"].split("\x1e") == [f"[ONNX Layer: {node}]" for node in nodes]


def test_times_have_trtexecs_keys_and_join_without_gaps() -> None:
    runs = (Run(0.0, 2.0), Run(2.5, 3.0, host_to_device_ms=0.5, compute_ms=2.0, device_to_host_ms=0.25))
    host, device = trtexec_times(replace(sample_report(), runs=runs))
    assert list(host) == list(device) == TIMES_KEYS
    assert (host["computeMs"], host["latencyMs"], host["h2dMs"]) == (2.0, 2.0, 0.0)
    assert device["latencyMs"] == 2.75
    for times in (host, device):
        assert times["startH2dMs"] <= times["endH2dMs"] == times["startComputeMs"]
        assert times["endComputeMs"] == times["startD2hMs"]
        assert times["endD2hMs"] - times["startH2dMs"] == pytest.approx(times["latencyMs"])
