"""Attentions whose queries and keys are rounded: where, when, and what OpenVINO makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import nn

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import to_backend
from edgeattn.ops.base import DOMAIN
from edgeattn.ops.softmax_attention_cases import Cross, MultiHead, Sagan
from edgeattn.precision.int8.improve import ROUNDED, quantise_best
from edgeattn.precision.int8.qdq import quantise
from edgeattn.precision.ranges import Ranges
from edgeattn.tensors import random_feeds, resolve_profile
from tests.graphs import FLOAT, graph_of, self_attention
from tests.models import ConvNonLocal, TinyViT
from tests.precision.lowered import observed, sqnr, traced

MODULES = {
    "map": (Sagan, ((2, 16, 5, 7),)),
    "convolutions": (ConvNonLocal, ((1, 3, 16, 16),)),
    "transformer": (TinyViT, ((1, 3, 32, 32),)),
    "cross": (Cross, ((2, 5, 12), (2, 7, 9), (2, 7, 7))),
    "masked": (lambda: MultiHead(mask=True), ((2, 5, 12),)),
}


def network(make: Callable[[], nn.Module], shapes: tuple[tuple[int, ...], ...]) -> Graph:
    torch.manual_seed(0)
    return traced(make(), tuple(torch.randn(shape) for shape in shapes))


def calibrated(graph: Graph, seeds: int = 8) -> tuple[Graph, Ranges, list[dict[str, Any]]]:
    """A graph fused, its ranges, and the feeds that showed them."""
    fused, _ = fuse(graph)
    shapes = {name: spread.opt for name, spread in resolve_profile(fused.inputs).items()}
    feeds = [random_feeds(fused.inputs, shapes, seed) for seed in range(seeds)]
    return fused, observed(to_backend(fused, "openvino"), *feeds), feeds


def rounded(graph: Graph) -> dict[str, ir.DataType]:
    """What is rounded at run time, and to which codes."""
    nodes = (node for node in graph.model.graph if node.op_type == "QuantizeLinear")
    return {str(node.inputs[0].name): node.outputs[0].dtype for node in nodes}  # type: ignore[union-attr,misc]


def signed(graph: Graph) -> set[ir.Value]:
    nodes = (node for node in graph.model.graph if node.op_type == "QuantizeLinear")
    return {node.inputs[0] for node in nodes if node.outputs[0].dtype == ir.DataType.INT8}  # type: ignore[misc]


def test_queries_and_keys_are_rounded_symmetrically_and_nothing_else_of_an_attention() -> None:
    fused, ranges, _ = calibrated(self_attention().graph)
    plain, found = (quantise(fused, ranges, "shifted", attention=on) for on in (False, True))
    more = rounded(found.graph).items() - rounded(plain.graph).items()
    assert dict(more) == {"q": ir.DataType.INT8, "k": ir.DataType.INT8}
    assert "all of it but the queries and keys, which are rounded" in " ".join(found.notes)


def test_rounding_goes_before_the_moves_that_only_an_attention_sees() -> None:
    fused, ranges, _ = calibrated(network(*MODULES["map"]))
    found = quantise(fused, ranges, "shifted", attention=True).graph
    makers = {value.producer() for node in found.model.graph for value in node.inputs if value in signed(found)}
    assert [node.op_type for node in makers if node is not None] == ["Conv", "Conv"]


def test_what_is_an_output_too_is_not_rounded_before_it() -> None:
    """A query that is kept, as a cache or a feature, keeps its values."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["made"], name="query"),
        helper.make_node("Transpose", ["made"], ["q"], name="turn", perm=[1, 0, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], name="softmax"),
        helper.make_node("MatMul", ["weights", "v"], ["y"], name="mix"),
    ]
    inputs = [("x", FLOAT, [5, 2, 8]), ("kt", FLOAT, [2, 8, 7]), ("v", FLOAT, [2, 7, 8])]
    weights = {"w": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)}
    graph = graph_of(nodes, inputs, [("y", FLOAT, [2, 5, 8]), ("q", FLOAT, [2, 5, 8])], weights)
    fused, ranges, feeds = calibrated(graph)
    plain, found = (quantise(fused, ranges, "shifted", attention=on).graph for on in (False, True))
    assert signed(found)
    kept = [run_as_written(to_backend(item, "openvino"))(feeds[0])["q"] for item in (plain, found)]
    np.testing.assert_array_equal(*kept)


@pytest.mark.parametrize("scheme", ["signed", "unsigned"])
def test_only_a_scheme_with_a_kernel_for_it_rounds_them(scheme: str) -> None:
    fused, ranges, _ = calibrated(self_attention().graph)
    graphs = [quantise(fused, ranges, scheme, attention=on).graph for on in (False, True)]
    assert graphs[0].serialized == graphs[1].serialized


def test_an_attention_that_is_kept_high_stays_as_it_is() -> None:
    fused, ranges, feeds = calibrated(self_attention().graph)
    (name,) = (str(node.name) for node in fused.model.graph if node.domain == DOMAIN)
    found = quantise_best(fused, ranges, "shifted", [name], samples=feeds)
    assert found.kept[name] == "kept high as asked"
    assert not signed(found.graph)


def test_it_is_done_where_samples_show_it_to_be_harmless_and_said() -> None:
    fused, ranges, feeds = calibrated(self_attention().graph)
    found = quantise_best(fused, ranges, "shifted", samples=feeds)
    assert signed(found.graph)
    assert any(note.startswith("queries and keys of attentions: rounded: SQNR") for note in found.notes)
    assert not signed(quantise_best(fused, ranges, "shifted", samples=feeds[:7]).graph)
    assert ROUNDED in found.improved
    for improve in ((), (ROUNDED,)):
        found = quantise_best(fused, ranges, "shifted", samples=feeds, improve=improve)
        assert bool(signed(found.graph)) == bool(improve)


def test_an_attention_that_loses_by_it_stays_in_float_and_it_is_said() -> None:
    graph = self_attention().graph
    for name, factor in (("wq", 1e3), ("wk", 1e-3)):  # in 8 bits, the other channels of a query are then all zero
        value = graph.model.graph.initializers[name]
        weights = np.array(value.const_value.numpy())  # type: ignore[union-attr]
        weights[:, 0] *= factor
        value.const_value = ir.tensor(weights, name=name)
    fused, ranges, feeds = calibrated(graph)
    found = quantise_best(fused, ranges, "shifted", samples=feeds)
    assert any("queries and keys of attentions: left in float" in note for note in found.notes)
    assert not signed(found.graph)


@pytest.mark.parametrize("name", MODULES)
def test_openvino_computes_what_stands_in_the_graph_and_the_attention_in_int8(name: str) -> None:
    module = backend_named("openvino")
    if reasons := module.missing():
        pytest.skip("; ".join(reasons))
    fused, ranges, feeds = calibrated(network(*MODULES[name]))
    layers = []
    for on in (False, True):
        typed = to_backend(quantise(fused, ranges, module.INT8, attention=on).graph, "openvino")
        engine = module.build(typed, BuildConfig(precision="int8", profile=resolve_profile(typed.inputs)))
        layers.append(engine.sidecar.precision.compute["int8"])
        with module.load(engine) as session:
            found = session.run(feeds[0])
        written, truth = (run_as_written(graph)(feeds[0]) for graph in (typed, to_backend(fused, "openvino")))
        assert sqnr(found, truth) > sqnr(written, truth) - 3
    assert layers[1] > layers[0]
