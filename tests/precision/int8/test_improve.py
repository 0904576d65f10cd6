"""What is done to weights before they are rounded: exact where it should be, and kept only where it gains."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgeattn.errors import UsageError
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.precision.int8.equalise import Channels, equalise
from edgeattn.precision.int8.improve import STEPS, quantise_best
from edgeattn.precision.int8.placement import SCHEMES, place
from edgeattn.precision.int8.qdq import prepared, quantise
from edgeattn.precision.int8.weights import numbers
from tests.graphs import FLOAT, graph_of
from tests.precision.lowered import distance, observed

Array = np.ndarray[Any, Any]


def chain(kind: str, channels: int, seed: int, groups: int = 1) -> tuple[Graph, str]:
    """Two products with something between, and the name of the value whose channels can be scaled."""
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    if kind == "convolutions":
        nodes = [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="first"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("Conv", ["r", "w2", "b2"], ["y"], name="second", group=groups),
        ]
        inner = channels // groups
        weights = {"w1": weight(channels, 3, 2, 1), "b1": weight(channels), "w2": weight(channels, inner, 1, 2)}
        shapes: list[Any] = [2, 3, 5, 4], [2, channels, 4, 3]
        return graph_of(
            nodes, [("x", FLOAT, shapes[0])], [("y", FLOAT, shapes[1])], {**weights, "b2": weight(channels)}
        ), "r"
    if kind == "norm":
        nodes = [
            helper.make_node("LayerNormalization", ["x", "w1", "b1"], ["n"], name="norm", axis=-1),
            helper.make_node("MatMul", ["n", "w2"], ["m"], name="second"),
            helper.make_node("Add", ["m", "b2"], ["y"], name="bias"),
        ]
        weights = {"w1": weight(channels), "b1": weight(channels), "w2": weight(channels, 5), "b2": weight(5)}
        return graph_of(nodes, [("x", FLOAT, [2, 6, channels])], [("y", FLOAT, [2, 6, 5])], weights), "n"
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m"], name="first"),
        helper.make_node("Add", ["b1", "m"], ["a"], name="bias"),
        helper.make_node("LeakyRelu", ["a"], ["r"], name="leaky"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="second", transB=1),
    ]
    weights = {"w1": weight(4, channels), "b1": weight(channels), "w2": weight(5, channels), "b2": weight(5)}
    return graph_of(nodes, [("x", FLOAT, [7, 4])], [("y", FLOAT, [7, 5])], weights), "r"


def samples(graph: Graph, count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    spec = graph.inputs[0]
    return [{"x": (rng.standard_normal(spec.shape) + 0.5).astype(np.float32)} for _ in range(count)]


def noise(found: Graph, graph: Graph, feeds: list[dict[str, Array]]) -> float:
    runs = [run_as_written(item) for item in (found, graph)]
    got, truth = ([run(each)["y"] for each in feeds] for run in runs)
    return distance(got, truth)


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(["convolutions", "depthwise", "norm", "linear"]),
    channels=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_equalised_channels_compute_the_same_in_narrower_ranges(kind: str, channels: int, seed: int) -> None:
    graph, name = chain(
        kind.replace("depthwise", "convolutions"), channels, seed, channels if kind == "depthwise" else 1
    )
    feeds = samples(graph, 3, seed)
    ranges = observed(graph, *feeds)
    model = prepared(graph)
    placement = place(model.graph, 18, ranges, SCHEMES["shifted"], ())
    axis = 1 if kind in ("convolutions", "depthwise") else -1
    seen = {}
    for value in placement.points:
        key = str(value.name)
        arrays = [each["x"] if key == "x" else run_as_written(graph, every=True)(each)[key] for each in feeds]
        rows = [np.moveaxis(array, axis if key == name else -1, 0).reshape(array.shape[axis], -1) for array in arrays]
        if key == name:
            stacked = np.concatenate(rows, axis=1)
            seen[key] = Channels(stacked.min(1), stacked.max(1), stacked.mean(1))
    changed = equalise(model.graph, placement, seen)
    assert set(changed) <= {name}
    equalised = Graph(model)
    for each in feeds:
        truth = run_as_written(graph)(each)["y"]
        assert distance(run_as_written(equalised)(each)["y"], truth) < 1e-5
    if changed:
        values = np.concatenate([run_as_written(equalised, every=True)(each)[name].reshape(-1) for each in feeds])
        # Zero is always in the range that is rounded in.
        assert min(changed[name].low, 0) == pytest.approx(min(values.min(), 0), rel=1e-4, abs=1e-6)
        assert max(changed[name].high, 0) == pytest.approx(max(values.max(), 0), rel=1e-4, abs=1e-6)


def test_a_channel_far_larger_than_the_others_costs_no_accuracy_once_equalised() -> None:
    graph, _ = chain("norm", 16, 0)
    for name, factor in (("w1", 300), ("w2", 1 / 300)):
        value = graph.model.graph.initializers[name]
        array = numbers(value).astype(np.float32)
        array[3] *= factor
        value.const_value = ir.tensor(array, name=name)
    feeds, unseen = samples(graph, 8), samples(graph, 4, seed=1)
    ranges = observed(graph, *feeds)
    plain = quantise(graph, ranges, "signed")
    best = quantise_best(graph, ranges, "signed", samples=feeds)
    assert any(note.startswith("equalised channels: used") for note in best.notes)
    assert noise(best.graph, graph, unseen) < noise(plain.graph, graph, unseen) / 10


def test_steps_that_are_asked_for_are_taken_without_asking_what_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = chain("norm", 16, 0)
    feeds = samples(graph, 8)
    ranges = observed(graph, *feeds)
    monkeypatch.setattr("edgeattn.precision.int8.improve.MIN_GAIN_DB", -100)
    best = quantise_best(graph, ranges, "signed", samples=feeds)
    assert best.improved == ("equalised channels", "corrected biases")
    monkeypatch.setattr("edgeattn.precision.int8.improve._outputs", lambda *_: pytest.fail("asked"))
    again = quantise_best(graph, ranges, "signed", samples=feeds, improve=best.improved)
    assert again.graph.serialized == best.graph.serialized
    assert again.improved == best.improved
    assert [note for note in again.notes if note.endswith("as asked")] == [f"{what}: used, as asked" for what in STEPS]
    few = quantise_best(graph, ranges, "signed", samples=feeds[:7], improve=best.improved)
    assert few.improved == ()
    assert few.notes[-1] == "corrected biases: left out, since that takes 8 samples or more"
    with pytest.raises(UsageError, match="did you mean 'equalised channels'"):
        quantise_best(graph, ranges, "signed", samples=feeds, improve=("equalized channels",))
    plain = quantise(graph, ranges, "signed")
    for improve in ((), ("corrected biases",)):
        found = quantise_best(graph, ranges, "signed", samples=feeds, improve=improve)
        assert (found.graph.serialized == plain.graph.serialized) == (not improve)


def test_a_corrected_bias_takes_back_the_mean_that_rounding_shifts() -> None:
    rng = np.random.default_rng(0)
    w = rng.uniform(0.3, 1, (64, 5)).astype(np.float32)
    w[0] = 40  # which makes the steps large
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Add", ["m", "b"], ["y"], name="bias"),
    ]
    weights = {"w": w, "b": rng.standard_normal(5).astype(np.float32)}
    graph = graph_of(nodes, [("x", FLOAT, [3, 64])], [("y", FLOAT, [3, 5])], weights)
    feeds = [{"x": rng.uniform(0.9, 1.1, (3, 64)).astype(np.float32)} for _ in range(8)]
    ranges = observed(graph, *feeds)
    best = quantise_best(graph, ranges, "unsigned", samples=feeds)
    assert any(note.startswith("corrected biases: used") for note in best.notes)
    means = [
        np.mean([run_as_written(item)(each)["y"] for each in feeds], axis=(0, 1))
        for item in (graph, quantise(graph, ranges, "unsigned").graph, best.graph)
    ]
    assert np.abs(means[2] - means[0]).max() < np.abs(means[1] - means[0]).max() / 3


def test_what_gains_nothing_is_left_out_and_said() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (6, 5)).astype(np.float32)
    w[0] = 127  # so that every weight is a code
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="product")
    graph = graph_of([node], [("x", FLOAT, [3, 6])], [("y", FLOAT, [3, 5])], {"w": w})
    feeds = samples(graph, 8)
    ranges = observed(graph, *feeds)
    best, plain = quantise_best(graph, ranges, "signed", samples=feeds), quantise(graph, ranges, "signed")
    assert [note.partition(",")[0] for note in best.notes[1:]] == [
        "equalised channels: left out",
        "corrected biases: left out",
    ]
    assert best.graph.serialized == plain.graph.serialized
    assert quantise_best(graph, ranges, "signed", samples=feeds[:7]).notes == plain.notes


@pytest.mark.parametrize("count", [2, 16])  # too few to improve anything, and enough
def test_a_node_that_does_nothing_can_be_kept_and_one_that_is_not_there_cannot(count: int) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    nodes = [
        helper.make_node("Identity", ["x"], ["same"], name="nothing"),
        helper.make_node("MatMul", ["same", "w"], ["y"], name="product"),
    ]
    graph = graph_of(nodes, [("x", FLOAT, [7, 4])], [("y", FLOAT, [7, 3])], weights)
    feeds = samples(graph, count)
    ranges = observed(graph, *feeds)
    assert quantise_best(graph, ranges, "signed", ["nothing"], samples=feeds).quantised == ("product",)
    with pytest.raises(UsageError, match="no node 'nothign' to keep high; did you mean 'nothing'"):
        quantise_best(graph, ranges, "signed", ["nothign"], samples=feeds)
