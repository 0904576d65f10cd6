from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from edgeattn.backends.trt.plugins import launches, request_of, requests_in
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.kernels.launch import evaluate
from edgeattn.lowering import to_backend
from edgeattn.lowering.tensorrt import choose
from edgeattn.ops.base import DOMAIN, Tape
from edgeattn.tensors import random_feeds
from edgeattn.tolerance import tolerance_for
from tests.graphs import FLOAT, graph_of
from tests.plugins.offers import offer

B, H, N, D, E = 2, 3, 5, 4, 6


def maps(*, wide: bool = True) -> Graph:
    """Self-attention over the places of a map: (B, C, N) transposed to tokens and back."""
    out = E if wide else D
    nodes = [
        *(helper.make_node("Transpose", [name], [f"{name}t"], name=f"{name}t", perm=[0, 2, 1]) for name in "qv"),
        helper.make_node("MatMul", ["qt", "k"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "vt"], ["tokens"], name="mix"),
        helper.make_node("Transpose", ["tokens"], ["y"], name="back", perm=[0, 2, 1]),
    ]
    ports = [("q", FLOAT, [B, D, N]), ("k", FLOAT, [B, D, N]), ("v", FLOAT, [B, out, N])]
    return graph_of(nodes, ports, [("y", FLOAT, [B, out, N])])


def heads(*, seen: bool = False) -> Graph:
    """Multi-head attention over (B, N, H D) tokens; with `seen`, the result before its Transpose is given out, too."""
    nodes = [
        *(helper.make_node("Reshape", [name, "split"], [f"{name}s"], name=f"{name}s") for name in "qkv"),
        helper.make_node("Transpose", ["qs"], ["qt"], name="qt", perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["ks"], ["kt"], name="kt", perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["vs"], ["vt"], name="vt", perm=[0, 2, 1, 3]),
        helper.make_node("MatMul", ["qt", "kt"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "vt"], ["mixed"], name="mix"),
        helper.make_node("Transpose", ["mixed"], ["tokens"], name="back", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["tokens", "join"], ["y"], name="join"),
    ]
    constants = {"split": np.array([0, 0, H, D]), "join": np.array([0, 0, H * D])}
    results = [("y", FLOAT, [B, N, H * D]), *([("mixed", FLOAT, [B, H, N, D])] if seen else [])]
    return graph_of(nodes, [(name, FLOAT, [B, N, H * D]) for name in "qkv"], results, constants)


