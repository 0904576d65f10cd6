"""Engines that are really broken, each in a known place: it is found, nothing else is blamed, and the remedy cures."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeattn.bisect import bisect_engine
from edgeattn.build import build_engine
from edgeattn.cli import main
from edgeattn.cli.bisect import after_parity
from edgeattn.errors import InputError
from edgeattn.graph import Graph, save_graph
from edgeattn.parity import compare_files
from tests.bisected import edited, samples
from tests.graphs import FLOAT, Array, graph_of

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
    assert culprit.module.startswith("features.4.body")
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


def test_a_plan_that_was_changed_is_told_from_its_graph(tmp_path: Path) -> None:
    save_graph(row(matrices(8)), tmp_path / "good.onnx")
    build_engine(tmp_path / "good.onnx", tmp_path / "m.engine", backend="onnxruntime")
    edited(tmp_path / "m.engine", tmp_path / "m.engine", lambda w: -2 * w, "w5")
    with pytest.raises(InputError, match="--trust"):
        bisect_engine(tmp_path / "m.engine", str(tmp_path / "good.onnx"))
    report = bisect_engine(tmp_path / "m.engine", str(tmp_path / "good.onnx"), trust=True)
    assert [culprit.nodes for culprit in report.culprits] == [("product5",)]
    assert report.notes == ()
    assert report.remedy is not None
    assert report.remedy.remedy == "built again as it was"


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


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good.onnx`, sixteen products, eight samples, and `bad.engine`, of which the tenth is wrong."""
    folder = tmp_path_factory.mktemp("rows")
    good = matrices(16)
    save_graph(row(good), folder / "good.onnx")
    save_graph(row([*good[:9], 2 * good[9], *good[10:]]), folder / "bad.onnx")
    build_engine(folder / "bad.onnx", folder / "bad.engine", backend="onnxruntime")
    samples(folder / "data", (1, 6))
    return folder


def test_without_attention_it_cuts_at_natural_places(rows: Path) -> None:
    report = bisect_engine(rows / "bad.engine", str(rows / "good.onnx"))
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


def test_builds_are_bounded(rows: Path) -> None:
    report = bisect_engine(rows / "bad.engine", str(rows / "good.onnx"), max_builds=6)
    assert 0 < report.builds <= 8
    assert report.first


def test_a_good_engine_is_left_alone(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bisect", str(rows / "bad.engine"), "--against", str(rows / "bad.onnx"), "--json", "-q"]
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


def test_an_interrupt_leaves_nothing_behind(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(rows.iterdir())

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeattn.bisect.culprit_in", interrupted)
    words = ["bisect", str(rows / "bad.engine"), "--against", str(rows / "good.onnx"), "-q"]
    assert main([*words, "-o", str(rows / "fixed.onnx")]) == 130
    assert sorted(rows.iterdir()) == before


def test_a_failed_parity_says_how_to_bisect_and_does_it(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["parity", str(rows / "bad.engine"), "--against", str(rows / "good.onnx"), "--no-latency"]
    words += ["--data", str(rows / "data"), "-q"]
    assert main(words) == 3
    hint = f"edgeattn bisect {rows / 'bad.engine'} --against {rows / 'good.onnx'} --data {rows / 'data'}"
    assert hint in capsys.readouterr().err
    assert main([*words, "--bisect"]) == 3
    assert "'product9'" in capsys.readouterr().out


def test_a_parity_whose_outputs_are_right_blames_no_part(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = compare_files(rows / "bad.engine", str(rows / "bad.onnx"), latency=False)
    after_parity(argparse.Namespace(bisect=True), dataclasses.replace(report, reasons=("top1 drops by 5.0 %",)))
    assert "no part of the engine is to blame" in capsys.readouterr().err


def test_samples_are_looked_at_until_some_fail(tmp_path: Path) -> None:
    """Doubles what is above 1000, which one sample of thirty is: the last."""

    def network(factor: float) -> Graph:
        nodes = [
            helper.make_node("MatMul", ["x", "w0"], ["h0"], name="product0"),
            helper.make_node("Greater", ["h0", "much"], ["high"], name="high"),
            helper.make_node("Mul", ["h0", "factor"], ["h1"], name="scale"),
            helper.make_node("Where", ["high", "h1", "h0"], ["y"], name="chosen"),
        ]
        weights = {"w0": matrices(1)[0], "much": np.array([1000], np.float32), "factor": np.array([factor], np.float32)}
        return graph_of(nodes, [("x", FLOAT, [1, 6])], [("y", FLOAT, [1, 6])], weights)

    save_graph(network(1), tmp_path / "good.onnx")
    save_graph(network(2), tmp_path / "bad.onnx")
    build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", backend="onnxruntime")
    samples(tmp_path / "data", (1, 6), 30)
    np.savez(tmp_path / "data" / "last.npz", x=1e4 * np.ones((1, 6), np.float32))
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "good.onnx"), data=tmp_path / "data")
    assert report.where == ("last.npz",)
    assert ["scale" in culprit.nodes for culprit in report.culprits] == [True]


def test_an_original_whose_values_have_other_names_is_laid_beside_by_its_operators(rows: Path, tmp_path: Path) -> None:
    other = onnx.load(rows / "good.onnx")
    names = {name: f"other_{name}" for node in other.graph.node for name in node.output}
    names["x"] = "image"
    for node in other.graph.node:
        for kind in (node.input, node.output):
            kind[:] = [names.get(name, name) for name in kind]
    for value in (*other.graph.input, *other.graph.output):
        value.name = names[value.name]
    del other.graph.value_info[:]
    onnx.save(other, tmp_path / "other.onnx")
    report = bisect_engine(rows / "bad.engine", str(tmp_path / "other.onnx"))
    assert [culprit.nodes for culprit in report.culprits] == [("product9",)]


def test_an_original_of_another_structure_is_judged_whole(tmp_path: Path) -> None:
    save_graph(row(matrices(3)), tmp_path / "good.onnx")
    save_graph(row(matrices(2)), tmp_path / "bad.onnx")
    build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", backend="onnxruntime")
    report = bisect_engine(tmp_path / "bad.engine", str(tmp_path / "good.onnx"))
    assert not report.passed
    assert report.remedy is not None
    assert report.remedy.remedy == "the original's own graph"
