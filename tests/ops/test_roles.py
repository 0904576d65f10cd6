from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeattn.fuse import _prepared
from edgeattn.ops.roles import back, counted, extents, size_of
from tests.graphs import Array
from tests.ops.exactness import graph_of

SIZES = {"b": "B", "h": "H", "w": "W", "k": 2}


def last_node(inputs: str, body: str, weights: dict[str, Array], rank: int = 1) -> ir.Node:
    shape = ", ".join(f"d{axis}" for axis in range(rank))
    graph, _ = _prepared(graph_of(f"({inputs}) => (float[{shape}] y)", body, weights))
    assert graph is not None
    node = graph.model.graph.outputs[0].producer()
    assert node is not None
    return node


@pytest.mark.parametrize(
    ("inputs", "body", "roles", "expected"),
    [
        ("float[B, N, 2] x", "y = Reshape (x, place)", ("b", "h", "w", "k"), ("b", "hw", "k")),
        ("float[B, 2, N] x", "y = Reshape (x, place)", ("b", "k", "h", "w"), ("b", "k", "hw")),
        ("float[M, N, 2] x", "y = Reshape (x, place)", ("b", "h", "w", "k"), None),  # two sizes are open
        ("float[H, W, 2] x", "y = Reshape (x, rows)", ("", "hw", "k"), ("h", "w", "k")),
        ("float[W, H, 2] x", "y = Reshape (x, rows)", ("", "hw", "k"), None),
        ("float[B, 2, H] x", "y = Transpose <perm = [2, 0, 1]> (x)", ("h", "b", "k"), ("b", "k", "h")),
        ("float[H, 1] x, int64[2] t", "y = Expand (x, t)", ("h", "w"), ("h", "")),
        ("float[N, 1] x, int64[2] t", "y = Expand (x, t)", ("h", "w"), None),  # N may be one
        ("float[H] x", "y = Unsqueeze (x, first)", ("h", ""), ("h",)),
        ("float[H] x", "y = Relu (x)", ("h",), None),
    ],
)
def test_roles_go_back_through_a_view_where_sizes_are_certain(
    inputs: str, body: str, roles: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    weights: dict[str, Array] = {"rows": np.array([1, -1, 2]), "first": np.array([1])}
    inputs += ", int64[4] place" if "place" in body else ""
    used = {name: array for name, array in weights.items() if name in body}
    assert back(last_node(inputs, body, used, len(roles)), roles, SIZES) == expected


def test_a_range_counts_up_to_a_size() -> None:
    weights: dict[str, Array] = {"one": np.array(1), "zero": np.array(0), "scale": np.array(3.0, np.float32)}
    body = """
        sizes = Shape (x)
        n = Gather (sizes, one)
        r = Range (zero, n, one)
        f = Cast <to = 1> (r)
        y = Mul (f, scale)"""
    node = last_node("float[B, N] x", body, weights)
    cast = node.inputs[0].producer()  # type: ignore[union-attr]
    made = cast.inputs[0]  # type: ignore[union-attr]
    assert counted(made) == "N"
    assert extents(node.outputs[0]) == ("N",)
    assert size_of(made.producer().inputs[1]) == "N"  # type: ignore[union-attr]
    assert counted(node.outputs[0]) is None
