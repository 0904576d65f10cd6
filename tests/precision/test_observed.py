"""Networks that float16 breaks, whole: finite and right by what calibration saw, beside a plain converter's failure.

Oracle: the PyTorch module in float64.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import re
import warnings
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnxconverter_common import float16
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.backends import openvino
from edgeattn.backends.base import BuildConfig
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.lowering import to_backend
from edgeattn.precision.fp16 import lower
from edgeattn.precision.ranges import Ranges
from edgeattn.tensors import resolve_profile
from edgeattn.tolerance import tolerance_for
from tests.precision.lowered import (
    assert_close,
    by_op,
    checked,
    distance,
    dtypes,
    graph,
    graphs,
    normal,
    observed,
    reference,
    rtx_products,
    run,
)


class Attention(nn.Module):
    """softmax(gain q k^T) v over (B, N, 16) tokens, residual; spelled with matmul or by PyTorch's own function."""

    def __init__(self, gain: float, own: bool = False) -> None:
        super().__init__()
        self.qkv, self.gain, self.own = nn.Linear(16, 48), gain, own

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.own:
            return x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=self.gain)[:, 0]
        return x + (q @ k.transpose(1, 2) * self.gain).softmax(-1) @ v


class Sagan(nn.Module):
    """Unscaled attention over the places of a map, with large queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Conv2d(16, n, 1) for n in (4, 4, 16, 16))
        with torch.no_grad():
            self.q.weight.mul_(300)
            self.k.weight.mul_(300)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return x + self.out((v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


class Scaled(nn.Module):
    """A layer between two convolutions, on maps that are `gain` times as large as usual."""

    def __init__(self, layer: nn.Module, gain: float) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.stem.weight.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)))


class ChannelsFirst(nn.Module):
    """LayerNorm over the channels of a map, written out or between two permutes."""

    def __init__(self, channels: int, permuted: bool = False) -> None:
        super().__init__()
        self.norm, self.permuted = nn.LayerNorm(channels), permuted
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.permuted:
            return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        d = x - x.mean(1, keepdim=True)
        y = d / torch.sqrt(d.pow(2).mean(1, keepdim=True) + self.norm.eps)
        return y * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


class GlobalSum(nn.Module):
    """A mean over a large map, spelled as a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 2, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (self.stem(x).relu() + 2).sum((2, 3))
        return self.head(pooled / 65536)


