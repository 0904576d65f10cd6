"""Engines in low precision that are really broken: the part is found, and the remedy cures."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
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
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.parity import compare_files
from edgeattn.precision.ranges import Range, save_ranges
from tests.bisected import samples
from tests.graphs import FLOAT, Array, graph_of
from tests.models import TransformerBlock


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


# FP16 that overflows


class Loud(nn.Module):
    """An attention of ordinary numbers, and one that has logits of 1e5: (B, N, 16) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet, self.loud = TransformerBlock(16, 2), TransformerBlock(16, 2)
        self.quiet.mlp = self.loud.mlp = nn.Sequential()
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
    assert "float32 for the failing nodes" in cures
    assert all(rung.time_ratio for rung in cures.values())
    assert "--keep loud" in cures["float32 for the failing nodes"].command
    assert not report.ladder[0].cures  # built again, it breaks again
    (tmp_path / "data").symlink_to(loud / "data")
    assert applied(report, tmp_path)


def test_a_graph_that_a_plain_converter_lowered_is_told_from_the_original(
    loud: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeattn.bisect.remedies.MOST_CURES", 1)
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
    backend: str, cbam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeattn.bisect.remedies.MOST_CURES", 1)
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
    assert any("--keep join --keep conv_e0" in rung.command for rung in report.ladder if rung.cures)


def test_an_int8_engine_without_its_ranges_is_refused_in_words(cbam: Path, tmp_path: Path) -> None:
    graph = load_graph(cbam / "good.onnx")
    ranges = calibrate(graph, open_data(cbam / "data", graph.inputs))
    build_engine(cbam / "good.onnx", tmp_path / "q.engine", BuildConfig("int8"), "openvino", check=False, ranges=ranges)
    with pytest.raises(InputError, match=r"q\.engine is in INT8, .* give them with --ranges"):
        bisect_engine(tmp_path / "q.engine", str(cbam / "good.onnx"))