def scaled(*, reshaped: bool = True) -> Graph:
    """That over the places of a map (B, C, H, W), times gamma, on top of the map."""
    attention = maps()
    nodes = [ir.serde.serialize_node(node) for node in attention.model.graph]
    tail = [
        *([helper.make_node("Reshape", ["y", "shape"], ["map"], name="map")] if reshaped else []),
        helper.make_node("Mul", ["gamma", "map" if reshaped else "y"], ["part"], name="part"),
        helper.make_node("Add", ["x", "part"] if reshaped else ["part", "x"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["z"], name="relu"),
    ]
    shape = [B, E, 1, N] if reshaped else [B, E, N]
    constants = {"gamma": np.array([0.7], np.float32), **({"shape": np.array(shape)} if reshaped else {})}
    ports = [(spec.name, FLOAT, list(spec.shape or ())) for spec in attention.inputs]
    return graph_of([*nodes, *tail], [*ports, ("x", FLOAT, shape)], [("z", FLOAT, shape)], constants)


def scaled_batch_second() -> Graph:
    """A scaled sum on top of a result whose batch was moved behind its places, which no kernel writes."""
    attention = maps()
    nodes = [ir.serde.serialize_node(node) for node in attention.model.graph][:-1]
    tail = [
        helper.make_node("Transpose", ["tokens"], ["y"], name="back", perm=[1, 0, 2]),
        helper.make_node("Mul", ["gamma", "y"], ["part"], name="part"),
        helper.make_node("Add", ["part", "x"], ["z"], name="sum"),
    ]
    shape = [N, B, E]
    ports = [*((spec.name, FLOAT, list(spec.shape or ())) for spec in attention.inputs), ("x", FLOAT, shape)]
    return graph_of([*nodes, *tail], ports, [("z", FLOAT, shape)], {"gamma": np.array([0.7], np.float32)})


def as_plugin(graph: Graph, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Graph, ir.Node]:
    offer(folder, monkeypatch, requests_in(graph, ["float32"]))
    fused, _ = fuse(graph)
    lowered = to_backend(fused, "tensorrt", choose(fused, "plugin", "")[0])
    (node,) = [node for node in lowered.model.graph if node.domain == DOMAIN]
    return lowered, node


def played(graph: Graph) -> Graph:
    """The graph with what a plugin's node computes in plain operators: by its layouts, and softmax(scale q k^T) v."""
    edited = graph.copy()
    (node,) = [node for node in edited.model.graph if node.domain == DOMAIN]
    layouts, tape = request_of(node).layout, Tape()
    q, k, v = (
        tape.op("Transpose", [value], perm=[layout.index(axis) for axis in "bhnd"])
        for value, layout in zip(node.inputs[:3], layouts[:3], strict=True)
    )
    scale = np.array(node.attributes["scale"].as_float(), np.float32)
    scores = tape.op(
        "MatMul", [tape.op("Mul", [q, tape.constant(scale)]), tape.op("Transpose", [k], perm=[0, 1, 3, 2])]
    )
    y = tape.op("MatMul", [tape.op("Softmax", [scores], axis=-1), v])
    y = tape.op("Transpose", [y], perm=["bhnd".index(axis) for axis in layouts[3]])
    if request_of(node).adds:
        x, gamma = node.inputs[-2:]
        placed = tape.op("Reshape", [y, tape.op("Shape", [x])])
        y = tape.op("Add", [tape.op("Mul", [placed, gamma]), x])
    for number, value in enumerate([*tape.constants, *(made.outputs[0] for made in tape.nodes)]):
        value.name = f"{node.name}_played_{number}"
    for value in tape.constants:
        edited.model.graph.register_initializer(value)
    edited.model.graph.insert_before(node, tape.nodes)
    old = node.outputs[0]
    y.type, y.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    y.name, old.name = old.name, y.name
    edited.model.graph.remove(node, safe=True)
    return edited


@pytest.mark.parametrize(
    ("graph", "layout", "left"),
    [
        (maps(), "bhdn,bhdn,bhdn,bhdn", 0),
        (heads(), "bnhd,bnhd,bnhd,bnhd", 0),
        (heads(seen=True), "bnhd,bnhd,bnhd,bhnd", 1),
        (scaled(), "bhdn,bhdn,bhdn,bhdn", 0),
        (scaled(reshaped=False), "bhdn,bhdn,bhdn,bhdn", 0),
        (scaled_batch_second(), "bhdn,bhdn,bhdn,bhnd", 1),
    ],
    ids=["map", "heads", "result seen elsewhere", "residual", "residual without a map", "residual, batch second"],
)
def test_a_plugin_reads_and_writes_maps_and_tokens_as_they_lie(
    graph: Graph, layout: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered, node = as_plugin(graph, tmp_path, monkeypatch)
    assert node.attributes["layout"].as_string() == layout
    assert lowered.op_counts().get("Transpose", 0) == left
    assert request_of(node) == requests_in(graph, ["float32"])[0]
    assert [spec.name for spec in lowered.outputs] == [spec.name for spec in graph.outputs]
    feeds = random_feeds(graph.inputs, {spec.name: spec.shape for spec in graph.inputs}, seed=0)  # type: ignore[misc]
    found, truth = run_as_written(played(lowered))(feeds), run_as_written(graph)(feeds)
    for name, expected in truth.items():
        assert np.abs(found[name] - expected).max() <= tolerance_for("float32").floor * np.abs(expected).max()


def test_a_scaled_sum_is_done_along_where_nothing_else_sees_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered, node = as_plugin(scaled(), tmp_path, monkeypatch)
    assert lowered.op_counts() == {"Unsqueeze": 3, "edgeattn::SoftmaxAttention": 1, "Relu": 1}
    request = request_of(node)
    assert request.inputs == ("q", "k", "v", "x", "gamma")
    assert request.shapes[3:] == ((B, E, 1, N), (1,))
    assert request.output == ((3, 0), (3, 1), (3, 2), (3, 3))
    (launch,) = launches(request, 87)
    assert {"x", "gamma"} <= set(launch.pointers)
    assert "residual" not in as_plugin(maps(), tmp_path, monkeypatch)[1].attributes


def test_strides_follow_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for graph, tokens, channels in ((maps(), 1, N), (heads(), H * D, 1)):
        request = request_of(as_plugin(graph, tmp_path, monkeypatch)[1])
        (launch,) = launches(request, 87)
        assert evaluate(launch.integers["q_token"], {}) == evaluate(launch.integers["y_token"], {}) == tokens
        assert evaluate(launch.integers["q_channel"], {}) == channels
        assert request.output == tuple((2 if axis == "d" else 0, place) for place, axis in enumerate(request.layout[3]))
