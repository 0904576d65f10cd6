from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeattn.fuse import FusionReport, fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.ops.softmax_attention import OP, reference
from edgeattn.tolerance import tolerance_for
from tests.graphs import Array
from tests.ops.exactness import assert_body_is_reference

FLOAT, HALF, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL


@dataclass
class Sketch:
    """A graph in the making: constants get names, every node one output."""

    dtype: int = FLOAT
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def number(self, number: Any) -> str:
        return self.constant(np.asarray(number, np.float32 if self.dtype == FLOAT else np.float16))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def graph(self, output: str, opset: int = 18, **shapes: tuple[int | str, ...]) -> Graph:
        proto = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(name, self.dtype, shape) for name, shape in shapes.items()],
            [helper.make_tensor_value_info(output, self.dtype, None)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        return Graph(ir.from_proto(model))


def fused_and_same(graph: Graph, sizes: dict[str, int] | None = None) -> FusionReport:
    """Fuse a graph, and hold the result against what the graph itself computes, also where that is no number."""
    fused, report = fuse(graph, (OP,))
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in graph.inputs:
        shape = [size if isinstance(size, int) else (sizes or {})[size] for size in spec.shape or ()]
        feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    tolerance = tolerance_for(graph.inputs[0].dtype)
    before, after = run_as_written(graph)(feeds), run_as_written(fused)(feeds)
    for name, truth in before.items():
        found = after[name]
        assert found.shape == truth.shape
        known = np.isfinite(truth)
        assert np.array_equal(found[~known], truth[~known], equal_nan=True)
        size = max(float(np.abs(truth[known]).max(initial=0.0)), 1e-3)
        assert np.abs(found[known] - truth[known]).max(initial=0.0) <= tolerance.floor * size
    return report


def attention(sketch: Sketch, q: str = "q", k: str = "k", v: str = "v") -> str:
    scores = sketch.op("MatMul", q, sketch.op("Transpose", k, perm=[0, 2, 1]))
    return sketch.op("MatMul", sketch.op("Softmax", scores, axis=-1), v)


# Whatever is done between, with all sizes equal so that every mistake of an axis still is a valid graph

SIZE = 3
TENSORS = [(SIZE,) * rank for rank in range(5)] + [
    (SIZE, 1), (1, SIZE), (SIZE, 1, 1), (1, SIZE, 1), (SIZE, SIZE, 1), (SIZE, 1, SIZE), (SIZE, 1, 1, 1),
    (1, SIZE, 1, SIZE),
]  # fmt: skip
STEPS = st.one_of(
    st.tuples(st.just("number"), st.sampled_from(["Mul", "Div", "Add", "Sub"])),
    st.tuples(st.just("reversed"), st.sampled_from(["Add", "Sub", "Mul"]), st.sampled_from(TENSORS)),
    st.tuples(st.just("tensor"), st.sampled_from(["Mul", "Div", "Add", "Sub"]), st.sampled_from(TENSORS)),
    st.tuples(st.just("mask"), st.sampled_from(["keep", "drop"]), st.sampled_from(TENSORS)),
    st.tuples(st.just("transpose"), st.permutations(range(4))),
    st.tuples(st.just("reshape"), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("unary"), st.sampled_from(["Neg", "Relu", "Identity"])),
)


@dataclass
class Walk:
    """Random steps on a tensor, keeping its rank where nodes need it."""

    sketch: Sketch
    rng: np.random.Generator
    rank: int

    def take(self, value: str, step: tuple[Any, ...]) -> str:
        kind, *how = step
        if kind == "number":
            return self.sketch.op(how[0], value, self.sketch.number(self.rng.uniform(0.3, 2)))
        if kind in ("tensor", "reversed") and len(how[1]) <= self.rank:
            tensor = self.sketch.number(self.rng.uniform(0.3, 2, how[1]))
            return self.sketch.op(how[0], *((tensor, value) if kind == "reversed" else (value, tensor)))
        if kind == "mask" and len(how[1]) <= self.rank:
            mask, fill = self.sketch.constant(self.rng.random(how[1]) < 0.7), self.sketch.number(-np.inf)
            return self.sketch.op("Where", mask, *((value, fill) if how[0] == "keep" else (fill, value)))
        if kind == "transpose":
            perm = [axis for axis in how[0] if axis < self.rank]
            return self.sketch.op("Transpose", value, perm=perm)
        if kind == "reshape" and self.rank == 4:  # merge two axes and part them again
            shape = [SIZE] * 3
            shape[how[0]] = SIZE * SIZE
            merged = self.sketch.op("Reshape", value, self.sketch.constant(np.array(shape)))
            return self.sketch.op("Reshape", merged, self.sketch.constant(np.array([SIZE] * 4)))
        return self.sketch.op(how[0], value) if kind == "unary" else value


@dataclass(frozen=True)
class Program:
    """Two products, and what is done to their operands, between them, and to the weights."""

    rank: int
    before: list[tuple[str, tuple[Any, ...]]]
    between: list[tuple[Any, ...]]
    axis: int
    after: list[tuple[Any, ...]]
    swapped: tuple[bool, bool]
    written_out: bool
    seed: int


PROGRAMS = st.builds(
    Program,
    rank=st.sampled_from([2, 3, 4]),
    before=st.lists(st.tuples(st.sampled_from("qkv"), STEPS), max_size=3),
    between=st.lists(STEPS, max_size=3),
    axis=st.sampled_from([-1, -2, 0]),
    after=st.lists(STEPS, max_size=1),
    swapped=st.tuples(st.booleans(), st.booleans()),
    written_out=st.booleans(),
    seed=st.integers(0, 9),
)


@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(program=PROGRAMS)
def test_nothing_between_the_products_makes_a_false_match(program: Program) -> None:
    rank, axis = program.rank, program.axis
    sketch = Sketch()
    walk = Walk(sketch, np.random.default_rng(program.seed), rank)
    values = {name: name for name in "qkv"}
    for name, step in program.before:
        if step[0] != "mask":
            values[name] = walk.take(values[name], step)
    value = sketch.op("MatMul", *((values["k"], values["q"]) if program.swapped[0] else (values["q"], values["k"])))
    for step in program.between:
        value = walk.take(value, step)
    if program.written_out:
        over = sketch.constant(np.array([axis % rank]))
        top = sketch.op("Exp", sketch.op("Sub", value, sketch.op("ReduceMax", value, over)))
        weights = sketch.op("Div", top, sketch.op("ReduceSum", top, over))
    else:
        weights = sketch.op("Softmax", value, axis=axis)
    for step in program.after:
        weights = walk.take(weights, step)
    result = sketch.op("MatMul", *((values["v"], weights) if program.swapped[1] else (weights, values["v"])))
    fused_and_same(sketch.graph(result, **dict.fromkeys("qkv", (SIZE,) * rank)))


@settings(max_examples=50, deadline=None)
@given(labels=st.tuples(*[st.permutations("bhij")] * 3), axis=st.integers(0, 3), data=st.data())
def test_equations_of_any_order_are_exact(labels: tuple[list[str], ...], axis: int, data: st.DataObject) -> None:
    q, k, v = (data.draw(st.permutations(letters)) for letters in ("bhid", "bhjd", "bhje"))
    scores, weights, out = "".join(labels[0]), "".join(labels[1]), "".join(labels[2]).replace("j", "e")
    sketch = Sketch()
    value = sketch.op("Einsum", "q", "k", equation=f"{''.join(q)},{''.join(k)}->{scores}")
    value = sketch.op("Softmax", value, axis=axis)
    value = sketch.op("Transpose", value, perm=[scores.index(letter) for letter in weights])
    value = sketch.op("Einsum", value, "v", equation=f"{weights},{''.join(v)}->{out}")
    sizes = {"b": 2, "h": 3, "i": 5, "j": 7, "d": 4, "e": 6}
    shapes = {name: tuple(sizes[letter] for letter in word) for name, word in (("q", q), ("k", k), ("v", v))}
    report = fused_and_same(sketch.graph(value, **shapes))
    assert len(report.found) == (scores[axis] == "j")
    if report.found:
        facts = report.found[0].facts.sizes
        assert (facts["queries"], facts["keys"], facts["d_qk"], facts["d_v"]) == (5, 7, 4, 6)
    else:
        assert "expected the axis of the keys" in report.missed[0].reason


# Sizes


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (1, 5, 1, 3, 2), (2, 1, 7, 3, 1), (3, 1, 1, 4, 5)])
def test_sizes_of_one_are_told_apart(sizes: tuple[int, ...]) -> None:
    b, n, m, d, e = sizes
    sketch = Sketch()
    report = fused_and_same(sketch.graph(attention(sketch), q=(b, n, d), k=(b, m, d), v=(b, m, e)))
    assert report.found[0].facts.sizes == {
        "batch": b, "heads": 1, "queries": n, "keys": m, "d_qk": d, "d_v": e,
    }  # fmt: skip


