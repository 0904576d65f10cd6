from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import GraphCase, self_attention

from edgeattn.errors import InferenceError
from edgeattn.graph import save_graph
from edgeattn.parity.reference import load_reference, reference_from_graph
from edgeattn.tolerance import TOLERANCES


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
