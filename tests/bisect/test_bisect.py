"""Engines that are really broken, each in a known place: it is found, nothing else is blamed, and the remedy cures."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from onnxconverter_common import float16
from torch import Tensor, nn

from edgeattn.backends import open_session, openvino
from edgeattn.backends.base import BuildConfig
from edgeattn.bisect import BisectReport, bisect_engine
from edgeattn.build import build_engine
from edgeattn.calibrate import calibrate
from edgeattn.cli import main
from edgeattn.data import open_data
from edgeattn.errors import InputError
from edgeattn.export import export_model
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.model import Model
from edgeattn.parity import compare_files
from edgeattn.precision.ranges import Range, save_ranges
from edgeattn.tensors import TensorSpec
from tests.graphs import FLOAT, Array, graph_of
from tests.models import CbamResNet, TransformerBlock, settled

IMAGES = TensorSpec("x", "float32", (2, 3, 16, 16))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.bisect.remedies.TIMED_S", 0.0)
    monkeypatch.setattr("edgeattn.profile.timing.TURN_S", 0.0)


@pytest.fixture(scope="module")
def cbam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small ResNet with CBAM, `good.onnx`, and eight samples."""
    folder = tmp_path_factory.mktemp("cbam")
    torch.manual_seed(0)
    module = settled(lambda: CbamResNet(8, (1, 1)), torch.randn(8, 3, 16, 16))
    export_model(Model(module, (IMAGES,)), folder / "good.onnx", dynamic={"x": {0: "batch"}}, check=False)
    samples(folder / "data", (1, 3, 16, 16))
    return folder


def samples(folder: Path, shape: tuple[int, ...], count: int = 8) -> None:
    folder.mkdir()
    for index in range(count):
        np.savez(folder / f"{index}.npz", x=np.random.default_rng(index).standard_normal(shape).astype(np.float32))


def edited(source: Path, target: Path, change: Callable[[Array], Array], *names: str) -> Path:
    """A copy of an ONNX file with other weights under some names."""
    model = onnx.load(source)
    weights = {item.name: item for item in model.graph.initializer}
    for name in names:
        weights[name].CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weights[name])), name))
    onnx.save(model, target)
    return target


def applied(report: BisectReport, folder: Path) -> bool:
    """Whether the command line of the remedy builds an engine that passes."""
    assert report.remedy is not None
    words = shlex.split(report.remedy.command)
    assert words[:2] == ["edgeattn", "build"]
    words[words.index("-o") + 1] = str(folder / "cured.engine")
    return (
        main([*words[1:], "--no-check", "-q"]) == 0
        and compare_files(folder / "cured.engine", report.against, data=folder / "data", latency=False).passed
    )


# A corrupted weight


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_corrupted_weight_is_found_and_what_follows_it_is_not_blamed(
    backend: str, cbam: Path, tmp_path: Path
) -> None:
    weight = "features.4.body.5.mlp.0.weight"  # in the second of two attentions
    bad = edited(cbam / "good.onnx", tmp_path / "bad.onnx", lambda w: -2 * w, weight)
    build_engine(bad, tmp_path / "bad.engine", backend=backend)
    report = bisect_engine(tmp_path / "bad.engine", str(cbam / "good.onnx"), data=cbam / "data")
    assert not report.passed
    failing = [section for section in report.sections if section.failures]
    assert [(section.kind, section.name) for section in failing] == [("attention", "features.4.body")]
    (culprit,) = report.culprits
    assert len(culprit.nodes) <= 3
    after = report.sections[report.sections.index(failing[0]) + 1]
    assert after.accumulated_l2 is not None
    assert after.accumulated_l2 > 100 * after.limit_l2 > after.relative_l2  # it hands on an error that is not its own
    assert report.remedy is not None
    assert report.remedy.remedy == "the original's own graph"
    assert "does not say what" in report.notes[0]


def test_several_failing_blocks_are_all_named_the_first_first(cbam: Path, tmp_path: Path) -> None:
    weights = ("features.3.body.5.mlp.0.weight", "features.4.body.5.mlp.0.weight")
    bad = edited(cbam / "good.onnx", tmp_path / "bad.onnx", lambda w: -2 * w, *weights)
    build_engine(bad, tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(cbam / "good.onnx"))
    assert report.first == "features.3.body"
    assert [section.name for section in report.sections if section.failures] == ["features.3.body", "features.4.body"]
    assert len(report.culprits) == 2
    assert report.verdict.startswith("FAILED: attention 'features.3.body' breaks first (and 1 more)")


