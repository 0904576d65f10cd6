"""Oracle: PyTorch in float64, and the graph as it was written."""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.normalise import infer_types
from edgeattn.precision.norms import merge_norms
from edgeattn.tolerance import tolerance_for
from tests.precision.lowered import checked, distance, graph, normal, rtx_products, run


class Written(nn.Module):
    """A convolution, and LayerNorm over its channels or over the last axis, in many people's words."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.stem, self.words = nn.Conv2d(3, 7, 1), words
        self.weight, self.bias = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        w, b = self.weight[:, None, None], self.bias[:, None, None]
        if self.words == "ConvNeXt":
            d = x - x.mean(1, keepdim=True)
            return w * (d / torch.sqrt(d.pow(2).mean(1, keepdim=True) + 1e-6)) + b
        if self.words == "ConvNeXt, permuted":
            return F.layer_norm(x.permute(0, 2, 3, 1), (7,), self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)
        if self.words == "var":
            u = x.mean(1, keepdim=True)
            return (x - u) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-6) * w + b
        if self.words == "var_mean":
            v, u = torch.var_mean(x, 1, unbiased=False, keepdim=True)
            return (x - u) * torch.rsqrt(v + 1e-6) * w + b
        tokens = x.flatten(2).transpose(1, 2)
        d = tokens - tokens.mean(-1, keepdim=True)
        return self.weight * (d / (d.pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()) + self.bias


def exported(words: str, dynamo: bool) -> tuple[Graph, np.ndarray, np.ndarray]:
    """The file, an input, and the output in float64; the older exporter writes opset 16, without the operator."""
    torch.manual_seed(0)
    module, x = Written(words).eval(), torch.randn(2, 3, 5, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        if dynamo:
            proto = torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto
        else:
            file = io.BytesIO()
            torch.onnx.export(module, (x,), file, dynamo=False, opset_version=16)
            proto = onnx.load_from_string(file.getvalue())
    with torch.no_grad():
        return Graph(ir.from_proto(proto)), x.numpy(), module.double()(x.double()).numpy()


def merged(source: Graph) -> Graph:
    """The graph with its norms merged, which must be valid and compute the same."""
    model = source.copy().model
    infer_types(model)
    found = Graph(merge_norms(model))
    onnx.checker.check_model(found.proto(), full_check=True)
    return found


@pytest.mark.parametrize("dynamo", [True, False], ids=["opset 20", "opset 16"])
@pytest.mark.parametrize("words", ["ConvNeXt", "ConvNeXt, permuted", "var", "var_mean", "last axis"])
def test_a_written_out_layer_norm_becomes_the_operator(words: str, dynamo: bool) -> None:
    source, x, truth = exported(words, dynamo)
    found, feeds = merged(source), {source.inputs[0].name: x}
    counts = found.op_counts()
    assert counts["LayerNormalization"] == 1
    assert not counts.keys() & {"ReduceMean", "ReduceSum", "Sub", "Sqrt", "Div", "Mul", "Add"}
    assert counts["Transpose"] == (1 if words == "last axis" else 2)
    (value,) = run_as_written(found)(feeds).values()
    assert distance(value, truth) <= tolerance_for("float32").floor
    lowered = checked(source)
    assert lowered.notes == ()
    assert distance(run(lowered.graph, feeds)[source.outputs[0].name], truth) <= tolerance_for("float16").floor
    assert rtx_products(lowered.graph) == {"float16"}


MEAN = "m = ReduceMean(x, ax)  d = Sub(x, m)"
ROOT = "w = Add(v, eps)  s = Sqrt(w)"
TAIL = f"v = ReduceMean(q, ax)  {ROOT}"


def written(body: str) -> Graph:
    return graph(
        f"""g (float[2,3,5] x, float[2,3,5] u) => (float[2,3,5] y)
        <int64[1] ax = {{2}}, int64[1] other = {{1}}, float eps = {{1e-5}}, float two = {{2}}, float half = {{0.5}},
         float less = {{-0.5}}, float one = {{1}}, float three = {{3}}, float[5] g5 = {{1,2,3,4,5}},
         float[3,1] g3 = {{1,2,3}}, float five = {{5}}> {{ {body} }}"""
    )


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{MEAN} q = Mul(d, d) {TAIL} y = Div(d, s)", set()),
        (f"{MEAN} q = Pow(d, two) {TAIL} i = Reciprocal(s) y = Mul(i, d)", set()),
        (f"{MEAN} q = Pow(d, two) {TAIL} i = Div(one, s) y = Mul(d, i)", set()),
        (f"{MEAN} q = Pow(d, two) v = ReduceMean(q, ax) w = Add(eps, v) i = Pow(w, less) y = Mul(d, i)", set()),
        (f"{MEAN} q = Mul(d, d) v = ReduceMean(q, ax) w = Add(v, eps) s = Pow(w, half) y = Div(d, s)", set()),
        (f"{MEAN} q = Mul(d, d) v = ReduceMean(q, ax) s = Sqrt(v) y = Div(d, s)", set()),
        (f"{MEAN} e = Sub(x, m) q = Mul(e, e) {TAIL} y = Div(d, s)", set()),
        (
            f"{MEAN} q = Mul(d, d) t = ReduceSum(q, ax) v = Div(t, five) w = Add(v, eps) s = Sqrt(w) y = Div(d, s)",
            set(),
        ),
        (f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s) y = Mul(g5, n)", set()),
        (f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s) y = Add(n, g5)", set()),
        (f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s) y = Mul(n, three)", set()),
        (f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s) y = Mul(n, g3)", {"Mul"}),
        (f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s) y = Mul(n, u)", {"Mul"}),
        (f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s) a = Mul(n, g5) y = Add(a, n)", {"Mul", "Add"}),
        (f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s) y = Add(n, m)", {"ReduceMean", "Add"}),
    ],
)
def test_every_form_that_is_exact_is_taken_and_no_more_than_that(body: str, left: set[str]) -> None:
    source = written(body)
    found = merged(source)
    assert found.op_counts().keys() == left | {"LayerNormalization"}
    feeds = {"x": normal(2, 3, 5), "u": normal(2, 3, 5, seed=1)}
    assert distance(run_as_written(found)(feeds)["y"], run_as_written(source)(feeds)["y"]) <= 1e-6


@pytest.mark.parametrize(
    "body",
    [
        f"m = ReduceMean(x, other) d = Sub(x, m) q = Mul(d, d) {TAIL} y = Div(d, s)",
        f"{MEAN} q = Mul(d, d) {TAIL} y = Div(x, s)",
        f"{MEAN} q = Mul(x, x) {TAIL} y = Div(d, s)",
        f"{MEAN} q = Pow(d, three) {TAIL} y = Div(d, s)",
        f"{MEAN} q = Mul(d, d) v = ReduceSum(q, ax) w = Add(v, eps) s = Sqrt(w) y = Div(d, s)",
        f"{MEAN} q = Mul(d, d) t = ReduceSum(q, ax) v = Div(t, three) w = Add(v, eps) s = Sqrt(w) y = Div(d, s)",
        f"{MEAN} q = Mul(d, d) {TAIL} i = Div(three, s) y = Mul(d, i)",
        f"m = ReduceMean(u, ax) d = Sub(x, m) q = Mul(d, d) {TAIL} y = Div(d, s)",
        f"m = ReduceMean(x, ax) d = Sub(m, x) q = Mul(d, d) {TAIL} y = Div(d, s)",
    ],
    ids=["axes", "not centred", "square", "cube", "sum", "wrong count", "three", "another's mean", "turned"],
)
def test_what_is_another_formula_stays(body: str) -> None:
    source = written(body)
    assert merged(source).op_counts() == source.op_counts()


def test_one_norm_after_another_is_merged_too() -> None:
    first = f"{MEAN} q = Mul(d, d) {TAIL} n = Div(d, s)"
    body = (
        f"{first} k = Mul(n, g5) m2 = ReduceMean(k, ax) d2 = Sub(k, m2) q2 = Mul(d2, d2) v2 = ReduceMean(q2, ax)"
        " w2 = Add(v2, eps) s2 = Sqrt(w2) y = Div(d2, s2)"
    )
    source = written(body)
    assert merged(source).op_counts() == {"LayerNormalization": 2}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
        lambda sizes: st.tuples(
            st.just(sizes), st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=len(sizes), unique=True)
        )
    ),
    st.booleans(),
)
def test_any_axes_of_any_shape_keep_their_result(drawn: tuple[list[int], list[int]], negative: bool) -> None:
    sizes, axes = drawn
    shape = ",".join(map(str, sizes))
    given_axes = ",".join(str(axis - len(sizes) if negative else axis) for axis in axes)
    source = graph(
        f"""g (float[{shape}] x) => (float[{shape}] y)
        <int64[{len(axes)}] ax = {{{given_axes}}}, float eps = {{1e-3}}>
        {{ {MEAN} q = Mul(d, d) {TAIL} y = Div(d, s) }}"""
    )
    found, feeds = merged(source), {"x": 3 + normal(*sizes)}
    assert found.op_counts()["LayerNormalization"] == 1
    before, after = (run_as_written(each)(feeds)["y"] for each in (source, found))
    np.testing.assert_array_less(np.abs(after - before), 1e-4)


def test_only_what_is_normalised_must_have_a_known_size() -> None:
    source = graph(
        f"""g (float[n,5] x) => (float[n,5] y) <int64[1] ax = {{-1}}, float eps = {{1e-5}}>
        {{ {MEAN} q = Mul(d, d) {TAIL} y = Div(d, s) }}"""
    )
    assert merged(source).op_counts()["LayerNormalization"] == 1
    unknown = graph(
        f"""g (float[5,n] x) => (float[5,n] y) <int64[1] ax = {{-1}}, float eps = {{1e-5}}>
        {{ {MEAN} q = Mul(d, d) {TAIL} y = Div(d, s) }}"""
    )
    assert merged(unknown).op_counts() == unknown.op_counts()
