from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeattn import files
from edgeattn.backends import backend_named, open_session
from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine, plan_build
from edgeattn.calibrate import calibrate
from edgeattn.data import Dataset, open_data
from edgeattn.engine import read_sidecar, sidecar_path
from edgeattn.errors import EdgeAttnError, GateError, InferenceError, InputError, UnsupportedError, UsageError
from edgeattn.graph import load_graph, save_graph
from edgeattn.precision.ranges import Range, Ranges
from edgeattn.tensors import TensorSpec, random_feeds
from tests.graphs import graph_of, self_attention

CPU_BACKENDS = ("openvino", "onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save_graph(self_attention().graph, path)
    return path


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("precision", ["", "float32", "float16"])
def test_a_built_engine_is_checked_at_every_corner_and_runs(model: Path, backend: str, precision: str) -> None:
    output = model.with_suffix(".engine")
    report = build_engine(model, output, BuildConfig(precision=precision), backend)
    assert report.parity is not None
    assert report.parity.passed
    sidecar = read_sidecar(output)
    assert sidecar.verified is not None
    assert sidecar.precision.asked == (precision or "float32")
    assert sidecar.graph["sha256"] == files.sha256_file(model)
    assert sidecar.rebuild.startswith(f"edgeattn build {model} -o {output} --backend {backend}")
    feeds = random_feeds(sidecar.inputs, {"x": (3, 7, 8)}, seed=1)
    with open_session(output) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], self_attention().compute(feeds)["y"], atol=0.05)


def test_a_dry_run_writes_nothing(model: Path) -> None:
    before = sorted(model.parent.iterdir())
    plan = plan_build(model, BuildConfig(precision="float16"), "onnxruntime")
    assert "float16" in str(plan)
    assert "1x7x8 .. 1x7x8 .. 8x7x8" in str(plan)
    assert sorted(model.parent.iterdir()) == before


def test_asked_for_float16_and_not_computing_in_it_is_said(model: Path) -> None:
    report = build_engine(model, model.with_suffix(".engine"), BuildConfig(precision="float16"), "onnxruntime")
    assert report.sidecar.precision.weights["float16"] > 0
    assert set(report.sidecar.precision.compute) == {"float32"}
    assert any("float16" in note for note in report.sidecar.precision.notes)


def test_an_engine_that_says_something_else_replaces_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = model.with_suffix(".engine")
    build_engine(model, output, backend="onnxruntime")
    before = output.read_bytes(), sidecar_path(output).read_bytes()
    honest = backend_named("onnxruntime").build
    sabotaged = self_attention(seed=1).graph
    monkeypatch.setattr(backend_named("onnxruntime"), "build", lambda graph, config: honest(sabotaged, config))
    with pytest.raises(GateError, match="does not say what the graph says"):
        build_engine(model, output, backend="onnxruntime")
    assert (output.read_bytes(), sidecar_path(output).read_bytes()) == before
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.engine", "model.engine.json", "model.onnx"]


def test_operators_nobody_knows_are_listed_all_at_once(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Mystery", ["x"], ["a"], name="first", domain="my.ops"),
        helper.make_node("Enigma", ["a"], ["y"], name="second", domain="my.ops"),
    ]
    graph = graph_of(nodes, [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [1])])
    graph.model.opset_imports["my.ops"] = 1
    for backend in CPU_BACKENDS:
        with pytest.raises(UnsupportedError) as caught:
            build_engine(graph, tmp_path / "x.engine", backend=backend)
        assert len(caught.value.reasons) == 2
        assert not (tmp_path / "x.engine").exists()


def test_a_second_build_of_the_same_output_is_refused(model: Path) -> None:
    output = model.with_suffix(".engine")
    with files.locked(output), pytest.raises(EdgeAttnError, match="being written by another process"):
        build_engine(model, output, backend="onnxruntime")


