"""Sessions that time their layers, and how each backend's own words become layers."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.backends import backend_named, onnxruntime_profile, openvino_profile
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.backends.trt import profile as trt_profile
from edgeattn.fuse import fuse
from edgeattn.lowering import to_backend
from edgeattn.tensors import random_feeds, resolve_profile
from tests.graphs import self_attention

CPU_BACKENDS = ("openvino", "onnxruntime")


@pytest.fixture(params=CPU_BACKENDS)
def sessions(request: pytest.FixtureRequest) -> tuple[Session, Session]:
    """The same engine, opened as usual and to be profiled."""
    backend = backend_named(request.param)
    if backend.missing():
        pytest.skip("; ".join(backend.missing()))
    graph = to_backend(fuse(self_attention(batch=2, tokens=33, dim=16).graph)[0], request.param)
    engine = backend.build(graph, BuildConfig(precision="float32", profile=resolve_profile(graph.inputs)))
    return backend.load(engine), backend.load(engine, profiling=True)


def test_a_profiled_session_computes_the_same_and_times_its_layers(sessions: tuple[Session, Session]) -> None:
    plain, profiled = sessions
    assert plain.layers is None
    assert profiled.layers is not None
    feeds = random_feeds(plain.inputs, {"x": (2, 33, 16)}, 0)
    with plain, profiled:
        for _ in range(6):
            found = profiled.run(feeds)
        np.testing.assert_array_equal(found["y"], plain.run(feeds)["y"])
        times = profiled.layers()
    assert len(times.rows) * times.runs_a_row == 5  # all but the first
    assert len({layer.name for layer in times.layers}) == len(times.layers)
    assert all(len(row) == len(times.layers) and min(row) >= 0 and sum(row) > 0 for row in times.rows)
    assert {"float32"} == {layer.precision for layer in times.layers}
    known = [origin for layer in times.layers for origin in layer.origins]
    assert {"query", "key", "value"} <= set(known)


def test_each_reading_holds_the_runs_since_the_last_one(sessions: tuple[Session, Session]) -> None:
    _, profiled = sessions
    assert profiled.layers is not None
    feeds = random_feeds(profiled.inputs, {"x": (2, 33, 16)}, 0)
    with profiled:
        counts = []
        for runs in (3, 5):
            for _ in range(runs):
                profiled.run(feeds)
            times = profiled.layers()
            counts.append(len(times.rows) * times.runs_a_row)
        assert profiled.layers().rows == ()
    assert counts == [2, 4]


def test_onnx_runtime_leaves_no_profile_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if backend_named("onnxruntime").missing():
        pytest.skip("; ".join(backend_named("onnxruntime").missing()))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    graph = to_backend(fuse(self_attention().graph)[0], "onnxruntime")
    backend = backend_named("onnxruntime")
    engine = backend.build(graph, BuildConfig(precision="float32", profile=resolve_profile(graph.inputs)))
    with backend.load(engine, profiling=True) as session:
        session.run(random_feeds(session.inputs, {"x": (1, 7, 8)}, 0))
        assert session.layers is not None
        session.layers()
    assert list(tmp_path.iterdir()) == []


@given(
    st.lists(st.integers(0, 60_000), min_size=2, max_size=300),
    st.lists(st.integers(500, 90_000), min_size=openvino_profile.COLD_RUNS, max_size=openvino_profile.COLD_RUNS),
)
def test_openvinos_mean_is_found_within_its_step(warm: list[int], cold: list[int]) -> None:
    """OpenVINO cuts every run (here in hundredths of a microsecond) and the mean to whole microseconds."""
    whole = [time // 100 for time in (*cold, *warm)]
    told_cold, told = sum(whole[: len(cold)]) // len(cold), sum(whole) // len(whole)
    found = openvino_profile._mean(told, told_cold, len(warm))
    truth = sum(warm) / len(warm) / 100
    step = 1 + len(cold) / len(warm)  # the two means that were cut, in units of one warm run
    if told:
        assert abs(found - max(truth, 0)) <= step + 1


def kernel(name: str, start: int, length: int, **args: Any) -> dict[str, Any]:
    shapes = {"input_type_shape": [{"float": [2, 3]}], "output_type_shape": [{"float": [2, 5]}]}
    about = {"op_name": "MatMul", "node_index": "0", "provider": "CPUExecutionProvider", **shapes, **args}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length, "args": about}


def test_what_runs_in_a_loop_is_part_of_it() -> None:
    run = [
        kernel("loop", 10, 50, op_name="Loop"),
        kernel("body", 12, 20),
        kernel("body", 35, 20),
        kernel("next", 60, 7),
    ]
    times = onnxruntime_profile.layer_times([[], run], {"next": "next"})
    assert [(layer.name, layer.origins) for layer in times.layers] == [("loop", ()), ("next", ("next",))]
    assert times.rows == ((50_000.0, 7_000.0),)


def test_kernels_of_one_name_are_layers_of_their_own() -> None:
    run = [kernel("same", 10, 5, node_index="3"), kernel("same", 20, 7, node_index="4"), kernel("", 30, 1)]
    times = onnxruntime_profile.layer_times([[], run], {"same": "same"})
    assert [(layer.name, layer.origins) for layer in times.layers] == [
        ("same_3", ("same",)),
        ("same_4", ("same",)),
        ("MatMul_0", ()),
    ]


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("conv", "conv"),
        ("conv_out_nchwc", "conv"),
        ("fused gemm", "gemm"),
        ("a/b/MatMulScaleFusion/", "a/b"),
        ("a/MatMulAddFusion", ""),
        ("ReorderOutput_token_3", ""),
    ],
)
def test_a_kernels_name_leads_back_to_its_node(name: str, origin: str) -> None:
    names = {"conv": "conv", "conv_out": "conv", "gemm": "gemm", "a/b": "a/b"}
    assert onnxruntime_profile._origin(name, names) == origin


def tensor(name: str, shape: list[int], **words: str) -> dict[str, Any]:
    return {"Name": name, "Dimensions": shape, **words}


TENSORRT_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv + relu",
            "LayerType": "Reformat",
            "Inputs": [tensor("x", [1, 3, 8, 8], **{"Format/Datatype": "Row major linear FP32"})],
            "Outputs": [tensor("x'", [1, 3, 8, 8], **{"Format/Datatype": "Row major Int8 format"})],
            "TacticValue": "0x00000000000003e8",
            "Metadata": "",
        },
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [tensor("x'", [1, 3, 8, 8], **{"Format/Datatype": "Row major Int8 format"})],
            "Outputs": [tensor("y", [1, 5, 8, 8], **{"Format/Datatype": "Channel major FP16 format"})],
            "TacticName": "sm80_xmma_fprop",
            "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
        },
    ],
    "Bindings": ["x", "y"],
}
TENSORRT_11 = {
    "Layers": [
        {
            "Name": "__myl_MulSoftMul_myl0_3",
            "LayerType": "kgen",
            "Inputs": [tensor("q", [-1, 4], Format="Row major linear", Datatype="Half")],
            "Constants": [],
            "Outputs": [tensor("p", [-1, 4], Format="Row major linear", Datatype="Half")],
            "TacticName": "__myl_MulSoftMul_0x1f",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: a/Mul]\x1f[ONNX Layer: a/Softmax]\x1f[ONNX Layer: a[0]/MatMul]",
        }
    ],
    "I/O Tensors": ["q", "p"],
}


def test_tensorrt_10s_inspector_is_read() -> None:
    copy, conv = trt_profile.layers_of(json.dumps(TENSORRT_10))
    assert (copy.kind, copy.precision, copy.kernel, copy.reads) == ("Reformat", "int8", "0x00000000000003e8", ())
    assert (conv.kind, conv.precision, conv.kernel) == ("Convolution", "float16", "sm80_xmma_fprop")
    assert (conv.origins, conv.reads) == (("conv", "relu"), (0,))
    assert (conv.input_shapes, conv.output_shapes) == (((1, 3, 8, 8),), ((1, 5, 8, 8),))


def test_tensorrt_11s_inspector_is_read() -> None:
    (layer,) = trt_profile.layers_of(json.dumps(TENSORRT_11))
    assert (layer.kind, layer.precision, layer.kernel) == ("kgen", "float16", "__myl_MulSoftMul_0x1f")
    assert layer.origins == ("a/Mul", "a/Softmax", "a[0]/MatMul")
    assert layer.output_shapes == (("?", 4),)


def test_an_inspector_without_details_gives_the_nodes_in_the_names() -> None:
    (layer,) = trt_profile.layers_of('{"Layers": ["conv1 + relu1"], "Bindings": ["x"]}')
    assert (layer.name, layer.origins, layer.precision) == ("conv1 + relu1", ("conv1", "relu1"), "")


plain_values = st.recursive(
    st.none() | st.integers(-1, 9) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
ports = st.lists(st.dictionaries(st.sampled_from(["Name", "Dimensions", "Datatype"]), plain_values), max_size=2)
odd_layers = st.dictionaries(st.sampled_from(["Name", "LayerType", "Metadata", "TacticName"]), plain_values)


@settings(max_examples=60)
@given(odd_layers, ports | plain_values, ports | plain_values, plain_values)
def test_an_inspector_may_say_anything(layer: dict[str, Any], inputs: Any, outputs: Any, other: Any) -> None:
    (found, *_) = trt_profile.layers_of(
        json.dumps({"Layers": [{**layer, "Inputs": inputs, "Outputs": outputs}, other]})
    )
    assert all(size == "?" or isinstance(size, int) for shape in found.output_shapes for size in shape)
    assert isinstance(trt_profile.layers_of(json.dumps(other)), tuple)


def test_tensorrts_profiler_reports_run_after_run() -> None:
    timer = trt_profile.LayerTimer()
    for run in range(3):
        timer.add("a", 1.0 + run)
        timer.add("b", 0.5)
    known = trt_profile.layers_of('{"Layers": [{"Name": "a", "LayerType": "conv"}]}')
    times = timer.take(known)
    assert [(layer.name, layer.kind) for layer in times.layers] == [("a", "conv"), ("b", "")]
    assert times.rows == ((2e6, 0.5e6), (3e6, 0.5e6))
    assert timer.take(known).rows == ()