def test_every_size_may_be_dynamic() -> None:
    sketch = Sketch()
    graph = sketch.graph(attention(sketch), q=("b", "n", "d"), k=("b", "m", "d"), v=("b", "m", "e"))
    report = fused_and_same(graph, {"b": 2, "n": 5, "m": 3, "d": 4, "e": 1})
    assert report.found[0].facts.sizes["keys"] == "m"
    assert report.found[0].facts.flops is None


def test_a_batch_of_another_name_may_be_one() -> None:
    sketch = Sketch()
    graph = sketch.graph(attention(sketch), q=("b", 5, 4), k=("c", 3, 4), v=("c", 3, 2))
    assert fused_and_same(graph, {"b": 3, "c": 1}).found
    assert fused_and_same(graph, {"b": 1, "c": 3}).found


def test_keys_of_one_batch_serve_all_queries() -> None:
    sketch = Sketch()
    graph = sketch.graph(attention(sketch), q=(3, 5, 4), k=(1, 7, 4), v=(1, 7, 2))
    assert fused_and_same(graph).found
    graph = sketch.graph(attention(sketch), q=(1, 5, 4), k=(3, 7, 4), v=(3, 7, 2))
    assert fused_and_same(graph).found


def test_weights_shared_among_groups_of_values_are_missed() -> None:
    sketch = Sketch()
    report = fused_and_same(sketch.graph(attention(sketch), q=(1, 5, 4), k=(1, 7, 4), v=(3, 7, 2)))
    assert not report.found
    assert "shares weights" in report.missed[0].reason


