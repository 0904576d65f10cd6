"""Softmax attention in files of other types, opsets and tools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from edgeattn.fuse import FusionReport, fuse
from edgeattn.ops.softmax_attention import OP
from tests.graphs import FLOAT
from tests.ops.exactness import Sketch, attention, fused_and_same

HALF = TensorProto.FLOAT16


@pytest.mark.parametrize("opset", [13, 17, 20, 23])
def test_every_opset_is_searched(opset: int) -> None:
    sketch = Sketch()
    assert fused_and_same(sketch.graph(attention(sketch), opset, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2))).found


def test_a_float16_file_keeps_its_type() -> None:
    sketch = Sketch(HALF)
    graph = sketch.graph(attention(sketch), q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2))
    assert fused_and_same(graph).found


@pytest.mark.parametrize("where", ["scores", "operands", "values"])
@pytest.mark.parametrize("mask", [None, HALF, FLOAT, "fill"])
def test_a_float32_softmax_in_a_float16_file_stays_one(where: str, mask: int | str | None) -> None:
    sketch = Sketch(HALF)
    q, k = (sketch.op("Cast", name, to=FLOAT) if where == "operands" else name for name in "qk")
    scores = sketch.op("MatMul", q, sketch.op("Transpose", k, perm=[0, 2, 1]))
    if where == "operands" and mask == HALF:
        mask = FLOAT
    bias = np.where(np.eye(5, 7), -300, 0.3)
    if mask == HALF:
        scores = sketch.op("Add", scores, sketch.number(bias))
    if where != "operands":
        scores = sketch.op("Cast", scores, to=FLOAT)
    if mask == FLOAT:
        scores = sketch.op("Add", scores, sketch.constant(bias.astype(np.float32)))
    if mask == "fill":
        fill = sketch.constant(np.float32(-1e9))
        scores = sketch.op("Where", sketch.constant(np.arange(5)[:, None] < np.arange(1, 8)), fill, scores)
    weights = sketch.op("Softmax", scores, axis=-1)
    if where == "values":
        out = sketch.op("Cast", sketch.op("MatMul", weights, sketch.op("Cast", "v", to=FLOAT)), to=HALF)
    else:
        out = sketch.op("MatMul", sketch.op("Cast", weights, to=HALF), "v")
    report = fused_and_same(sketch.graph(out, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2)))
    kind = "" if mask is None else "filled-" if mask == "fill" else "bias-"
    assert [item.variant for item in report.found] == [f"{kind}f32softmax"]


@pytest.mark.parametrize(("types", "found"), [((FLOAT, HALF), True), ((FLOAT,), False)])
def test_weights_cast_to_and_fro_are_what_they_were(types: tuple[int, ...], found: bool) -> None:
    sketch = Sketch(HALF)
    weights = sketch.op("Softmax", sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 2, 1])), axis=-1)
    for dtype in types:
        weights = sketch.op("Cast", weights, to=dtype)
    v = "v" if found else sketch.op("Cast", "v", to=FLOAT)
    out = sketch.op("Cast", sketch.op("MatMul", weights, v), to=HALF)
    report = fused_and_same(sketch.graph(out, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2)))
    assert [item.variant for item in report.found] == ([""] if found else [])
    assert found or "expected the type of queries and values" in report.missed[0].reason


def test_weights_rounded_on_the_way_are_no_match() -> None:
    sketch = Sketch()
    weights = sketch.op("Softmax", sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 2, 1])), axis=-1)
    weights = sketch.op("Cast", sketch.op("Cast", weights, to=HALF), to=FLOAT)
    report = fused_and_same(sketch.graph(sketch.op("MatMul", weights, "v"), q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2)))
    assert not report.found
    assert report.missed


def test_scores_rounded_before_the_softmax_are_missed() -> None:
    sketch = Sketch()
    scores = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 2, 1]))
    weights = sketch.op("Softmax", sketch.op("Cast", scores, to=HALF), axis=-1)
    out = sketch.op("MatMul", sketch.op("Cast", weights, to=FLOAT), "v")
    report = fused_and_same(sketch.graph(out, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2)))
    assert not report.found
    assert "float into float16" in report.missed[0].reason


@pytest.mark.parametrize("peak", [True, False])
@pytest.mark.parametrize("axis", [2, 1])
def test_a_softmax_written_out_is_one(peak: bool, axis: int) -> None:
    sketch = Sketch()
    over = sketch.constant(np.array([axis]))
    value = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 2, 1]))
    if peak:
        value = sketch.op("Sub", value, sketch.op("ReduceMax", value, over, keepdims=1))
    top = sketch.op("Exp", value)
    weights = sketch.op("Div", top, sketch.op("ReduceSum", top, over, keepdims=1))
    report = fused_and_same(sketch.graph(sketch.op("MatMul", weights, "v"), q=(2, 5, 4), k=(2, 5, 4), v=(2, 5, 2)))
    assert bool(report.found) == (axis == 2)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_the_standard_operator_is_the_same_attention(rank: int, mask: str | None) -> None:
    sketch = Sketch()
    given = {None: [], "float": [sketch.number(np.ones((5, 7)))], "bool": [sketch.constant(np.eye(5, 7, dtype=bool))]}
    heads = {"q_num_heads": 3, "kv_num_heads": 3} if rank == 3 else {}
    out = sketch.op("Attention", "q", "k", "v", *given[mask], **heads)
    sizes = {"q": (5, 4), "k": (7, 4), "v": (7, 6)}
    shapes = {name: (2, n, 3 * d) if rank == 3 else (2, 3, n, d) for name, (n, d) in sizes.items()}
    report = fused_and_same(sketch.graph(out, 23, **shapes))
    assert report.found[0].facts.sizes == {"batch": 2, "heads": 3, "queries": 5, "keys": 7, "d_qk": 4, "d_v": 6}


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_heads_of_the_standard_operator_may_share_keys(rank: int, groups: int) -> None:
    sketch = Sketch()
    out = sketch.op(
        "Attention", "q", "k", "v", **({"q_num_heads": 6, "kv_num_heads": 6 // groups} if rank == 3 else {})
    )
    sizes = {"q": (6, 5, 4), "k": (6 // groups, 7, 4), "v": (6 // groups, 7, 3)}
    shapes = {name: (2, n, h * d) if rank == 3 else (2, h, n, d) for name, (h, n, d) in sizes.items()}
    report = fused_and_same(sketch.graph(out, 23, **shapes))
    assert report.found[0].facts.sizes == {"batch": 2, "heads": 6, "queries": 5, "keys": 7, "d_qk": 4, "d_v": 3}


def test_heads_that_repeat_keys_share_them_instead() -> None:
    sketch = Sketch()
    repeated = []
    for name in "kv":
        apart = sketch.op("Unsqueeze", name, sketch.constant(np.array([2])))
        many = sketch.op("Expand", apart, sketch.constant(np.array([1, 1, 3, 1, 1])))
        repeated.append(sketch.op("Reshape", many, sketch.constant(np.array([0, 6, 7, 4]))))
    scores = sketch.op("MatMul", "q", sketch.op("Transpose", repeated[0], perm=[0, 1, 3, 2]))
    out = sketch.op("MatMul", sketch.op("Softmax", scores, axis=-1), repeated[1])
    graph = sketch.graph(out, q=(2, 6, 5, 4), k=(2, 2, 7, 4), v=(2, 2, 7, 4))
    report = fused_and_same(graph)
    assert (report.found[0].facts.sizes["batch"], report.found[0].facts.sizes["heads"]) == (2, 6)
    assert "Expand" not in {node.op_type for node in fuse(graph, (OP,))[0].model.graph}


@pytest.mark.parametrize(
    ("attributes", "inputs", "reason"),
    [
        ({"is_causal": 1}, {}, "is_causal"),
        ({"softcap": 2.0}, {}, "caps its scores at 2"),
        ({}, {"past_key": (2, 3, 2, 4), "past_value": (2, 3, 2, 4)}, "a cache"),
        ({}, {"mask": (2, 1, 1, 9)}, "mask of sizes (2, 1, 1, 9)"),
    ],
)
def test_what_the_standard_operator_does_more_is_said(
    attributes: dict[str, Any], inputs: dict[str, tuple[int, ...]], reason: str
) -> None:
    sketch = Sketch()
    names = [name if name in inputs else "" for name in ("mask", "past_key", "past_value")]
    out = sketch.op("Attention", "q", "k", "v", *(names if inputs else []), **attributes)
    _, report = fuse(sketch.graph(out, 23, **dict.fromkeys("qkv", (2, 3, 5, 4)), **inputs), (OP,))
    assert not report.found
    assert reason in report.missed[0].reason


def test_layers_whose_weights_are_computed_are_no_attention() -> None:
    sketch = Sketch()
    rng = np.random.default_rng(0)
    weights = []
    for shape in ((4, 6), (6, 3)):
        tensor = sketch.number(rng.standard_normal(shape))
        weights.append(sketch.op("Div", tensor, sketch.op("ReduceL2", tensor, sketch.constant(np.array([0])))))
    scores = sketch.op("Mul", sketch.op("MatMul", "x", weights[0]), sketch.op("Sigmoid", sketch.number([0.3])))
    out = sketch.op("MatMul", sketch.op("Tanh", scores), weights[1])
    assert fused_and_same(sketch.graph(out, x=(2, 4))) == FusionReport()
