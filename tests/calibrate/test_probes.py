"""Where calibration looks, and that it sees what the graph computes: against ONNX Runtime without optimisations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from edgeattn.calibrate.look import observed_shapes, open_look
from edgeattn.calibrate.probes import Derived, Probes, probes
from edgeattn.graph import Graph
from edgeattn.normalise import infer_types
from tests.graphs import FLOAT, graph_of, self_attention


def convolutions(channels: int, opset: int = 18) -> Graph:
    """relu(conv(relu(conv(x))) + conv(x)), pooled, flattened, a product with a bias, and Gelu."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((channels, 3, 3, 3)),
        "w2": rng.standard_normal((channels, channels, 3, 3)) / channels,
        "w3": rng.standard_normal((channels, 3, 1, 1)),
        "w4": rng.standard_normal((channels, 5)),
        "bias": rng.standard_normal(5),
        "root": np.array(2**0.5),
        "one": np.array(1.0),
        "half": np.array([0.5]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "w3"], ["skip"]),
        helper.make_node("Add", ["c", "skip"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w4"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
        helper.make_node("Div", ["biased", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["shifted"]),
        helper.make_node("Mul", ["biased", "shifted"], ["twice"]),
        helper.make_node("Mul", ["twice", "half"], ["y"]),
    ]
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    graph = graph_of(nodes, [("x", FLOAT, [1, 3, 9, 7])], [("y", FLOAT, [1, 5])], arrays, opset)
    infer_types(graph.model)
    return graph


def computed(graph: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
    """Every value of a graph, without optimisations."""
    shown = graph.copy()
    main = shown.model.graph
    main.outputs.extend(value for node in main for value in node.outputs if not value.is_graph_output())
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.serialized, options)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True)) | feeds


def attention() -> Graph:
    graph = self_attention(batch=1).graph
    infer_types(graph.model)
    return graph