def test_windows_of_two_axes_merge_to_the_batch() -> None:
    sketch = Sketch()
    scores = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 1, 2, 4, 3]))
    out = sketch.op("MatMul", sketch.op("Softmax", scores, axis=-1), "v")
    shapes = {"q": ("b", 3, 2, 5, 4), "k": ("b", 3, 2, 7, 4), "v": ("b", 3, 2, 7, 6)}
    report = fused_and_same(sketch.graph(out, **shapes), {"b": 2})
    assert (report.found[0].facts.sizes["heads"], report.found[0].facts.sizes["queries"]) == (2, 5)


@pytest.mark.parametrize("batch", [1, 2])
def test_windows_that_are_masked_apart_are_no_heads(batch: int) -> None:
    sketch = Sketch()
    scores = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 1, 2, 4, 3]))
    masked = sketch.op("Add", scores, sketch.number(np.random.default_rng(0).normal(size=(3, 2, 5, 7))))
    out = sketch.op("MatMul", sketch.op("Softmax", masked, axis=-1), "v")
    shapes = {"q": ("b", 3, 2, 5, 4), "k": ("b", 3, 2, 7, 4), "v": ("b", 3, 2, 7, 6)}
    facts = fused_and_same(sketch.graph(out, **shapes), {"b": batch}).found[0].facts
    assert facts.sizes == {"batch": "3*b", "heads": 2, "queries": 5, "keys": 7, "d_qk": 4, "d_v": 6}
    assert facts.flops == 3 * 2 * (2 * 5 * 7 * (4 + 6) + 5 * 7 * (5 + 1))
    assert facts.bytes_fused == 4 * (3 * 2 * (5 * (4 + 6) + 7 * (4 + 6)) + 3 * 2 * 5 * 7)


# Scales, masks and guards


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


# Files of other types, opsets and tools


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


# Places


def test_one_attention_may_be_the_query_of_the_next() -> None:
    sketch = Sketch()
    out = attention(sketch, attention(sketch), "k", "v")
    graph = sketch.graph(out, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 4))
    assert len(fused_and_same(graph).found) == 2
    assert not {node.op_type for node in fuse(graph, (OP,))[0].model.graph} & {"Softmax", "MatMul"}


def test_weights_may_serve_two_values() -> None:
    sketch = Sketch()
    scores = sketch.op("MatMul", "q", sketch.op("Transpose", "k", perm=[0, 2, 1]))
    weights = sketch.op("Softmax", scores, axis=-1)
    out = sketch.op("Add", sketch.op("MatMul", weights, "v"), sketch.op("MatMul", weights, "k"))
    assert len(fused_and_same(sketch.graph(out, q=(2, 5, 4), k=(2, 7, 4), v=(2, 7, 4))).found) == 2


VARIANTS = ["", "bias", "bias-guarded", "filled", "bias-filled", "f32softmax", "bias-filled-guarded-f32softmax"]


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_body_is_the_reference(variant: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((2, heads, n, 4)).astype(np.float32) for heads, n in ((3, 5), (1, 7), (3, 7))]
    bias = np.where(rng.random((1, 3, 5, 7)) < 0.7, 0.5, -np.inf).astype(np.float32)
    bias[0, 1, 2] = -np.inf if "guarded" in variant else 0.0
    keep = rng.random((2, 1, 5, 7)) < np.array([0, 0.5, 1, 0.5, 0.5])[:, None]
    more = [*([bias] if "bias" in variant else []), *([keep] if "filled" in variant else [])]
    numbers = {"fill": -1.5} if "filled" in variant else {}
    assert_body_is_reference(OP, variant, [*inputs, *more], scale=scale, **numbers)


@pytest.mark.parametrize("variant", ["", "bias", "bias-guarded"])
def test_the_reference_is_pytorchs_function(variant: str) -> None:
    q, k, v = (torch.randn(2, 3, n, d, dtype=torch.float64) for n, d in ((5, 4), (7, 4), (7, 6)))
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[0] = variant != "bias-guarded"
    mask[1, 2:] = False
    bias = [torch.where(mask, 0.0, -torch.inf).double()] if variant else []
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, *bias, scale=0.3)
    if variant == "bias-guarded":
        expected[:, :, 0] = 0
    assert torch.allclose(reference(variant, q, k, v, *bias, scale=0.3), expected, rtol=1e-12, atol=1e-12)
