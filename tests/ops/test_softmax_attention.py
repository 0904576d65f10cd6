from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeattn.fuse import fuse
from edgeattn.ops.softmax_attention import OP, reference
from tests.ops.exactness import Sketch, assert_body_is_reference, attention, fused_and_same

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
