"""TensorRT-RTX builds for real on a machine with no GPU, and TensorRT shares its code path; what differs is pure."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeattn.backends import tensorrt, tensorrt_rtx
from edgeattn.backends.base import BuildConfig
from edgeattn.backends.trt import builder, timing
from edgeattn.backends.trt import library as lib
from edgeattn.backends.trt.capabilities import capabilities
from edgeattn.backends.trt.device import Gpu
from edgeattn.backends.trt.progress import Progress
from edgeattn.errors import BuildError, MissingDependencyError, UnsupportedError, UsageError
from edgeattn.graph import Graph
from edgeattn.tensors import ShapeRange
from tests.backends.rtx import FLOAT16, build, gated_conv, needs_rtx
from tests.graphs import FLOAT, graph_of, self_attention


def standard_attention() -> Graph:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention")
    return graph_of([node], [(name, FLOAT, [1, 2, 5, 8]) for name in "qkv"], [("y", FLOAT, [1, 2, 5, 8])], opset=23)


@needs_rtx
@pytest.mark.parametrize(
    ("graph", "dtype", "compute"),
    [
        (gated_conv(), "float32", {"float32": 5}),
        (gated_conv(FLOAT16), "float16", {"float16": 5}),
        (gated_conv(channels=1, batch=1), "float32", {"float32": 5}),
        (self_attention().graph, "float32", {"float32": 7}),
        (standard_attention(), "float32", None),
    ],
    ids=["se", "se-fp16", "se-one-channel-static", "softmax-attention", "attention-23"],
)
def test_rtx_builds_with_no_gpu_and_counts_what_it_computes_in(
    graph: Graph, dtype: str, compute: dict[str, int] | None, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = build(graph, precision=dtype, targets=("sm_89",))
    sidecar = engine.sidecar
    assert len(engine.plan) > 1000
    assert sidecar.inputs == graph.inputs
    assert sidecar.outputs == graph.outputs
    assert sidecar.targets == ("sm_89",)
    assert sidecar.backend_version.startswith("1.")
    assert sidecar.precision.weights == graph.weight_bytes()
    assert set(sidecar.precision.compute) == {dtype}
    assert compute in (None, sidecar.precision.compute)
    assert sidecar.precision.notes == ()
    assert capfd.readouterr().out == ""


@needs_rtx
def test_one_engine_serves_several_targets() -> None:
    assert build(gated_conv(), targets=("sm_86", "sm_89", "sm_120", "sm_86")).sidecar.targets == (
        "sm_86",
        "sm_89",
        "sm_120",
    )


@needs_rtx
def test_without_target_and_gpu_the_default_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "gpus", lambda: ())
    sidecar = build(gated_conv()).sidecar
    assert sidecar.targets == (builder.AMPERE_PLUS,)
    assert any("from compute capability 8.0 on" in note for note in sidecar.precision.notes)


@needs_rtx
def test_without_target_the_gpu_of_this_machine_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "gpus", lambda: (Gpu(0, "RTX", "sm_86", 1 << 30, "13.0"),))
    assert build(gated_conv()).sidecar.targets == ("sm_86",)


@needs_rtx
def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"no target sm_87; it has sm_75, .*sm_120.*a Jetson's engine"):
        build(gated_conv(), targets=("sm_86", "sm_87"))


@needs_rtx
@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"version_compatible": True}, UnsupportedError, "no version-compatible engines"),
        ({"hardware_compatibility": "ampere_plus"}, UnsupportedError, "no hardware compatibility level 'ampere_plus'"),
        ({"opt_level": 6}, UsageError, "optimisation level 6; expected 0 to 5"),
    ],
)
def test_a_setting_that_rtx_lacks_is_refused(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        build(gated_conv(), **settings)


@needs_rtx
def test_settings_that_change_nothing_are_said() -> None:
    notes = build(
        gated_conv(), precision="float16", timing_cache="t.cache", workspace=1 << 28, opt_level=1, tf32=True
    ).sidecar.precision.notes
    assert any("no timing cache" in note for note in notes)
    assert "asked for float16, but every layer computes in float32" in notes
    assert not Path("t.cache").exists()


@needs_rtx
def test_everything_unsupported_is_named_at_once_and_on_one_line() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="determinant"),
        helper.make_node("Unique", ["d"], ["u"], name="distinct"),
        helper.make_node("Sparkle", ["u"], ["y"], name="shine"),
    ]
    graph = graph_of(nodes, [("x", FLOAT, [3, 2, 2])], [("y", FLOAT, [None])])
    problems = tensorrt_rtx.unsupported(graph)
    assert [problem.partition(":")[0] for problem in problems] == [
        "node 'determinant' (Det)",
        "node 'distinct' (Unique)",
        "node 'shine' (Sparkle)",
    ]
    with pytest.raises(UnsupportedError) as caught:
        build(graph, profile={"x": ShapeRange(*[(3, 2, 2)] * 3)})
    assert caught.value.reasons == tuple(problems)
    assert "\n" not in str(caught.value)


@needs_rtx
def test_float64_inputs_and_outputs_are_refused_since_tensorrt_would_read_float32() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    graph = graph_of([node], [("x", TensorProto.DOUBLE, [2])], [("y", TensorProto.DOUBLE, [2])])
    assert [problem.split(",")[0] for problem in tensorrt_rtx.unsupported(graph)] == [
        "tensor 'x' is float64",
        "tensor 'y' is float64",
    ]


@needs_rtx
def test_an_input_that_is_a_shape_is_refused() -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"], name="reshape")
    graph = graph_of([node], [("x", FLOAT, ["a", "b"]), ("s", TensorProto.INT64, [2])], [("y", FLOAT, ["c", "d"])])
    assert tensorrt_rtx.unsupported(graph) == ["input 's' holds a shape, not data: make it a constant of the graph"]


@needs_rtx
@pytest.mark.parametrize(
    ("node", "inputs", "said"),
    [
        (helper.make_node("Add", ["a", "b"], ["y"], name="sum"), {"a": FLOAT, "b": FLOAT16}, "types Float and Half"),
        (helper.make_node("MatMul", ["a", "w"], ["y"], name="sum"), {"a": FLOAT}, "= 2 .* = 5 but must match"),
    ],
    ids=["mixed-dtypes", "shapes-do-not-fit"],
)
def test_a_graph_that_contradicts_itself_is_a_build_error_with_the_node(
    node: Any, inputs: dict[str, int], said: str
) -> None:
    graph = graph_of(
        [node],
        [(name, dtype, [3, 2]) for name, dtype in inputs.items()],
        [("y", FLOAT, [3, 2])],
        {"w": np.ones((5, 2), np.float32)},
    )
    assert tensorrt_rtx.unsupported(graph) == []
    with pytest.raises(BuildError, match=rf"node 'sum' \({node.op_type}\): .*{said}") as caught:
        build(graph)
    assert "\n" not in str(caught.value)
    assert "cudaError" not in str(caught.value)


@needs_rtx
def test_input_names_with_wildcards_keep_their_shapes() -> None:
    node = helper.make_node("Relu", ["x[0]*"], ["y"], name="relu")
    graph = graph_of([node], [("x[0]*", FLOAT, ["batch", 3])], [("y", FLOAT, ["batch", 3])])
    assert build(graph).plan


@needs_rtx
def test_shapes_that_the_graph_does_not_admit_are_one_build_error() -> None:
    with pytest.raises(BuildError, match="cannot build the graph"):
        build(gated_conv(), profile={"t0": ShapeRange(*[(1, 9, 7, 5)] * 3)})


@needs_rtx
def test_progress_grows_to_one() -> None:
    seen: list[tuple[str, float | None]] = []
    build(gated_conv(layers=5), progress=lambda phase, fraction: seen.append((phase, fraction)))
    fractions = [fraction for _, fraction in seen if fraction is not None]
    assert seen[0] == ("parsing", None)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > 20


@needs_rtx
@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt()], ids=["exception", "interrupt"])
def test_what_progress_raises_stops_the_build_and_comes_out_unchanged(error: BaseException) -> None:
    calls = []

    def stop(phase: str, fraction: float | None) -> None:
        calls.append(phase)
        if fraction:
            raise error

    with pytest.raises(type(error)) as caught:
        build(gated_conv(layers=5), progress=stop)
    assert caught.value is error
    assert "Determining refit engines" not in calls


INTERRUPTED = """
import os, signal, time
from edgeattn.backends import tensorrt_rtx
from edgeattn.backends.base import BuildConfig
from edgeattn.tensors import resolve_profile
from tests.backends.rtx import gated_conv