def test_shapes_follow_trtexec(model: Path) -> None:
    only_opt = plan_build(model, BuildConfig(opt_shapes={"": (4, 7, 8)}), "onnxruntime").config.profile["x"]
    assert only_opt.is_static
    spread = BuildConfig(min_shapes={"x": (1, 7, 8)}, opt_shapes={"x": (2, 7, 8)}, max_shapes={"x": (4, 7, 8)})
    assert str(plan_build(model, spread, "onnxruntime").config.profile["x"]) == "1x7x8 .. 2x7x8 .. 4x7x8"
    with pytest.raises(UsageError, match="does not admit"):
        plan_build(model, BuildConfig(opt_shapes={"x": (4, 9, 8)}), "onnxruntime")
    with pytest.raises(UsageError, match="no input 'z'"):
        plan_build(model, BuildConfig(opt_shapes={"z": (4, 7, 8)}), "onnxruntime")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_an_engine_keeps_to_its_profile(model: Path, backend: str) -> None:
    output = model.with_suffix(".engine")
    build_engine(model, output, BuildConfig(opt_shapes={"": (2, 7, 8)}), backend)
    with open_session(output) as session, pytest.raises(InputError, match=r"expected shape 2x7x8, got 3x7x8"):
        session.run({"x": np.zeros((3, 7, 8), np.float32)})


def test_a_kill_at_any_moment_leaves_a_whole_engine(model: Path) -> None:
    output = model.with_suffix(".engine")
    build_engine(model, output, BuildConfig(precision="float32"), "onnxruntime")
    worker = (
        "import sys; from edgeattn.build import build_engine; from edgeattn.backends.base import BuildConfig\n"
        "print(flush=True)\n"
        "for n in range(1000):\n"
        "    config = BuildConfig(precision=('float16', 'float32')[n % 2])\n"
        "    build_engine(sys.argv[1], sys.argv[2], config, 'onnxruntime')\n"
    )
    for delay in np.random.default_rng(0).uniform(0.05, 0.6, 4):
        child = subprocess.Popen([sys.executable, "-c", worker, model, output], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child, child.stdout:
            child.stdout.readline()
            time.sleep(delay)
            child.kill()
        with open_session(output) as session:
            session.run({"x": np.zeros((1, 7, 8), np.float32)})
    build_engine(model, output, BuildConfig(precision="float32"), "onnxruntime")
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.engine", "model.engine.json", "model.onnx"]


@pytest.mark.parametrize("output", ["model.onnx", "weights.bin", "../here/model.onnx"])
def test_an_engine_never_replaces_what_it_is_built_from(tmp_path: Path, output: str) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    save_graph(self_attention().graph, folder / "model.onnx")
    proto = onnx.load(folder / "model.onnx")
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match="would overwrite"):
        build_engine(folder / "model.onnx", folder / output, backend="onnxruntime")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_the_backend_cannot_be_told_is_refused_or_said(model: Path) -> None:
    with pytest.raises(UnsupportedError, match="openvino builds for this machine's CPU, not for sm_87: build with"):
        plan_build(model, BuildConfig(targets=("sm_87",)), "openvino")
    with pytest.raises(UsageError, match="cannot build in 'int4'; known: fp32, fp16, bf16, int8"):
        plan_build(model, BuildConfig(precision="int4"), "openvino")
    plan = plan_build(model, BuildConfig(workspace=1 << 30, tf32=True), "onnxruntime")
    assert plan.notes == tuple(f"{name} is a setting of TensorRT: not used" for name in ("workspace", "tf32"))


