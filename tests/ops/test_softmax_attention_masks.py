"""Scales, masks and guards of softmax attention, wherever they stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeattn.fuse import FusionReport, fuse
from edgeattn.graph import Graph
from edgeattn.ops.softmax_attention import OP
from tests.graphs import Array
from tests.ops.exactness import Sketch, attention, fused_and_same


def test_a_number_on_the_values_is_no_scale() -> None:
    sketch = Sketch()
    out = attention(sketch, v=sketch.op("Mul", "v", sketch.number(0.5)))
    fused, _ = fuse(graph := sketch.graph(out, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2)), (OP,))
    assert fused_and_same(graph).found
    assert [node.op_type for node in fused.model.graph].count("Mul") == 1


@pytest.mark.parametrize("place", ["q", "k", "both", "scores", "twice", "gemm"])
def test_the_scale_is_found_wherever_it_stands(place: str) -> None:
    sketch = Sketch()
    if place == "gemm":
        scores = sketch.op("Gemm", "q", "k", transB=1, alpha=0.25)
        out = sketch.op("MatMul", sketch.op("Softmax", scores, axis=-1), "v")
        graph = sketch.graph(out, q=(5, 4), k=(7, 4), v=(7, 2))
    else:
        q = sketch.op("Mul", "q", sketch.number(0.25)) if place in ("q", "twice") else "q"
        k = sketch.op("Div", "k", sketch.number(4)) if place == "k" else "k"
        if place == "both":
            q, k = sketch.op("Mul", sketch.number(0.5), "q"), sketch.op("Mul", "k", sketch.number(0.5))
        scores = sketch.op("MatMul", q, sketch.op("Transpose", k, perm=[0, 2, 1]))
        if place in ("scores", "twice"):
            scores = sketch.op("Div", scores, sketch.op("Sqrt", sketch.number(16 if place == "scores" else 1)))
        out = sketch.op("MatMul", sketch.op("Softmax", scores, axis=-1), "v")
        graph = sketch.graph(out, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 2))
    fused, _ = fuse(graph, (OP,))
    assert fused_and_same(graph).found
    node = next(node for node in fused.model.graph if node.op_type == "SoftmaxAttention")
    assert node.attributes["scale"].as_float() == pytest.approx(0.25)
    assert not {other.op_type for other in fused.model.graph} & {"Mul", "Div", "Sqrt", "MatMul", "Transpose"}


def masked(guard: bool, mask: Array) -> tuple[FusionReport, Graph]:
    sketch = Sketch()
    scores = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 2, 1]))
    scores = sketch.op("Add", scores, sketch.number(np.where(mask, 0.0, -np.inf)))
    weights = sketch.op("Softmax", scores, axis=-1)
    if guard:
        weights = sketch.op("Where", sketch.op("IsNaN", weights), sketch.number(0), weights)
    graph = sketch.graph(sketch.op("MatMul", weights, "v"), q=(2, 3, 4), k=(2, 3, 4), v=(2, 3, 2))
    return fused_and_same(graph), graph


def test_a_row_masked_whole_stays_what_it_was() -> None:
    mask = np.tril(np.ones((3, 3), bool), -1)
    assert masked(False, mask)[0].found[0].variant == "bias"
    assert masked(True, mask)[0].found[0].variant == "bias-guarded"


def test_a_guard_that_nothing_needs_goes() -> None:
    assert masked(True, np.tril(np.ones((3, 3), bool)))[0].found[0].variant == "bias"


def filled(sketch: Sketch, *steps: tuple[str, Any]) -> Graph:
    """Scores that are filled by a number or changed otherwise, in this order, their first row always masked."""
    mask = sketch.constant(np.tril(np.ones((3, 3), bool), -1))
    value = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 2, 1]))
    for kind, number in steps:
        constant = sketch.number(number)
        value = sketch.op("Where", mask, value, constant) if kind == "Where" else sketch.op(kind, value, constant)
    out = sketch.op("MatMul", sketch.op("Softmax", value, axis=-1), "v")
    return sketch.graph(out, q=(2, 3, 4), k=(2, 3, 4), v=(2, 3, 2))


LOWEST = float(np.finfo(np.float32).min)
PLACES = np.arange(9).reshape(3, 3)


@pytest.mark.parametrize(
    ("steps", "variant"),
    [
        ([("Where", -1e9)], "filled"),
        ([("Where", -2.0), ("Div", 2)], "filled"),
        ([("Add", PLACES), ("Where", -2.0)], "bias-filled"),
        ([("Where", -2.0), ("Where", -2.0)], "filled"),
        ([("Where", -np.inf), ("Where", -2.0)], "bias-filled"),
        ([("Where", LOWEST)], "bias"),
        ([("Where", LOWEST), ("Div", 2)], "filled"),
        ([("Add", PLACES), ("Where", LOWEST)], "bias-filled"),
    ],
)
def test_a_row_filled_whole_stays_what_it_was(steps: list[tuple[str, Any]], variant: str) -> None:
    assert [item.variant for item in fused_and_same(filled(Sketch(), *steps)).found] == [variant]


@pytest.mark.parametrize(
    "steps",
    [
        [("Where", -2.0), ("Add", PLACES)],
        [("Where", -2.0), ("Where", -1.0)],
        [("Where", -2.0), ("Where", -np.inf)],
        [("Where", -2.0), ("Mul", -1)],
        [("Where", LOWEST), ("Mul", 2)],
    ],
)
def test_what_is_done_to_filled_scores_is_missed(steps: list[tuple[str, Any]]) -> None:
    report = fused_and_same(filled(Sketch(), *steps))
    assert not report.found
    assert "Where" in report.missed[0].reason


def test_a_sum_of_masks_and_positions_is_one_bias() -> None:
    sketch = Sketch()
    rng = np.random.default_rng(0)
    scores = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 1, 3, 2]))
    scores = sketch.op("Add", sketch.number(rng.standard_normal((3, 5, 1))), scores)
    scores = sketch.op("Mul", scores, sketch.number(0.5))
    scores = sketch.op("Where", sketch.constant(rng.random((2, 1, 5, 7)) < 0.8), scores, sketch.number(-np.inf))
    scores = sketch.op("Sub", scores, sketch.number(rng.standard_normal(7)))
    out = sketch.op("MatMul", sketch.op("Softmax", scores, axis=-1), "v")
    report = fused_and_same(sketch.graph(out, q=(2, 3, 5, 4), k=(2, 3, 7, 4), v=(2, 3, 7, 2)))
    assert [item.variant for item in report.found] == ["bias"]
