from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.cli import main
from edgeattn.errors import InferenceError
from edgeattn.graph import Graph, save_graph
from edgeattn.parity import check_parity, reference_from_graph
from edgeattn.tensors import resolve_profile
from tests.graphs import FLOAT, graph_of

Array = NDArray[Any]
X = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
LABELS = [int(row.argmax()) for row in X]


def scaled(weights: Array) -> Graph:
    """Scores that are the input times weights."""
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    return graph_of(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])], {"w": weights.astype(np.float32)})


def opened(weights: Array) -> Session:
    graph, module = scaled(weights), backend_named("onnxruntime")
    config = BuildConfig(precision="float32", profile=resolve_profile(graph.inputs))
    return module.load(module.build(graph, config))


def batch(labels: list[int] | None = LABELS) -> list[tuple[list[str], dict[str, Array], list[int] | None]]:
    return [([f"{row}" for row in range(len(X))], {"x": X}, labels)]


ONES = np.ones(4)
NEAR = np.array([1 + 1e-5, 1, 1, 1])
WRONG = np.array([5.0, 1, 1, 1])


def test_rebuilds_are_held_against_the_original_and_against_the_engine() -> None:
    with opened(ONES) as engine, opened(NEAR) as near, opened(WRONG) as wrong:
        report = check_parity(
            engine, reference_from_graph(scaled(ONES)), batch(), "float32", latency=False, max_drop={"top1": 0.05},
            rebuilds=[("aa", near), ("bb", wrong)],
        )  # fmt: skip
    one, two = report.rebuilds
    expected = np.linalg.norm(X * (NEAR - 1)) / np.linalg.norm(X)
    assert (one.name, one.plan_sha256, one.failures) == ("rebuild 1", "aa", ())
    assert one.spread_l2 == pytest.approx(expected, rel=0.1)
    assert one.relative_l2 == pytest.approx(expected, rel=0.1)
    assert one.metrics == {"top1": 1.0}
    assert not two.passed
    assert two.metrics["top1"] == np.mean((X * WRONG).argmax(1) == LABELS) < 0.9
    assert report.outputs[0].passed
    assert not report.passed
    assert all(reason.startswith("rebuild 2: ") for reason in report.reasons)
    assert any(reason.startswith("rebuild 2: top1 drops by ") for reason in report.reasons)


def test_without_samples_rebuilds_run_at_the_corners() -> None:
    with opened(ONES) as engine, opened(NEAR) as near:
        report = check_parity(
            engine, reference_from_graph(scaled(ONES)), None, "float32", seed=0, latency=False, rebuilds=[("", near)]
        )
    assert 0 < report.rebuilds[0].spread_l2 < 1e-5
    assert report.rebuilds[0].metrics == {}


def test_a_rebuild_that_cannot_run_is_an_error_of_the_whole() -> None:
    def infer(feeds: dict[str, Array]) -> dict[str, Array]:
        raise InferenceError("out of memory")

    with opened(ONES) as engine, opened(ONES) as broken:
        broken.infer = infer
        with pytest.raises(InferenceError, match="out of memory"):
            check_parity(
                engine, reference_from_graph(scaled(ONES)), batch(None), "float32", latency=False,
                rebuilds=[("", broken)],
            )  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_graph(scaled(ONES), "m.onnx")
    assert main(["build", "m.onnx", "--backend", "onnxruntime", "-q"]) == 0
    return tmp_path / "m.engine"


def test_the_command_builds_again_from_the_graph_that_the_sidecar_names(engine: Path) -> None:
    words = ["parity", "m.engine", "--against", "m.onnx", "--random", "--no-latency", "--rebuilds", "2", "-q"]
    assert main([*words, "--json", "r.json", "--html", "r.html", "--junit", "r.xml"]) == 0
    found = json.loads(Path("r.json").read_text())["rebuilds"]
    assert [(rebuild["name"], rebuild["spread_l2"]) for rebuild in found] == [("rebuild 1", 0), ("rebuild 2", 0)]
    assert len(found[0]["plan_sha256"]) == 64
    assert "built 2 times more" in Path("r.html").read_text()
    assert Path("r.xml").read_text().count('name="rebuild ') == 2
    assert {path.name for path in engine.parent.iterdir()} == {
        "m.onnx", "m.engine", "m.engine.json", "r.json", "r.html", "r.xml",
    }  # fmt: skip


def test_int8_is_built_again_on_the_samples_that_calibrated_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = {"w": np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)}
    save_graph(graph_of(nodes, [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 8])], weights), "m.onnx")
    for folder, rows in (("data", X), ("other", -X)):
        Path(folder).mkdir()
        for row, x in enumerate(rows):
            np.savez(f"{folder}/{row}.npz", x=x[None])
    assert main(["build", "m.onnx", "--int8", "--data", "data", "--backend", "openvino", "-q"]) == 0
    words = ["parity", "m.engine", "--against", "m.onnx", "--no-latency", "--rebuilds", "1", "-q", "--data"]
    assert main([*words, "data", "--json", "r.json"]) == 0
    assert json.loads(Path("r.json").read_text())["rebuilds"][0]["spread_l2"] == 0
    assert main([*words, "other"]) == 5
    assert "other is not what m.engine was calibrated on" in capsys.readouterr().err


def test_a_graph_that_has_changed_since_is_refused(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_graph(scaled(NEAR), "m.onnx")
    words = ["parity", "m.engine", "--against", "m.onnx", "--random", "--no-latency"]
    assert main([*words, "--rebuilds", "1"]) == 5
    assert "m.onnx has changed since m.engine was built from it" in capsys.readouterr().err