def test_inputs_and_outputs_that_are_no_arrays_are_refused_by_name(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    split = helper.make_node("SplitToSequence", ["x"], ["parts"])
    words = helper.make_node("Cast", ["x"], ["words"], to=TensorProto.STRING)
    graph = graph_of([split, words], [("x", TensorProto.FLOAT, [4])], [("words", TensorProto.STRING, [4])])
    save_graph(graph, tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx")
    proto.graph.output.append(helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, [1]))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError) as caught:
        plan_build(tmp_path / "m.onnx", backend="onnxruntime")
    assert caught.value.reasons == ("output 'words' has dtype string", "output 'parts' is no tensor but a SequenceType")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_float16_graph_without_weights_is_judged_as_float16(tmp_path: Path, backend: str) -> None:
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"]),
        helper.make_node("MatMul", ["weights", "q"], ["y"]),
    ]
    inputs = [("q", TensorProto.FLOAT16, [64, 64]), ("k", TensorProto.FLOAT16, [64, 64])]
    graph = graph_of(nodes, inputs, [("y", TensorProto.FLOAT16, [64, 64])])
    report = build_engine(graph, tmp_path / "m.engine", backend=backend)
    assert report.sidecar.precision.asked == "float16"


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_random_values_that_the_graph_itself_refuses_are_no_fault_of_the_engine(tmp_path: Path, backend: str) -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest")
    inputs = [("x", TensorProto.FLOAT, [1, 1, 4, 4]), ("sizes", TensorProto.INT64, [4])]
    graph = graph_of([node], inputs, [("y", TensorProto.FLOAT, ["a", "b", "c", "d"])])
    with pytest.raises(InferenceError, match=r"nothing can be compared at .*--no-check"):
        build_engine(graph, tmp_path / "m.engine", backend=backend)
    build_engine(graph, tmp_path / "m.engine", backend=backend, check=False)
    with open_session(tmp_path / "m.engine") as session:
        feeds = {"x": np.ones((1, 1, 4, 4), np.float32), "sizes": np.array([1, 1, 8, 6])}
        assert session.run(feeds)["y"].shape == (1, 1, 8, 6)


def test_a_float16_transformer_of_any_batch_survives_onnxruntime(tmp_path: Path) -> None:
    # ONNX Runtime 1.31 dies by SIGSEGV as it loads this graph with its default optimisations.
    from torch import Tensor, nn

    from edgeattn.export import export_model
    from edgeattn.model import Model
    from edgeattn.tensors import TensorSpec

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 8, 8)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens: Tensor = self.block(self.patch(x).flatten(2).transpose(1, 2))
            return tokens

    model = Model(Patches(), (TensorSpec("x", "float32", (1, 3, 16, 16)),))
    export_model(model, tmp_path / "m.onnx", dynamic={"x": {0: "batch"}}, check=False)
    report = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildConfig(precision="float16"), "onnxruntime")
    assert report.parity is not None
    assert report.parity.passed


# INT8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(6):
        x = np.random.default_rng(number).standard_normal((1, 7, 8)).astype(np.float32)
        np.savez(folder / f"{number}.npz", x=x)
    return folder


def observed(model: Path, data: Path) -> tuple[Ranges, Dataset]:
    graph = load_graph(model)
    samples = open_data(data, [TensorSpec(spec.name, spec.dtype, (1, 7, 8)) for spec in graph.inputs])
    return calibrate(graph, samples), samples


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_int8_is_checked_on_samples_and_leaves_its_calibration_in_the_sidecar(
    model: Path, data: Path, backend: str
) -> None:
    ranges, samples = observed(model, data)
    output = model.with_suffix(".engine")
    report = build_engine(model, output, BuildConfig(precision="int8"), backend, ranges=ranges, samples=samples)
    assert report.parity is not None
    assert report.parity.samples == 6
    assert report.parity.outputs[0].sqnr_db > 25
    assert "SQNR" in report.verdict
    sidecar = read_sidecar(output)
    assert sidecar.precision.asked == "int8"
    assert sidecar.precision.compute["int8"] >= 3
    assert sidecar.precision.notes[0] == "INT8: 3 MatMul"
    assert any("an attention is one unit" in note for note in sidecar.precision.notes)
    assert sidecar.calibration["samples"] == 6
    assert sidecar.calibration["graph_sha256"] == files.sha256_file(model)
    assert sidecar.calibration["data_sha256"]
    assert "--int8 --ranges RANGES.json" in sidecar.rebuild
    with open_session(output) as session:
        assert session.run({"x": np.ones((3, 7, 8), np.float32)})["y"].shape == (3, 7, 8)


def test_int8_without_samples_is_only_said_to_run(model: Path, data: Path) -> None:
    ranges, _ = observed(model, data)
    config = BuildConfig(precision="int8")
    report = build_engine(model, model.with_suffix(".engine"), config, "onnxruntime", ranges=ranges)
    assert report.verdict.startswith("runs, and gives finite numbers on random input; give --data")


