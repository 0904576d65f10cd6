"""Small ONNX graphs, made by hand with onnx.helper and computed again by numpy in float64: no exporter between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeattn.graph import Graph

Array = NDArray[Any]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(frozen=True)
class GraphCase:
    """A graph and what it computes: `compute` maps float64 feeds to the outputs."""

    graph: Graph
    compute: Callable[[dict[str, Array]], dict[str, Array]]


def graph_of(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Array] | None = None, opset: int = 18
) -> Graph:
    """Put nodes together; inputs and outputs are `(name, element type, shape)`."""
    proto = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return Graph(ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)))


def self_attention(batch: int | str = "batch", tokens: int | str = 7, dim: int = 8, seed: int = 0) -> GraphCase:
    """softmax(x wq (x wk)^T / sqrt(dim)) x wv over tokens: x (batch, tokens, dim) to y of the same shape."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal((dim, dim)).astype(np.float32) for name in ("wq", "wk", "wv")}
    scale = np.float32(dim**-0.5)
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], name="key"),
        helper.make_node("MatMul", ["x", "wv"], ["v"], name="value"),
        helper.make_node("Mul", ["q", "scale"], ["scaled"], name="scale"),
        helper.make_node("Transpose", ["k"], ["kt"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["scaled", "kt"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"], name="mix"),
    ]
    shape = [batch, tokens, dim]
    graph = graph_of(nodes, [("x", FLOAT, shape)], [("y", FLOAT, shape)], {**weights, "scale": scale.reshape(())})

    def compute(feeds: dict[str, Array]) -> dict[str, Array]:
        x = feeds["x"].astype(np.float64)
        q, k, v = (x @ weights[name].astype(np.float64) for name in ("wq", "wk", "wv"))
        scores = np.exp(q @ k.transpose(0, 2, 1) * float(scale))
        return {"y": scores / scores.sum(axis=-1, keepdims=True) @ v}

    return GraphCase(graph, compute)


def gathered_gate(seed: int = 0) -> GraphCase:
    """Two inputs of two dtypes, two outputs: rows = table[ids]; y = x * sigmoid(rows), m = mean of y over features."""
    table = np.random.default_rng(seed).standard_normal((5, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="gather"),
        helper.make_node("Sigmoid", ["rows"], ["gate"], name="sigmoid"),
        helper.make_node("Mul", ["x", "gate"], ["y"], name="gate"),
        helper.make_node("ReduceMean", ["y", "axes"], ["m"], name="mean", keepdims=0),
    ]
    graph = graph_of(
        nodes,
        [("x", FLOAT, ["batch", 6]), ("ids", INT64, ["batch"])],
        [("y", FLOAT, ["batch", 6]), ("m", FLOAT, ["batch"])],
        {"table": table, "axes": np.array([1])},
    )

    def compute(feeds: dict[str, Array]) -> dict[str, Array]:
        y = feeds["x"] / (1 + np.exp(-table[feeds["ids"]].astype(np.float64)))
        return {"y": y, "m": y.mean(axis=1)}

    return GraphCase(graph, compute)