def gated(reader: str) -> Graph:
    """A map times a gate, in a sum with the input, or read by something else."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Sigmoid", ["pooled"], ["gate"]),
        helper.make_node("Mul", ["gate", "map"], ["left"]),
        helper.make_node(reader, ["left", "x"] if reader == "Add" else ["left"], ["y"]),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32)}
    graph = graph_of(nodes, [("x", FLOAT, [1, 3, 9, 7])], [("y", FLOAT, [1, 3, 9, 7])], weights, 13)
    infer_types(graph.model)
    return graph


GRAPHS = {
    "full-blocks": convolutions(32),
    "blocks-with-a-rest": convolutions(19),
    "one-channel": convolutions(1),
    "old-opset": convolutions(16, opset=13),
    "attention": attention(),
    "gate": gated("Add"),
}


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return GRAPHS[request.param]


def feeds_of(graph: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in graph.inputs}


def look(graph: Graph, plan: Probes, feeds: dict[str, Any]) -> dict[str, Any]:
    """The values in a run; one before it must leave no trace."""
    shapes = observed_shapes(graph, plan.observed, {name: array.shape for name, array in feeds.items()})
    looked = open_look(graph, plan.observed, shapes, 1)
    looked({name: np.full_like(array, 1e3) for name, array in feeds.items()})
    return looked(feeds)


def test_what_is_seen_is_what_the_graph_computes(graph: Graph) -> None:
    plan, feeds = probes(graph.model.graph), feeds_of(graph)
    exact, seen = computed(graph, feeds), look(graph, plan, feeds)
    assert set(seen) == set(plan.observed)
    for name, array in seen.items():
        # In another order, perhaps: float32 rounds a sum of fewer than a thousand terms to about this.
        np.testing.assert_allclose(np.sort(array.ravel()), np.sort(exact[name].ravel()), rtol=1e-4, atol=1e-5)
        assert plan.observed[name] is None or exact[name].min() >= plan.observed[name]


def test_what_follows_is_what_the_graph_computes(graph: Graph) -> None:
    plan, exact = probes(graph.model.graph), computed(graph, feeds_of(graph))
    assert plan.derived
    for name, item in plan.derived.items():
        of = exact[item.of].astype(np.float64)
        ends = sorted((of.min() * item.factor, of.max() * item.factor))
        ends = [min(ends[0], 0), max(ends[1], 0)] if item.shrunk else ends
        reach = 1e-5 * np.abs(exact[name]).max()
        low, high = exact[name].min() - ends[0] - item.least, exact[name].max() - ends[1] - item.most
        assert low >= -reach
        assert high <= reach
        if item.least == item.most == 0 and not item.shrunk:
            assert max(abs(low), abs(high)) <= reach


def test_every_value_is_known_but_those_that_runtimes_fuse_away() -> None:
    plan = probes(convolutions(32).model.graph)
    assert set(plan.observed) == {"x", "b", "c", "skip", "d", "pooled", "biased", "y"}
    assert set(plan.derived) == {"flat", "product", "scaled", "twice"}
    assert [name for name, floor in plan.observed.items() if floor == 0] == ["b", "d"]


def test_scores_are_known_before_and_after_their_scale() -> None:
    plan = probes(attention().model.graph)
    known = {*plan.observed, *plan.derived}
    assert {"x", "q", "scaled", "k", "kt", "v", "scores", "weights", "y"} == known
    assert plan.derived["q"].of == "scaled"
    assert plan.derived["kt"].of == "k"


def test_what_a_gate_leaves_is_looked_at_unless_a_sum_alone_reads_it() -> None:
    assert probes(gated("Add").model.graph).derived["left"] == Derived("map", shrunk=True)
    assert "left" in probes(gated("Tanh").model.graph).observed


def test_what_is_shrunk_is_not_moved_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk, moved = Derived("map", 2.0, shrunk=True), Derived("left", -1.0, -5.0, -5.0)
    assert moved.after(shrunk) is None
    assert shrunk.after(moved) == Derived("left", -2.0, -10.0, -10.0, True)
    assert Derived("left", -1.0).after(shrunk) == Derived("map", -2.0, shrunk=True)
    links = {"left": shrunk, "y": moved}
    monkeypatch.setitem(probes.__globals__, "_link", lambda value: links.get(value.name))
    plan = probes(gated("Add").model.graph)
    assert plan.derived == {"y": moved}
    assert "left" in plan.observed


def test_weights_of_an_attention_are_looked_at_where_constants_multiply_them() -> None:
    def plan(operand: str) -> Probes:
        nodes = [helper.make_node("Softmax", ["x"], ["p"]), helper.make_node("MatMul", ["p", operand], ["y"])]
        weights = {"w": np.eye(4, dtype=np.float32)}
        inputs = [("x", FLOAT, [4, 4]), ("v", FLOAT, [4, 4])]
        graph = graph_of(nodes, inputs, [("y", FLOAT, [4, 4])], weights, 13)
        infer_types(graph.model)
        return probes(graph.model.graph)

    assert plan("v").derived["p"] == Derived("x", 0.0, 0.0, 1.0)
    assert "p" in plan("w").observed


def test_a_half_precision_convolution_is_seen() -> None:
    """ONNX Runtime computes it in float32 between casts; what leaves is of the declared type."""
    half = onnx.TensorProto.FLOAT16
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["y"])]
    weights = {"w": np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float16)}
    graph = graph_of(nodes, [("x", half, [1, 3, 9, 7])], [("y", half, [1, 16, 1, 1])], weights, 13)
    infer_types(graph.model)
    feeds = {name: array.astype(np.float16) for name, array in feeds_of(graph).items()}
    plan, exact = probes(graph.model.graph), computed(graph, feeds)
    for name, array in look(graph, plan, feeds).items():
        np.testing.assert_allclose(np.sort(array.ravel()), np.sort(exact[name].ravel()), rtol=4e-3, atol=4e-3)


def test_shapes_are_those_of_the_values_of_a_run() -> None:
    graph = self_attention(batch="batch").graph
    infer_types(graph.model)
    plan = probes(graph.model.graph)
    values = computed(graph, {"x": np.zeros((3, 7, 8), np.float32)})
    exact = {name: values[name].shape for name in plan.observed if name != "x"}
    assert observed_shapes(graph, plan.observed, {"x": (3, 7, 8)}) == {"x": (3, 7, 8), **exact}


def test_runs_of_other_shapes_and_shapes_that_nobody_knows_are_seen_too() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["places"]),
        helper.make_node("Cast", ["places"], ["found"], to=FLOAT),
        helper.make_node("Exp", ["found"], ["y"]),
    ]
    graph = graph_of(nodes, [("x", FLOAT, ["n"])], [("y", FLOAT, [1, None])], {}, 18)
    infer_types(graph.model)
    plan = probes(graph.model.graph)
    shapes = observed_shapes(graph, plan.observed, {"x": (4,)})
    assert "y" not in shapes
    looked = open_look(graph, plan.observed, shapes, 1)
    for x in ([1, -1, 2, 3], [0, 0, 0, 5], [1, 2]):
        seen = looked({"x": np.array(x, np.float32)})
        np.testing.assert_array_equal(seen["r"], np.maximum(x, 0))
        np.testing.assert_allclose(seen["y"], np.exp(np.flatnonzero(np.array(x) > 0))[None], rtol=1e-6)


def test_a_graph_of_which_only_the_inputs_are_looked_at_is_seen() -> None:
    graph = graph_of(
        [helper.make_node("Transpose", ["x"], ["y"])], [("x", FLOAT, [2, 3])], [("y", FLOAT, [3, 2])], {}, 18
    )
    infer_types(graph.model)
    plan, feeds = probes(graph.model.graph), feeds_of(graph)
    assert set(look(graph, plan, feeds)) == {"x"}


def test_a_shape_that_was_inferred_wrong_does_no_harm(graph: Graph) -> None:
    plan, feeds = probes(graph.model.graph), feeds_of(graph)
    shapes = observed_shapes(graph, plan.observed, {name: array.shape for name, array in feeds.items()})
    right = look(graph, plan, feeds)
    wrong = {name: shape if name in feeds else (*shape[:-1], shape[-1] + 1) for name, shape in shapes.items()}
    for name, array in open_look(graph, plan.observed, wrong, 1)(feeds).items():
        np.testing.assert_array_equal(array, right[name])


def test_threads_do_not_see_each_other(graph: Graph) -> None:
    plan, feeds = probes(graph.model.graph), feeds_of(graph)
    shapes = observed_shapes(graph, plan.observed, {name: array.shape for name, array in feeds.items()})
    looked = open_look(graph, plan.observed, shapes, 1)
    with ThreadPoolExecutor(2) as pool:
        scaled = [{name: (index + 1) * array for name, array in feeds.items()} for index in range(8)]
        peaks = list(pool.map(lambda fed: {name: array.max() for name, array in looked(fed).items()}, scaled))
    for fed, seen in zip(scaled, peaks, strict=True):
        for name, array in looked(fed).items():
            np.testing.assert_array_equal(seen[name], array.max())