def test_a_plan_that_was_changed_is_told_from_its_graph(cbam: Path, tmp_path: Path) -> None:
    build_engine(cbam / "good.onnx", tmp_path / "m.engine", backend="onnxruntime")
    nodes = [node for node in load_graph(tmp_path / "m.engine").model.graph if node.op_type == "Gemm"]
    edited(tmp_path / "m.engine", tmp_path / "m.engine", lambda w: -2 * w, nodes[-1].inputs[1].name)  # the classifier
    with pytest.raises(InputError, match="--trust"):
        bisect_engine(tmp_path / "m.engine", str(cbam / "good.onnx"))
    report = bisect_engine(tmp_path / "m.engine", str(cbam / "good.onnx"), trust=True)
    assert [culprit.nodes for culprit in report.culprits] == [(nodes[-1].name,)]
    assert report.notes == ()
    assert report.remedy is not None
    assert report.remedy.remedy == "built again as it was"


# FP16 that overflows


class Loud(nn.Module):
    """A transformer block of ordinary numbers, and one whose attention has logits of 1e5: (B, N, 16) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.loud = TransformerBlock(16, 2), TransformerBlock(16, 2)
        with torch.no_grad():
            self.loud.qkv.weight[:32].mul_(300)

    def forward(self, x: Tensor) -> Tensor:
        return self.loud(self.quiet(x))


def written(module: nn.Module, shape: tuple[int, ...], path: Path) -> Path:
    """A module exported plainly, with an input x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(module.eval(), (torch.randn(shape),), dynamo=True, verbose=False)
    save_graph(Graph(ir.from_proto(program.model_proto)), path)
    return path


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loud")
    torch.manual_seed(0)
    written(Loud(), (1, 11, 16), folder / "loud.onnx")
    samples(folder / "data", (1, 11, 16), 4)
    return folder


def test_an_attention_that_overflows_in_half_precision_is_found_and_cured(loud: Path, tmp_path: Path) -> None:
    build_engine(loud / "loud.onnx", tmp_path / "h.engine", BuildConfig("float16"), "openvino", check=False)
    if json.loads((tmp_path / "h.engine.json").read_text())["config"]["inference_precision"] != "f16":
        pytest.skip("this CPU has no float16 arithmetic")
    report = bisect_engine(tmp_path / "h.engine", str(loud / "loud.onnx"), data=loud / "data")
    failing = [section.name for section in report.sections if section.failures]
    assert failing == ["loud"]
    assert report.sections[[section.name for section in report.sections].index("loud")].kind == "attention"
    assert {"Mul", "MatMul"} & set(report.culprits[0].operators)
    cures = {rung.remedy: rung for rung in report.ladder if rung.cures}
    assert {"calibration by minmax", "float32 for the failing nodes"} <= set(cures)
    assert all(rung.time_ratio for rung in cures.values())
    assert "--keep loud" in cures["float32 for the failing nodes"].command
    assert not report.ladder[0].cures  # built again, it breaks again
    (tmp_path / "data").symlink_to(loud / "data")
    assert applied(report, tmp_path)


def test_a_graph_that_a_plain_converter_lowered_is_told_from_the_original(loud: Path, tmp_path: Path) -> None:
    plain = float16.convert_float_to_float16(onnx.load(loud / "loud.onnx"), keep_io_types=True)
    onnx.save(plain, tmp_path / "plain.onnx")
    build_engine(tmp_path / "plain.onnx", tmp_path / "plain.engine", backend="openvino", check=False)
    with open_session(tmp_path / "plain.engine") as session:
        feeds = {"x": np.load(loud / "data" / "0.npz")["x"]}
        if all(np.isfinite(array).all() for array in session.run(feeds).values()):
            pytest.skip("this CPU has no float16 arithmetic")
    report = bisect_engine(tmp_path / "plain.engine", str(loud / "loud.onnx"), data=loud / "data")
    assert report.first == "loud"
    assert "in a low precision itself" in report.notes[0]
    assert report.remedy is not None