class RawSensor(nn.Module):
    """Readings around 2e5, brought to size by a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.stem = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
        self.norm.running_mean.fill_(2e5)
        self.norm.running_var.fill_(1e10)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(self.norm(1e5 * x + 2e5).relu())


MAPS, TOKENS = (2, 3, 16, 17), (2, 11, 16)
HARD: dict[str, tuple[Any, tuple[int, ...]]] = {
    "attention, logits of 1e5": (lambda: Attention(4e4), TOKENS),
    "SAGAN, logits of 1e5": (Sagan, (1, 16, 5, 7)),
    "LayerNorm over large maps": (lambda: Scaled(ChannelsFirst(8), 1e5), MAPS),
    "LayerNorm between permutes over large maps": (lambda: Scaled(ChannelsFirst(8, True), 1e5), MAPS),
    "GroupNorm over large maps": (lambda: Scaled(nn.GroupNorm(2, 8), 3e3), MAPS),
    "RMSNorm over large maps": (lambda: Scaled(RMSNorm(), 3e3), MAPS),
    "a sum over 256 x 256": (GlobalSum, (1, 1, 256, 256)),
    "BatchNorm of raw readings": (RawSensor, MAPS),
}


@functools.lru_cache
def hard(name: str) -> tuple[Graph, dict[str, np.ndarray], np.ndarray, Ranges]:
    """The network as `lower` gets it, an input, the output in float64, and what three other inputs showed."""
    torch.manual_seed(0)
    make, shape = HARD[name]
    module, inputs = make().eval(), [torch.randn(shape) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(module, (inputs[0],), dynamo=True, verbose=False)
    fused, _ = fuse(Graph(ir.from_proto(program.model_proto)))
    source = to_backend(fused, "openvino")
    feeds = [{source.inputs[0].name: x.numpy()} for x in inputs]
    with torch.no_grad():
        truth = copy.deepcopy(module).double()(inputs[0].double()).numpy()
    return source, feeds[0], truth, observed(source, *feeds[1:])


def only(outputs: dict[str, np.ndarray]) -> np.ndarray:
    (value,) = outputs.values()
    return value


@pytest.mark.parametrize("name", HARD)
def test_what_breaks_in_float16_is_right_by_what_was_observed(name: str) -> None:
    source, feeds, truth, ranges = hard(name)
    lowered = checked(source, ranges=ranges)
    for evaluate in (reference, run):
        assert distance(only(evaluate(lowered.graph, feeds)), truth) <= tolerance_for("float16").limit(None) / 5
    assert lowered.notes
    heavy = [node.outputs[0].dtype for node in lowered.graph.nodes() if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert ir.DataType.FLOAT16 in heavy


@pytest.mark.parametrize("name", HARD)
def test_a_plain_converter_fails_on_it(name: str) -> None:
    source, feeds, truth, _ = hard(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = float16.convert_float_to_float16(source.proto(), keep_io_types=True)
    found = only(reference(Graph(ir.from_proto(plain)), feeds))
    assert not distance(found, truth) <= 10 * tolerance_for("float16").limit(None)


@pytest.mark.parametrize("name", HARD)
def test_tensorrt_rtx_builds_it(name: str) -> None:
    source, _, _, ranges = hard(name)
    assert "float16" in rtx_products(lower(source, "float16", ranges=ranges).graph)


@functools.lru_cache
def attention(own: bool) -> tuple[Graph, Ranges]:
    torch.manual_seed(0)
    module, x = Attention(2e4, own).eval(), torch.randn(TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    source = to_backend(fuse(Graph(ir.from_proto(program.model_proto)))[0], "openvino")
    return source, observed(source, {source.inputs[0].name: x.numpy()})


def test_islands_follow_the_attention_and_not_its_spelling() -> None:
    notes = [checked(*source, ranges=ranges).notes for *source, ranges in (attention(False), attention(True))]
    assert [re.sub("'.*?'", "", note) for note in notes[0]] == [re.sub("'.*?'", "", note) for note in notes[1]]
    assert "logits of attention" in notes[0][0]


def test_an_attention_is_kept_by_its_name() -> None:
    source, _ = attention(False)
    lowered = checked(source, keep=["SoftmaxAttention"])
    assert by_op(lowered)["Softmax"] == {"float32"}
    assert lowered.graph.op_counts()["Cast"] == 2 + 3 + 1  # of the network, its operands, its result
    (note,) = lowered.notes
    assert note.startswith("stays float32")
    assert note.endswith("kept high as asked")


def test_a_node_is_kept_by_its_name_and_one_that_is_not_there_is_said() -> None:
    source = graph(
        "g (float[3] x) => (float[3] y) { [first] a = Relu(x)  [second] b = Tanh(a)  [third] y = Sigmoid(b) }"
    )
    lowered = checked(source, keep=["second", "fourth"])
    assert [dtypes(lowered)[name] for name in ("first", "second", "third")] == ["float16", "float32", "float16"]
    assert lowered.notes == (
        "nothing to keep in float32: the graph has no node 'fourth'",
        "stays float32: Tanh 'second': kept high as asked",
    )


# ---- what was observed decides

CALM = "g (float[5,7] x) => (float[5,7] y) { y = Relu(x) }"
RMS = """g (float[5,7] x) => (float[5,7] y) <int64[1] ax = {1}, float eps = {1e-5}, float two = {2}>
    { r = Relu(x)  q = Pow(r, two)  v = ReduceMean(q, ax)  w = Add(v, eps)  s = Sqrt(w)  y = Div(r, s) }"""


@pytest.mark.parametrize(("gain", "stays"), [(1, False), (1e-4, True), (100, True), (3000, True)])
def test_a_sum_of_squares_is_lowered_where_it_stayed_far_from_the_limits(gain: float, stays: bool) -> None:
    source = graph(RMS)
    feeds = {"x": np.float32(gain) * (1 + np.abs(normal(5, 7)))}
    lowered = checked(source, ranges=observed(source, feeds))
    assert bool(lowered.notes) == stays
    assert_close(lowered, source, feeds)
    assert len(checked(source).notes) == 1


def test_a_sum_that_is_divided_by_is_lowered_only_where_it_never_came_near_zero() -> None:
    source = graph(
        """g (float[2,3] x) => (float[2,1] y) <int64[1] ax = {1}, float one = {1}>
        { s = ReduceSum(x, ax)  y = Div(one, s) }"""
    )
    rows = np.array([[1, 2, 3], [4, 1, 2]], np.float32)
    assert checked(source, ranges=observed(source, {"x": rows})).notes == ()
    signs = np.array([[1], [-1]], np.float32)
    assert len(checked(source, ranges=observed(source, {"x": signs * rows})).notes) == 1


def test_a_network_that_stays_calm_runs_in_float16_on_openvino() -> None:
    source = graph(RMS)
    feeds = {"x": 1 + np.abs(normal(5, 7))}
    config = BuildConfig(precision="float16", profile=resolve_profile(source.inputs))
    if "no float16 arithmetic" in str(openvino.build(lower(graph(CALM), "float16").graph, config).sidecar.precision):
        pytest.skip("this CPU has no float16 arithmetic")
    layers = [
        openvino.build(lower(source, "float16", ranges=ranges).graph, config).sidecar.precision.compute
        for ranges in (None, observed(source, feeds))
    ]
    assert "float16" not in layers[0]
    assert layers[1].get("float16", 0) > 0


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul(x, c)  b = Mul(a, a)  y = Mul(b, d)",
        "a = Mul(x, c)  b = Mul(a, a)  r = Reshape(b, s)  t = Relu(r)  y = MatMul(t, w)",
    ],
    ids=["scaled up", "through data movement"],
)
def test_values_too_small_for_float16_stay_float32_until_they_are_amplified(body: str) -> None:
    source = graph(
        f"""g (float[3,3] x) => (float[3,3] y)
        <float c = {{1e-4}}, float d = {{3e4}}, int64[2] s = {{3,3}}, float[3,3] w = {{3e4,2e4,1,2,3e4,1,0,5e3,7}}>
        {{ {body} }}"""
    )
    feeds = {"x": normal(3, 3)}
    lowered = checked(source, ranges=observed(source, feeds))
    assert_close(lowered, source, feeds)
    assert "which float16 rounds away" in lowered.notes[0]
    assert not distance(only(reference(lower(source, "float16").graph, feeds)), only(run(source, feeds))) <= 0.01


def test_a_tiny_summand_is_no_island() -> None:
    source = graph("g (float[3] x, float[3] u) => (float[3] y) { a = Mul(u, u)  b = Add(x, a)  y = Relu(b) }")
    feeds = {"x": normal(3), "u": 1e-5 * normal(3, seed=1)}
    assert checked(source, ranges=observed(source, feeds)).notes == ()


def test_what_a_relu_reads_is_as_large_as_what_it_gives() -> None:
    source = graph(
        """g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {3e4, -6e4, 2e4, -9e4}, float c = {0.00001}>
        { [product] a = MatMul(x, w)  [bound] b = Relu(a)  y = Mul(b, c) }"""
    )
    feeds = {"x": np.array([[1.0, 1.5]], np.float32)}
    seen = observed(source, feeds)
    ranges = dataclasses.replace(seen, tensors={name: spread for name, spread in seen.tensors.items() if name != "a"})
    lowered = checked(source, ranges=ranges)
    assert dtypes(lowered)["product"] == dtypes(lowered)["bound"] == "float32"
    assert_close(lowered, source, feeds)


def test_values_within_the_margin_of_the_limit_are_beyond_it() -> None:
    source = graph("g (float[2] x) => (float[2] y) <float c = {0.001}> { [up] a = Abs(x)  y = Mul(a, c) }")
    for top, dtype in ((8000.0, "float16"), (8400.0, "float32")):
        ranges = observed(source, {"x": np.array([1, top], np.float32)})
        assert dtypes(checked(source, ranges=ranges))["up"] == dtype
    assert checked(source, "bfloat16", ranges=ranges).notes == ()


@settings(max_examples=60, deadline=None)
@given(graphs(frail=False), st.integers(0, 3), st.sampled_from([1.0, 300.0, 1e5]))
def test_what_was_observed_never_becomes_infinite(source: Graph, seed: int, gain: float) -> None:
    feeds = {"x": gain * normal(3, 3, seed=seed), "u": gain * normal(3, 3, seed=seed + 9)}
    with np.errstate(all="ignore"):
        truth = ReferenceEvaluator(source.proto()).run(None, feeds, intermediate=True)
    assume(all(np.isfinite(value).all() for name, value in truth.items() if name))
    lowered = checked(source, ranges=observed(source, feeds))
    assert all(np.isfinite(value).all() for value in reference(lowered.graph, feeds).values())