def test_int8_of_a_fixed_batch_is_improved_and_checked_on_single_samples(tmp_path: Path) -> None:
    graph = self_attention(batch=4).graph
    save_graph(graph, tmp_path / "m.onnx")
    (tmp_path / "data").mkdir()
    for number in range(9):
        x = np.random.default_rng(number).standard_normal((1, 7, 8)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{number}.npz", x=x)
    ranges, samples = observed(tmp_path / "m.onnx", tmp_path / "data")
    report = build_engine(
        tmp_path / "m.onnx", tmp_path / "m.engine", BuildConfig(precision="int8"), "onnxruntime",
        ranges=ranges, samples=samples,
    )  # fmt: skip
    assert any(note.startswith("corrected biases") for note in report.plan.notes)
    assert report.parity
    assert report.parity.samples == 9


def test_int8_that_is_noise_replaces_nothing(model: Path, data: Path) -> None:
    ranges, samples = observed(model, data)
    wrong = dataclasses.replace(ranges, tensors={name: Range(-1e6, 1e6, -1e6, 1e6) for name in ranges.tensors})
    output = model.with_suffix(".engine")
    with pytest.raises(GateError, match=r"the relative L2 error is .*, the limit is 0\.3162"):
        build_engine(model, output, BuildConfig(precision="int8"), "onnxruntime", ranges=wrong, samples=samples)
    assert not output.exists()


def test_samples_that_can_be_seen_only_once_are_refused(model: Path, data: Path) -> None:
    ranges, samples = observed(model, data)
    with pytest.raises(UsageError, match="an iterator only once"):
        build_engine(model, model.with_suffix(".engine"), BuildConfig("int8"), ranges=ranges, samples=iter(samples))


def test_int8_needs_ranges_and_never_makes_them_up(model: Path) -> None:
    with pytest.raises(UsageError, match="give --data DIR with real samples, or --ranges FILE"):
        plan_build(model, BuildConfig(precision="int8"), "onnxruntime")


def test_nodes_are_kept_high_by_name_and_by_glob(model: Path, data: Path) -> None:
    ranges, _ = observed(model, data)
    config = BuildConfig(precision="int8", layer_precisions={"que*": "float32", "value": "float32"})
    plan = plan_build(model, config, "onnxruntime", ranges=ranges)
    assert plan.notes[0] == "INT8: 1 MatMul"
    assert "stays in float: MatMul 'query', MatMul 'value': kept high as asked" in plan.notes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BuildConfig(precision="int8", rest="int8"), "what is not INT8 cannot be 'int8'"),
        (BuildConfig(precision="int8", layer_precisions={"query": "float16"}), "'query' cannot be 'float16'"),
        (BuildConfig(precision="float16", layer_precisions={"query": "int8"}), "'query' cannot be 'int8'"),
        (BuildConfig(layer_precisions={"quary": "float32"}), "no node .*'quary'; did you mean 'query'"),
    ],
)
def test_precisions_that_cannot_be_together_are_refused(
    model: Path, data: Path, config: BuildConfig, said: str
) -> None:
    ranges, _ = observed(model, data)
    with pytest.raises(UsageError, match=said):
        plan_build(model, config, "onnxruntime", ranges=ranges)


def test_int8_stands_beside_what_its_backend_can(model: Path, data: Path) -> None:
    ranges, samples = observed(model, data)
    beside = BuildConfig(precision="int8", rest="bfloat16")
    with pytest.raises(UnsupportedError, match="onnxruntime has INT8 beside float32, not bfloat16"):
        plan_build(model, beside, "onnxruntime", ranges=ranges)
    output = model.with_suffix(".engine")
    report = build_engine(model, output, beside, "openvino", ranges=ranges, samples=samples)
    assert report.parity is not None
    assert report.parity.outputs[0].sqnr_db > 20
    assert "--bf16" in report.sidecar.rebuild
    typed = plan_build(model, dataclasses.replace(beside, rest="float16"), "tensorrt-rtx", ranges=ranges).typed
    assert "float16" in typed.weight_bytes()
    assert typed.op_counts()["DequantizeLinear"] == 4