graph = gated_conv(channels=32, layers=30)
last = [0.0]

def interrupt(phase, fraction):
    if fraction and not last[0]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # the main thread's turn
    last[0] = fraction or 0.0

try:
    tensorrt_rtx.build(graph, BuildConfig(profile=resolve_profile(graph.inputs), progress=interrupt))
except KeyboardInterrupt:
    print("interrupted", last[0] < 0.5)
"""


@needs_rtx
def test_ctrl_c_cancels_the_builder_and_is_a_keyboard_interrupt() -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.stdout, run.returncode) == ("interrupted True\n", 0), run.stderr


TAKEN = """
import polygraphy.config
from edgeattn.backends.trt import library as lib
try:
    lib.library(lib.RTX)
except lib.UnsupportedError as err:
    print(err)
"""


@needs_rtx
def test_a_process_serves_one_of_the_two_libraries() -> None:
    run = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "this process already uses TensorRT: use TensorRT-RTX in a new process\n", run.stderr


def test_what_is_missing_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(lib, "gpus", lambda: ())
    to_build = tensorrt_rtx.missing(running=False)
    assert to_build == [
        "the package tensorrt_rtx is not installed: pip install 'edgeattn[rtx]'",
        "the package polygraphy is not installed: pip install polygraphy",
    ]
    assert [reason.split(":")[0] for reason in tensorrt_rtx.missing()] == [
        "no NVIDIA GPU",
        *(reason.split(":")[0] for reason in to_build),
        "the package pycuda is not installed",
    ]
    assert "apt install python3-libnvinfer" in tensorrt.missing()[1]
    assert tensorrt.missing(running=False)[0].startswith("no NVIDIA GPU")
    with pytest.raises(MissingDependencyError, match="the package tensorrt is not installed"):
        lib.library(lib.TENSORRT)


def tensorrt_of_version(version: str) -> lib.Library:
    return lib.Library(SimpleNamespace(__version__=version), lib.TENSORRT, capabilities(version, "tensorrt"))


def test_tensorrt_builds_for_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "gpus", lambda: (Gpu(0, "RTX 4090", "sm_89", 1 << 30, "13.0"),))
    library = tensorrt_of_version("10.13.3")
    assert builder.choose_targets(library, BuildConfig()).names == ("sm_89",)
    assert builder.choose_targets(library, BuildConfig(targets=("sm_89",))).names == ("sm_89",)
    assert builder.choose_targets(library, BuildConfig(hardware_compatibility="ampere_plus")).names == ("sm_80+",)
    with pytest.raises(UnsupportedError, match=r"only for the GPU it runs on \(sm_89\), not for sm_87.*on that device"):
        builder.choose_targets(library, BuildConfig(targets=("sm_87",)))


@settings(max_examples=20, deadline=None)  # every write reaches the disk
@given(data=st.binary(min_size=1, max_size=64), flip=st.integers(0), key=st.text(max_size=20))
def test_a_timing_cache_with_any_flipped_byte_is_set_aside(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, flip: int, key: str
) -> None:
    path = tmp_path_factory.mktemp("cache") / "t.cache"
    timing.write_cache(path, key, data)
    assert timing.read_cache(path, key) == (data, [])
    spoiled = bytearray(data)
    spoiled[flip % len(data)] ^= 1 + flip % 255
    path.write_bytes(spoiled)
    found, notes = timing.read_cache(path, key)
    assert found == b""
    assert len(notes) == 1
    assert "is damaged: kept as t.cache.bad" in notes[0]
    assert path.with_name("t.cache.bad").read_bytes() == bytes(spoiled)
    assert timing.read_cache(path, key) == (b"", [])


def test_a_timing_cache_of_another_gpu_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    timing.write_cache(path, "sm_87 Orin", b"times")
    found, notes = timing.read_cache(path, "sm_89 RTX 4090")
    assert found == b""
    assert "was measured on something else" in notes[0]


def test_a_timing_cache_of_trtexec_is_left_for_tensorrt_to_judge(tmp_path: Path) -> None:
    path = tmp_path / "t.cache"
    path.write_bytes(b"times")
    assert timing.read_cache(path, "sm_89") == (b"times", [])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=5), st.randoms())
def test_fractions_never_shrink_and_stay_within_one(phases: list[tuple[int, int]], random: Any) -> None:
    seen: list[float] = []
    progress = Progress(lambda phase, fraction: seen.append(fraction if fraction is not None else -1.0))
    for number, (parent, steps) in enumerate(phases):
        progress.start(f"p{number}", f"p{parent}" if parent < number else None, steps)
        for step in range(random.randint(0, steps)):
            assert progress.step(f"p{number}", step)
    for number in reversed(range(len(phases))):
        progress.finish(f"p{number}")
    assert seen == sorted(seen)
    assert all(0 <= fraction <= 1 for fraction in seen)


@given(st.text())
def test_a_message_is_cleaned_to_one_line_without_source_locations(text: str) -> None:
    message = f"ModelImporter.cpp:489: {text} In check at /_src/a/b.cpp:12"
    cleaned = lib.clean(message)
    assert "/_src/" not in cleaned
    assert "\n" not in cleaned
