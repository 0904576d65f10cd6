"""`build_best` with a budget: precision is searched too, and samples judge."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from onnx import helper

from edgeattn import search
from edgeattn.backends import open_session
from edgeattn.backends.base import BuildConfig
from edgeattn.build import BuildReport, build_engine
from edgeattn.calibrate.settings import CalibrationSettings
from edgeattn.data import Dataset, open_data
from edgeattn.engine import Engine, read_sidecar
from edgeattn.graph import Graph, save_graph
from edgeattn.images import Recipe
from edgeattn.interpreter import run_as_written
from edgeattn.precision.int8 import improve
from edgeattn.search import Budget, build_best
from tests.clock import few_rounds, slowed
from tests.graphs import FLOAT, Array, graph_of

BACKEND = "onnxruntime"


def network() -> Graph:
    """Three convolutions, the mean over places, and a classifier of 5."""
    generator = np.random.default_rng(0)

    def weights(*shape: int) -> Array:
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = []
    last = "x"
    for number in range(3):
        made = helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], name=f"conv{number}", pads=[1] * 4)
        nodes += [made, helper.make_node("Relu", [f"c{number}"], [f"r{number}"], name=f"relu{number}")]
        last = f"r{number}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "head"], ["y"], name="classifier", transB=1),
    ]
    stored = {"w0": weights(8, 3, 3, 3), "w1": weights(8, 8, 3, 3), "w2": weights(8, 8, 3, 3), "head": weights(5, 8)}
    return graph_of(nodes, [("x", FLOAT, ["batch", 3, 12, 12])], [("y", FLOAT, ["batch", 5])], stored)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    few_rounds(monkeypatch)
    save_graph(network(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Noise of different colours, labelled by the model itself."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator, run, graph = np.random.default_rng(1), run_as_written(network()), network()
    for number in range(24):
        x = (generator.standard_normal((1, 3, 12, 12)) + generator.standard_normal((1, 3, 1, 1))).astype(np.float32)
        np.savez(folder / f"{number:02}.npz", x=x, label=run({"x": x})["y"].argmax())
    return open_data(folder, graph.inputs)


def slow_float(monkeypatch: pytest.MonkeyPatch, *slow: str) -> None:
    """Let float32 take 30 ms more, and INT8 8 ms for each of the named nodes that are in it."""

    def delay_s(engine: Engine) -> float:
        nodes = onnx.load_from_string(engine.plan).graph.node
        if not any(node.op_type == "DequantizeLinear" for node in nodes):
            return 0.03
        made = {name: node for node in nodes for name in node.output}
        fed = {node.name: made.get(node.input[1]) for node in nodes if node.op_type in ("Conv", "Gemm")}
        lowered = {name for name, node in fed.items() if node is not None and node.op_type == "DequantizeLinear"}
        return 0.008 * len(lowered & set(slow))

    slowed(monkeypatch, delay_s)


def test_what_is_faster_and_keeps_the_budget_is_published(
    model: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_float(monkeypatch)
    output = model.with_suffix(".engine")
    report = build_best(model, output, backend=BACKEND, budget=Budget(data, {"cosine": 0.1, "top1": 0.1}))
    sidecar = read_sidecar(output)
    assert sidecar.precision.asked == report.plan.config.precision == "int8"
    assert sidecar.verified
    assert sidecar.verified["drops"]["top1"] <= 0.1
    asked = f"--best --backend {BACKEND} --data {data.folder} --max-drop cosine=0.1,top1=0.1 --min-shapes"
    assert asked in sidecar.rebuild
    assert "--int8" not in sidecar.rebuild
    rows = {row["candidate"]: row for row in sidecar.search}
    assert rows[BACKEND]["accuracy"]["top1"] == 1.0
    assert rows[f"{BACKEND}, int8"]["drops"]["cosine"] < 0.1
    assert any(row["pareto"] for row in rows.values())
    truth = run_as_written(network())
    with open_session(output) as session:
        feeds = next(iter(data)).feeds
        got, expected = session.run(feeds)["y"], truth(feeds)["y"]
    assert np.linalg.norm(got - expected) < 0.1 * np.linalg.norm(expected)
    chosen = onnx.load(output.with_name("model.engine.onnx"))
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in chosen.graph.node}
    assert not list(model.parent.glob(".*"))


def test_what_costs_too_much_accuracy_is_refused_however_fast(
    model: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_float(monkeypatch)
    report = build_best(model, model.with_suffix(".engine"), backend=BACKEND, budget=Budget(data, {"sqnr": 200.0}))
    assert report.plan.config.precision in ("", "float32")
    rows = {row["candidate"]: row for row in report.sidecar.search}
    assert rows[f"{BACKEND}, int8"]["verdict"].startswith("sqnr is")
    assert any("only" in name for name in rows)


def test_a_part_that_int8_slows_down_stays_out_of_it(
    model: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_float(monkeypatch, "conv1")
    asked = Mock(wraps=improve._by_gain)
    monkeypatch.setattr(improve, "_by_gain", asked)
    report = build_best(model, model.with_suffix(".engine"), backend=BACKEND, budget=Budget(data, {"cosine": 0.1}))
    assert report.plan.config.precision == "int8"
    assert report.plan.config.layer_precisions == {"conv1": "float32"}
    asked.assert_called_once()  # for the whole network; its parts follow it
    assert read_sidecar(report.path).config["improve"] == list(report.plan.config.improve or ())


def test_an_interrupted_search_goes_on_where_it_was(
    model: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_float(monkeypatch)
    built: list[str] = []

    def counted(graph: Graph, path: Path, config: BuildConfig, *args: object, **kwargs: object) -> BuildReport:
        if config.layer_precisions and "stop" not in built:
            built.append("stop")
            raise KeyboardInterrupt
        built.append(f"{config.precision} {sorted(config.layer_precisions)}")
        return build_engine(graph, path, config, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "build_engine", counted)
    budget = Budget(data, {"cosine": 0.01})
    with pytest.raises(KeyboardInterrupt):
        build_best(model, model.with_suffix(".engine"), backend=BACKEND, budget=budget)
    before = built.index("stop")
    build_best(model, model.with_suffix(".engine"), backend=BACKEND, budget=budget)
    # Engines from before are not built again, but for the winner's report.
    again = [name for name in built[before + 1 :] if name in built[:before]]
    assert len(again) <= 1
    assert not list(model.parent.glob(".*"))


def test_no_more_engines_are_built_than_the_budget_says(
    model: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_float(monkeypatch)
    report = build_best(
        model, model.with_suffix(".engine"), backend=BACKEND, budget=Budget(data, {"cosine": 0.01}, builds=3)
    )
    assert len(report.sidecar.search) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": CalibrationSettings("mse")},
        {"data": {"recipe": Recipe((12, 12))}},
        {"task": "classification"},
        {"max_drop": {"cosine": 0.2}},
    ],
    ids=str,
)
def test_an_interrupted_search_is_not_gone_on_with_in_another_way(changes: Any, model: Path, data: Dataset) -> None:
    budget = Budget(data, {"cosine": 0.01})
    other = {**changes, **({"data": dataclasses.replace(data, **changes["data"])} if "data" in changes else {})}
    graph, config = network(), BuildConfig()

    def written(budget: Budget, check: bool = True) -> str:
        return json.dumps(search._identity(graph, config, [BACKEND], check, budget), default=str)

    assert written(budget) == written(dataclasses.replace(budget, builds=3))
    assert written(budget) != written(dataclasses.replace(budget, **other))
    assert written(budget) != written(budget, check=False)


def test_who_interrupts_a_build_twice_does_not_rule_it_out(
    model: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object, **kwargs: object) -> BuildReport:
        raise KeyboardInterrupt

    budget, output = Budget(data, {"cosine": 0.01}, builds=1), model.with_suffix(".engine")
    with monkeypatch.context() as patch:
        patch.setattr(search, "build_engine", stopped)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                build_best(model, output, backend=BACKEND, budget=budget)
    assert build_best(model, output, backend=BACKEND, budget=budget).sidecar.search[0]["verdict"].startswith("chosen")
