from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from edgeattn.errors import InferenceError
from edgeattn.graph import save_graph
from edgeattn.parity.reference import load_reference, reference_from_graph
from edgeattn.precision.fp16 import lower
from edgeattn.tolerance import TOLERANCES
from tests.graphs import FLOAT, GraphCase, graph_of, self_attention


@pytest.fixture(scope="module")
def case() -> GraphCase:
    return self_attention()


def feeds_of(rows: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((rows, 7, 8)).astype(np.float32)}


def test_a_graph_runs_as_it_is_written(case: GraphCase) -> None:
    feeds = feeds_of()
    want = case.compute({"x": feeds["x"].astype(np.float64)})["y"]
    reference = reference_from_graph(case.graph)
    for run in (reference.run, reference.oracle):
        (got,) = run(feeds)
        assert np.abs(got - want).max() <= TOLERANCES["float32"].floor * np.abs(want).max()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_low_run_of_a_graph_costs_what_the_dtype_costs(case: GraphCase, dtype: str) -> None:
    feeds = feeds_of()
    want = case.compute({"x": feeds["x"].astype(np.float64)})["y"]
    low = reference_from_graph(case.graph).low(feeds, dtype)
    assert low is not None
    error = np.linalg.norm(low[0] - want) / np.linalg.norm(want)
    assert TOLERANCES[dtype].unit / 8 < error < TOLERANCES[dtype].floor
    assert case.graph.weight_bytes().keys() == {"float32"}


def test_a_graph_has_no_low_run_in_its_own_precision(case: GraphCase) -> None:
    assert reference_from_graph(case.graph).low(feeds_of(), "float32") is None


def test_an_onnx_file_is_loaded_as_a_graph(case: GraphCase, tmp_path: Path) -> None:
    save_graph(case.graph, tmp_path / "m.onnx")
    reference = load_reference(str(tmp_path / "m.onnx"))
    assert reference.source == str(tmp_path / "m.onnx")
    assert reference.run(feeds_of())[0].shape == (3, 7, 8)


def test_a_reference_that_fails_says_so_in_edgeattns_words(case: GraphCase) -> None:
    with pytest.raises(InferenceError, match="the reference graph failed: "):
        reference_from_graph(case.graph).run({"x": np.zeros((1, 7, 9), np.float32)})


def test_rounding_leaves_the_graph_it_came_from_alone(case: GraphCase) -> None:
    before = {name: value.const_value for name, value in case.graph.model.graph.initializers.items()}
    reference_from_graph(case.graph).low(feeds_of(), "bfloat16")
    after = {name: value.const_value for name, value in case.graph.model.graph.initializers.items()}
    assert all(isinstance(tensor, ir.TensorProtocol) and tensor is after[name] for name, tensor in before.items())


def test_a_graph_that_holds_the_dtype_is_no_measure_of_its_cost(case: GraphCase) -> None:
    lowered = lower(case.graph, "float16").graph
    assert reference_from_graph(lowered).low(feeds_of(), "float16") is None


def test_the_low_run_rounds_what_every_node_makes() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"]), helper.make_node("Sub", ["twice", "x"], ["y"])]
    graph = graph_of(nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])])
    low = reference_from_graph(graph).low({"x": np.array([40000], np.float32)}, "bfloat16")
    assert low is not None
    assert low[0] == 79872 - 39936  # 40000 and 80000 to eight bits, exactly representable apart
    overflowing = reference_from_graph(graph).low({"x": np.array([40000], np.float32)}, "float16")
    assert overflowing is not None
    assert overflowing[0] == 40000  # twice that exceeds float16, so only the input is rounded