# INT8


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_layer_with_wrong_ranges_is_found_and_calibrating_again_cures(
    backend: str, cbam: Path, tmp_path: Path
) -> None:
    graph = load_graph(cbam / "good.onnx")
    ranges = calibrate(graph, open_data(cbam / "data", graph.inputs))
    wide = ranges.tensors["relu_1"]  # what the second convolution of the first block reads
    wrong = {**ranges.tensors, "relu_1": Range(wide.min, wide.max, wide.low / 30, wide.high / 30)}
    save_ranges(dataclasses.replace(ranges, tensors=wrong), tmp_path / "ranges.json")
    build_engine(
        cbam / "good.onnx",
        tmp_path / "q.engine",
        BuildConfig("int8"),
        backend,
        check=False,
        ranges=dataclasses.replace(ranges, tensors=wrong),
    )
    table = tmp_path / "ranges.json"
    report = bisect_engine(tmp_path / "q.engine", str(cbam / "good.onnx"), data=cbam / "data", ranges=table)
    assert not report.passed
    (culprit, *_) = report.culprits
    readers = {
        node.name for node in graph.model.graph for value in node.inputs if value is not None and value.name == "relu_1"
    }
    assert readers & set(culprit.nodes)
    assert len(culprit.nodes) <= 2
    assert report.remedy is not None
    assert report.remedy.remedy.startswith("calibration")
    assert "--data" in report.remedy.command


def joined(folder: Path) -> Path:
    """Two convolutions of one value, joined by a Concat, and two more: what OpenVINO gets wrong in signed INT8."""
    generator = np.random.default_rng(0)

    def conv(source: str, weight: str, target: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [source, weight], [target], name=f"conv_{target}", pads=[1] * 4)

    def weights(*shape: int) -> Array:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        conv("x", "w0", "a0"),
        helper.make_node("Relu", ["a0"], ["a"], name="relu_a"),
        conv("a", "w1", "b"),
        conv("a", "w2", "c"),
        helper.make_node("Concat", ["b", "c"], ["d"], name="join", axis=1),
        conv("d", "w3", "e0"),
        helper.make_node("Relu", ["e0"], ["e"], name="relu_e"),
        conv("e", "w4", "y"),
    ]
    inputs = {"w0": 3, "w1": 8, "w2": 8, "w3": 16, "w4": 8}
    stored = {name: weights(8, channels, 3, 3) for name, channels in inputs.items()}
    graph = graph_of(nodes, [("x", FLOAT, [1, 3, 16, 16])], [("y", FLOAT, [1, 8, 16, 16])], stored)
    save_graph(graph, folder / "joined.onnx")
    return folder / "joined.onnx"


