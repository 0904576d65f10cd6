"""What an engine was built from, found again: the same bytes go to its backend."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine, plan_build
from edgeattn.calibrate import calibrate
from edgeattn.data import Dataset, open_data
from edgeattn.engine import read_sidecar
from edgeattn.errors import InputError
from edgeattn.graph import load_graph, save_graph
from edgeattn.lowering import FLASH
from edgeattn.maps import map_parity
from edgeattn.maps.rebuilt import rebuilt
from edgeattn.precision.ranges import save_ranges
from tests.graphs import self_attention


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    (tmp_path / "data").mkdir()
    for index in range(8):
        x = np.random.default_rng(index).standard_normal((1, 7, 8)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{index}.npz", x=x)
    save_graph(self_attention().graph, tmp_path / "m.onnx")
    return open_data(tmp_path / "data", load_graph(tmp_path / "m.onnx").inputs)


@pytest.mark.parametrize("known", ["table", "samples"])
def test_ranges_are_read_or_observed_again(known: str, tmp_path: Path, data: Dataset) -> None:
    graph, path = load_graph(tmp_path / "m.onnx"), tmp_path / "m.engine"
    ranges = calibrate(graph, data)
    save_ranges(ranges, tmp_path / "ranges.json")
    config = BuildConfig("int8")
    build_engine(graph, path, config, "openvino", check=False, ranges=ranges, samples=data)
    table = tmp_path / "ranges.json" if known == "table" else None
    found = rebuilt(path, read_sidecar(path), ranges=table, data=data)
    assert found.ranges == ranges
    wanted = plan_build(graph, config, "openvino", ranges=ranges, samples=data).typed
    assert found.typed.serialized == wanted.serialized
    with pytest.raises(InputError, match="give them with --ranges"):
        rebuilt(path, read_sidecar(path))


def test_steps_that_were_asked_for_are_taken_again_where_the_samples_are_there(tmp_path: Path, data: Dataset) -> None:
    graph, path, table = load_graph(tmp_path / "m.onnx"), tmp_path / "m.engine", tmp_path / "ranges.json"
    ranges = calibrate(graph, data)
    save_ranges(ranges, table)
    config = BuildConfig("int8", improve=("corrected biases", "rounded queries and keys"))
    wanted = build_engine(graph, path, config, "openvino", check=False, ranges=ranges, samples=data).plan.typed
    found = rebuilt(path, read_sidecar(path), ranges=table, data=data)
    assert found.config.improve == config.improve
    assert found.typed.serialized == wanted.serialized
    assert found.notes == ()
    (note,) = rebuilt(path, read_sidecar(path), ranges=table).notes
    assert note == "built again without what had improved its INT8: give --data"


def test_other_samples_than_it_was_calibrated_on_are_refused(tmp_path: Path, data: Dataset) -> None:
    graph, path = load_graph(tmp_path / "m.onnx"), tmp_path / "m.engine"
    build_engine(graph, path, BuildConfig("int8"), "openvino", check=False, ranges=calibrate(graph, data))
    (tmp_path / "data" / "0.npz").unlink()
    with pytest.raises(InputError, match=r"data is not what .*m\.engine was calibrated on: data_sha256"):
        rebuilt(path, read_sidecar(path), data=open_data(tmp_path / "data", graph.inputs))


def test_a_half_precision_engine_without_its_ranges_says_so(tmp_path: Path, data: Dataset) -> None:
    graph, path = load_graph(tmp_path / "m.onnx"), tmp_path / "m.engine"
    build_engine(graph, path, BuildConfig("float16"), "openvino", check=False, ranges=calibrate(graph, data))
    assert "give --ranges or --data" in rebuilt(path, read_sidecar(path)).notes[0]
    assert rebuilt(path, read_sidecar(path), data=data).notes == ()


def test_the_graph_that_a_search_left_is_taken(tmp_path: Path, data: Dataset) -> None:
    graph, path = load_graph(tmp_path / "m.onnx"), tmp_path / "m.engine"
    report = build_engine(graph, path, BuildConfig("int8"), "openvino", check=False, ranges=calibrate(graph, data))
    save_graph(report.plan.typed, tmp_path / "m.engine.onnx")
    with pytest.raises(InputError, match="in INT8"):  # it may be of any other build
        rebuilt(path, read_sidecar(path))
    record = json.loads((tmp_path / "m.engine.json").read_text())
    record["search"] = [{"candidate": "openvino, int8", "ms": 1.0}]
    (tmp_path / "m.engine.json").write_text(json.dumps(record))
    found = rebuilt(path, read_sidecar(path))
    assert found.typed.op_counts() == report.plan.typed.op_counts()
    assert found.typed.op_counts()["QuantizeLinear"]


def test_an_attention_that_a_kernel_runs_is_looked_into_as_plain_operators(tmp_path: Path, data: Dataset) -> None:
    config = BuildConfig(forms={"SoftmaxAttention": FLASH})
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", config, "onnxruntime")
    assert load_graph(tmp_path / "m.engine").op_counts()[FLASH.replace(".MultiHead", "::MultiHead")] == 1
    (found,) = map_parity(tmp_path / "m.engine", str(tmp_path / "m.onnx"), data=tmp_path / "data")
    assert found.passed
    assert found.distance < 1e-6
