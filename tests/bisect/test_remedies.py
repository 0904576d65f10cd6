from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgeattn.backends.base import BuildConfig
from edgeattn.bisect.remedies import Known, barriers, command, remedies
from edgeattn.bisect.report import BisectReport, Rung
from edgeattn.build import build_engine
from edgeattn.cli.build import configure
from edgeattn.engine import read_sidecar
from edgeattn.fuse import fuse
from edgeattn.graph import save_graph
from edgeattn.interpreter import run_as_written
from edgeattn.maps.rebuilt import Rebuilt, rebuilt
from tests.graphs import FLOAT, graph_of, self_attention


def parts(folder: Path, config: BuildConfig | None = None, backend: str = "onnxruntime") -> Rebuilt:
    save_graph(self_attention().graph, folder / "m.onnx")
    build_engine(folder / "m.onnx", folder / "m.engine", config, backend, check=False)
    return rebuilt(folder / "m.engine", read_sidecar(folder / "m.engine"))


def test_barriers_change_no_number_not_even_an_infinite_one() -> None:
    nodes = [
        helper.make_node("Div", ["x", "zero"], ["a"], name="first"),
        helper.make_node("Neg", ["a"], ["b"], name="second"),
        helper.make_node("Abs", ["b"], ["y"], name="third"),
    ]
    weights = {"zero": np.zeros((), np.float32)}
    graph = graph_of(nodes, [("x", FLOAT, [3])], [("y", FLOAT, [3])], weights)
    barred = barriers(graph, ["second"])
    assert barred is not None
    assert barred.op_counts()["Max"] == 2  # before it and behind it
    feeds = {"x": np.array([1, -1, 0], np.float32)}
    np.testing.assert_array_equal(run_as_written(barred)(feeds)["y"], run_as_written(graph)(feeds)["y"])
    assert barriers(graph, ["none"]) is None


def test_barriers_keep_an_attention_from_being_taken_for_one() -> None:
    case = self_attention()
    barred = barriers(case.graph, ["SoftmaxAttention"])
    assert barred is not None
    assert fuse(case.graph)[1].found
    assert not fuse(barred)[1].found
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 7, 8)).astype(np.float32)}
    np.testing.assert_array_equal(run_as_written(barred)(feeds)["y"], run_as_written(case.graph)(feeds)["y"])


def test_remedies_come_cheapest_first_and_their_commands_parse(tmp_path: Path) -> None:
    known = Known(parts(tmp_path, BuildConfig("float16")), ("SoftmaxAttention",), ("SoftmaxAttention", "query"))
    known = dataclasses.replace(known, fixed="FIXED.onnx")
    found = {remedy.words: command(known, remedy, "m.engine") for remedy in remedies(known)}
    assert list(found) == [
        "built again as it was",
        "com.microsoft.MultiHeadAttention for SoftmaxAttention",
        "float32 for the failing nodes",
        "float32 for the failing sections",
        "no fusion across the failing nodes",
        "operator set 21",
        "bfloat16 for all",
        "float32 for all",
    ]
    assert "forms={'SoftmaxAttention': 'com.microsoft.MultiHeadAttention'}" in found.pop(
        "com.microsoft.MultiHeadAttention for SoftmaxAttention"
    )
    parser = argparse.ArgumentParser()
    configure(parser)
    args = {words: parser.parse_args(shlex.split(line)[2:]) for words, line in found.items()}
    assert args["float32 for the failing sections"].keep == ["SoftmaxAttention", "query"]
    assert args["float32 for all"].precision is None
    assert args["bfloat16 for all"].precision == "bf16"
    assert args["operator set 21"].model == Path("FIXED.onnx")
    assert args["built again as it was"].model == tmp_path / "m.onnx"


def test_a_float32_engine_is_offered_no_precision(tmp_path: Path) -> None:
    words = [remedy.words for remedy in remedies(Known(parts(tmp_path), ("SoftmaxAttention",)))]
    assert not any("float" in item or "calibration" in item for item in words)


@pytest.mark.parametrize(
    ("ratios", "chosen"), [([1.0, 0.9], "first"), ([1.0, 0.7], "second"), ([None, 0.9], "second"), ([None, None], None)]
)
def test_the_first_cure_stays_unless_another_is_far_faster(ratios: list[float | None], chosen: str | None) -> None:
    rungs = [
        Rung(name, "", ratio is not None, 0.0, ratio) for name, ratio in zip(("first", "second"), ratios, strict=True)
    ]
    report = BisectReport("m.engine", "m.onnx", "openvino", "float16", reasons=("it fails",), ladder=tuple(rungs))
    assert (report.remedy and report.remedy.remedy) == chosen