def test_a_fault_of_openvino_that_shows_only_in_one_piece_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a Concat of signed values OpenVINO 2026.4 computes something else, which a cut there would hide."""
    monkeypatch.setattr(openvino, "INT8", "signed")
    model, table = joined(tmp_path), tmp_path / "ranges.json"
    samples(tmp_path / "data", (1, 3, 16, 16))
    graph = load_graph(model)
    ranges = calibrate(graph, open_data(tmp_path / "data", graph.inputs))
    save_ranges(ranges, table)
    build_engine(model, tmp_path / "q.engine", BuildConfig("int8"), "openvino", check=False, ranges=ranges)
    if compare_files(tmp_path / "q.engine", str(model), data=tmp_path / "data", latency=False).passed:
        pytest.skip("this OpenVINO computes it right")
    report = bisect_engine(tmp_path / "q.engine", str(model), data=tmp_path / "data", ranges=table)
    assert [culprit.nodes for culprit in report.culprits] == [("join", "conv_e0")]
    assert {"float32 for the failing nodes", "no fusion across the failing nodes"} <= {
        rung.remedy for rung in report.ladder if rung.cures
    }
    assert report.remedy is not None
    assert "--keep join --keep conv_e0" in report.remedy.command


def test_an_int8_engine_without_its_ranges_is_refused_in_words(cbam: Path, tmp_path: Path) -> None:
    graph = load_graph(cbam / "good.onnx")
    ranges = calibrate(graph, open_data(cbam / "data", graph.inputs))
    build_engine(cbam / "good.onnx", tmp_path / "q.engine", BuildConfig("int8"), "openvino", check=False, ranges=ranges)
    with pytest.raises(InputError, match=r"q\.engine is in INT8, .* give them with --ranges"):
        bisect_engine(tmp_path / "q.engine", str(cbam / "good.onnx"))


# Everything else


def row(matrices: list[Array], batch: int | str = "batch") -> Graph:
    """x (batch, 6) times one matrix after the other: no attention, so cuts at natural places."""
    nodes, last = [], "x"
    for number in range(len(matrices)):
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"h{number}"], name=f"product{number}"))
        last = f"h{number}"
    weights = {f"w{number}": matrix for number, matrix in enumerate(matrices)}
    return graph_of(nodes, [("x", FLOAT, [batch, 6])], [(last, FLOAT, [batch, 6])], weights)


def matrices(count: int) -> list[Array]:
    generator = np.random.default_rng(0)
    return [np.linalg.qr(generator.standard_normal((6, 6)))[0].astype(np.float32) for _ in range(count)]


def test_without_attention_it_cuts_at_natural_places(tmp_path: Path) -> None:
    good = matrices(16)
    save_graph(row(good), tmp_path / "good.onnx")
    save_graph(row([*good[:9], 2 * good[9], *good[10:]]), tmp_path / "bad.onnx")
    build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "good.onnx"))
    assert len(report.sections) >= 3
    assert [culprit.nodes for culprit in report.culprits] == [("product9",)]
    assert sum(bool(section.failures) for section in report.sections) == 1


def test_errors_that_only_add_up_are_said_to(tmp_path: Path) -> None:
    good = matrices(24)
    save_graph(row(good), tmp_path / "good.onnx")
    save_graph(row([np.float32(1 + 3e-5) * matrix for matrix in good]), tmp_path / "bad.onnx")
    build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "good.onnx"), max_builds=64)
    assert not report.passed
    assert report.first == ""
    assert "errors add up" in report.verdict
    gathered = [section.accumulated_l2 or 0.0 for section in report.sections]
    assert gathered == sorted(gathered)
    assert gathered[-1] > 3 * gathered[0]


def test_an_engine_that_fails_at_one_shape_only_is_looked_at_there(tmp_path: Path) -> None:
    """A factor of min(B, limit) / B: 1 up to a batch of `limit`."""

    def network(limit: int) -> Graph:
        nodes = [
            helper.make_node("MatMul", ["x", "w0"], ["h0"], name="product0"),
            helper.make_node("Shape", ["x"], ["batch"], name="shape", end=1),
            helper.make_node("Min", ["batch", "limit"], ["least"], name="least"),
            helper.make_node("Cast", ["least"], ["above"], name="above", to=FLOAT),
            helper.make_node("Cast", ["batch"], ["below"], name="below", to=FLOAT),
            helper.make_node("Div", ["above", "below"], ["factor"], name="factor"),
            helper.make_node("Mul", ["h0", "factor"], ["h1"], name="scale"),
            helper.make_node("MatMul", ["h1", "w1"], ["y"], name="product1"),
        ]
        first, second = matrices(2)
        weights = {"w0": first, "w1": second, "limit": np.array([limit])}
        return graph_of(nodes, [("x", FLOAT, ["b", 6])], [("y", FLOAT, ["b", 6])], weights)

    save_graph(network(100), tmp_path / "good.onnx")
    save_graph(network(4), tmp_path / "bad.onnx")
    build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "good.onnx"))
    assert [place.partition(" (")[0] for place in report.where] == ["x 8x6"]
    assert [culprit.nodes for culprit in report.culprits] == [("scale",)]


def test_control_flow_is_taken_whole(tmp_path: Path) -> None:
    def body(name: str, factor: float) -> onnx.GraphProto:
        nodes = [helper.make_node("Mul", ["h", f"{name}_factor"], [name], name=f"{name}_node")]
        value = numpy_helper.from_array(np.float32(factor).reshape(()), f"{name}_factor")
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, FLOAT, None)], [value])

    def network(factor: float) -> Graph:
        nodes = [
            helper.make_node("MatMul", ["x", "w0"], ["h"], name="product0"),
            helper.make_node("ReduceSum", ["h"], ["sum"], name="sum", keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"], name="positive"),
            helper.make_node(
                "If", ["positive"], ["chosen"], name="if", then_branch=body("t", factor), else_branch=body("e", factor)
            ),
            helper.make_node("MatMul", ["chosen", "w1"], ["y"], name="product1"),
        ]
        first, second = matrices(2)
        weights = {"w0": first, "w1": second, "zero": np.float32(0).reshape(())}
        return graph_of(nodes, [("x", FLOAT, [2, 6])], [("y", FLOAT, [2, 6])], weights)

    save_graph(network(1), tmp_path / "good.onnx")
    save_graph(network(2), tmp_path / "bad.onnx")
    build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "good.onnx"))
    assert [culprit.nodes for culprit in report.culprits] == [("if",)]


def test_builds_are_bounded(cbam: Path, tmp_path: Path) -> None:
    bad = edited(cbam / "good.onnx", tmp_path / "bad.onnx", lambda w: 2 * w, "head.weight")
    build_engine(bad, tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(cbam / "good.onnx"), max_builds=6)
    assert 0 < report.builds <= 8
    assert report.first


def test_a_good_engine_is_left_alone(cbam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_engine(cbam / "good.onnx", tmp_path / "m.engine", backend="onnxruntime")
    words = ["bisect", str(tmp_path / "m.engine"), "--against", str(cbam / "good.onnx"), "--json", "-q"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["builds"] == 0


def test_the_command_says_it_and_exits_with_three(
    cbam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = edited(cbam / "good.onnx", tmp_path / "bad.onnx", lambda w: -2 * w, "features.4.body.5.mlp.0.weight")
    build_engine(bad, tmp_path / "bad.engine", backend="onnxruntime")
    words = ["bisect", str(tmp_path / "bad.engine"), "--against", str(cbam / "good.onnx"), "-q"]
    assert main([*words, "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]) == 3
    text = capsys.readouterr().out
    assert "attention 'features.4.body' breaks first" in text
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["first"] == "features.4.body"
    assert report["remedy"]["cures"]
    page = (tmp_path / "r.html").read_text()
    assert len(page) < 100_000
    assert "FAILED" in page
    assert "the original&#x27;s own graph" in page


def test_an_interrupt_leaves_nothing_behind(cbam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = edited(cbam / "good.onnx", tmp_path / "bad.onnx", lambda w: 2 * w, "head.weight")
    build_engine(bad, tmp_path / "bad.engine", backend="onnxruntime")
    before = sorted(tmp_path.iterdir())

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeattn.bisect.culprit_in", interrupted)
    words = ["bisect", str(tmp_path / "bad.engine"), "--against", str(cbam / "good.onnx"), "-q"]
    assert main([*words, "-o", str(tmp_path / "fixed.onnx")]) == 130
    assert sorted(tmp_path.iterdir()) == before


def test_a_failed_parity_says_how_to_bisect_and_does_it(
    cbam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = edited(cbam / "good.onnx", tmp_path / "bad.onnx", lambda w: -2 * w, "features.4.body.5.mlp.0.weight")
    build_engine(bad, tmp_path / "bad.engine", backend="onnxruntime")
    words = ["parity", str(tmp_path / "bad.engine"), "--against", str(cbam / "good.onnx"), "--no-latency"]
    words += ["--data", str(cbam / "data"), "-q"]
    assert main([*words, "--maps"]) == 3
    said = capsys.readouterr()
    assert f"edgeattn bisect {tmp_path / 'bad.engine'} --against {cbam / 'good.onnx'} --data" in said.err
    assert "features.4.body (channel)" in said.out
    assert main([*words, "--bisect"]) == 3
    assert "attention 'features.4.body' breaks first" in capsys.readouterr().out


def test_an_original_whose_values_have_other_names_is_laid_beside_by_its_operators(cbam: Path, tmp_path: Path) -> None:
    bad = edited(cbam / "good.onnx", tmp_path / "bad.onnx", lambda w: -2 * w, "features.4.body.5.mlp.0.weight")
    build_engine(bad, tmp_path / "bad.engine", backend="onnxruntime")
    other = onnx.load(cbam / "good.onnx")
    names = {name: f"other_{name}" for node in other.graph.node for name in node.output}
    names["x"] = "image"
    for node in other.graph.node:
        for kind in (node.input, node.output):
            kind[:] = [names.get(name, name) for name in kind]
    for value in (*other.graph.input, *other.graph.output):
        value.name = names[value.name]
    del other.graph.value_info[:]
    onnx.save(other, tmp_path / "other.onnx")
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "other.onnx"))
    assert [section.name for section in report.sections if section.failures] == ["features.4.body"]


def test_an_original_of_another_structure_is_judged_whole(tmp_path: Path) -> None:
    save_graph(row(matrices(3)), tmp_path / "good.onnx")
    save_graph(row(matrices(2)), tmp_path / "bad.onnx")
    build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "good.onnx"))
    assert not report.passed
    assert report.remedy is not None
    assert report.remedy.remedy == "the original's own graph"
