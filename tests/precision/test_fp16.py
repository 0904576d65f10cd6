"""Oracles: the same graph in float32, and ONNX's reference evaluator, which rounds to the low dtype at every node."""

from __future__ import annotations

import functools
import logging
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.errors import UsageError
from edgeattn.graph import Graph, dtype_name
from edgeattn.precision.fp16 import Lowered, lower
from edgeattn.tolerance import tolerance_for
from tests.models import ZOO, settled

BOTH = ("float16", "bfloat16")


def graph(text: str, opset: int = 18, domains: str = "") -> Graph:
    return Graph(ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}{domains}]>\n{text}'))


def checked(source: Graph, dtype: str = "float16", keep_io_types: bool = True) -> Lowered:
    """Lower, and hold the result to what every result owes."""
    before = source.proto().SerializeToString(deterministic=True)
    lowered = lower(source, dtype, keep_io_types)
    again = lower(source, dtype, keep_io_types)
    assert source.proto().SerializeToString(deterministic=True) == before
    proto = lowered.graph.proto()
    assert again.graph.proto().SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    kept = {"float32": dtype} if not keep_io_types else {}
    for old, new in zip(source.inputs + source.outputs, lowered.graph.inputs + lowered.graph.outputs, strict=True):
        assert (old.name, kept.get(old.dtype, old.dtype)) == (new.name, new.dtype)
    names = [node.name for node in lowered.graph.model.graph]
    assert len(set(names)) == len(names)
    casts = [node for node in lowered.graph.model.graph if node.op_type == "Cast"]
    assert len({(node.inputs[0], node.attributes["to"].value) for node in casts}) == len(casts)
    return lowered


def reference(source: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = ReferenceEvaluator(source.proto()).run(None, feeds)
    return {spec.name: value for spec, value in zip(source.outputs, found, strict=True)}


def run(source: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(source.serialized, providers=["CPUExecutionProvider"])
    return dict(zip([spec.name for spec in source.outputs], session.run(None, feeds), strict=True))


def distance(found: Any, truth: Any) -> float:
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-30))


def assert_close(lowered: Lowered, source: Graph, feeds: dict[str, Any], dtype: str = "float16") -> dict[str, Any]:
    truth, found = run(source, feeds), reference(lowered.graph, feeds)
    for name, value in truth.items():
        assert np.isfinite(np.asarray(found[name], np.float64)).all() or not np.isfinite(value).all()
        assert distance(found[name], value) <= tolerance_for(dtype).floor, name
    return found


def dtypes(lowered: Lowered) -> dict[str, str]:
    """The dtype that each node computes in, by its first output; a Cast's is what it gives."""
    return {node.name: (node.outputs[0].dtype or ir.DataType.UNDEFINED).name.lower() for node in lowered.graph.nodes()}


def by_op(lowered: Lowered) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node in lowered.graph.nodes():
        found.setdefault(node.op_type, set()).add(dtype_name(node.outputs[0].dtype))
    return found


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- PyTorch models


class MaskedAttention(nn.Module):
    """Self-attention whose mask is a finite number: (B, N, 16) and (B, N) to (B, N, 16)."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.qkv, self.norm, self.hidden = nn.Linear(16, 48), nn.LayerNorm(16), hidden

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = (q @ k.transpose(1, 2) / 4).masked_fill(~mask[:, None], self.hidden)
        return x + scores.softmax(-1) @ v


class ChannelsFirstNorm(nn.Module):
    """ConvNeXt's LayerNorm over channels, written out, on values whose squares float16 does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * 2000
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.head((x - mean) / torch.sqrt(variance + 1e-6))


class Cosine(nn.Module):
    """Cosine attention: softmax(10 normalize(q) normalize(k)^T) v."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (10 * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).softmax(-1) @ v


class Transformer(nn.Module):
    """A spatial transformer: affine_grid and grid_sample, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.head = nn.Linear(192, 6), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x.flatten(1)).view(-1, 2, 3)
        return self.head(
            F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
        )


@functools.lru_cache
def exported(name: str, dynamic: bool = False, opset: int | None = None) -> tuple[Graph, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    images, tokens = torch.randn(2, 3, 32, 32), torch.randn(3, 7, 16)
    mask = torch.arange(7) < torch.tensor([[7], [4], [0]])
    others: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "masked": (MaskedAttention(-1e9), (tokens, mask)),
        "masked by the smallest float32": (MaskedAttention(float(np.finfo(np.float32).min)), (tokens, mask)),
        "channels-first norm": (ChannelsFirstNorm(), (images,)),
        "cosine": (Cosine(), (tokens,)),
        "spatial transformer": (Transformer(), (images[:, :, :8, :8],)),
    }
    if name in ZOO:
        module, inputs = settled(ZOO[name], torch.randn(8, 3, 32, 32)), (images,)
    else:
        module, inputs = others[name]
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(), inputs, dynamo=True, verbose=False, dynamic_shapes=shapes, opset_version=opset
        )
    found = Graph(ir.from_proto(program.model_proto))
    return found, {spec.name: tensor.numpy() for spec, tensor in zip(found.inputs, inputs, strict=True)}


MODELS = [*ZOO, "masked", "masked by the smallest float32", "channels-first norm", "cosine", "spatial transformer"]


@pytest.mark.parametrize("name", MODELS)
def test_exported_models_are_valid_and_close_in_float16(name: str) -> None:
    source, feeds = exported(name)
    lowered = checked(source)
    limit = tolerance_for("float16").limit(None)
    for output, truth in run(source, feeds).items():
        assert distance(run(lowered.graph, feeds)[output], truth) <= limit
        assert distance(reference(lowered.graph, feeds)[output], truth) <= limit
    products = [node for node in lowered.graph.nodes() if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert {node.outputs[0].dtype for node in products} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize("name", ["cbam", "vit", "masked by the smallest float32"])
def test_exported_models_are_valid_and_close_in_bfloat16(name: str) -> None:
    source, feeds = exported(name)
    lowered = checked(source, "bfloat16")
    assert lowered.graph.opset >= 22
    for output, truth in run(source, feeds).items():
        assert distance(reference(lowered.graph, feeds)[output], truth) <= tolerance_for("bfloat16").limit(None)


@pytest.mark.parametrize("name", ["cbam", "vit", "nonlocal", "unet"])
def test_a_network_without_islands_has_a_cast_at_each_end_and_none_between(name: str) -> None:
    source, _ = exported(name)
    lowered = checked(source)
    assert lowered.notes == ()
    assert lowered.graph.op_counts()["Cast"] - source.op_counts()["Cast"] == len(source.inputs) + len(source.outputs)
    assert checked(source, keep_io_types=False).graph.op_counts() == source.op_counts()


def test_original_nodes_keep_their_names() -> None:
    source, _ = exported("vit")
    for dtype in BOTH:
        after = {node.name: node.op_type for node in checked(source, dtype).graph.nodes()}
        assert {
            node.name: node.op_type for node in source.nodes() if node.op_type != "Constant"
        }.items() <= after.items()


def test_weights_shrink_to_half() -> None:
    source, _ = exported("cbam")
    assert checked(source).graph.weight_bytes()["float16"] * 2 == source.weight_bytes()["float32"]


@pytest.mark.parametrize(("opset", "dynamic"), [(None, False), (23, True)], ids=["static", "dynamic opset 23"])
def test_masked_attention_is_right_for_fully_masked_rows(opset: int | None, dynamic: bool) -> None:
    source, feeds = exported("masked", dynamic, opset)
    lowered = checked(source)
    found = assert_close(lowered, source, feeds)
    assert all(np.isfinite(value).all() for value in found.values())
    assert by_op(lowered)["Softmax"] == {"float32"}
    assert by_op(lowered)["MatMul"] == {"float16"}
    assert len(lowered.notes) == 1
    assert "-1e+09 exceeds float16" in lowered.notes[0]


def test_the_same_mask_needs_no_island_in_bfloat16() -> None:
    source, _ = exported("masked")
    assert checked(source, "bfloat16").notes == ()


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float16") for name in MODELS), ("vit", "bfloat16")])
def test_tensorrt_rtx_parses_the_graph_as_a_strongly_typed_network(name: str, dtype: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    lowered = lower(exported(name)[0], dtype)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(lowered.graph.serialized), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in layers if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)]
    assert {layer.get_output(0).dtype for layer in products} == {trt.float16 if dtype == "float16" else trt.bfloat16}


# ---- what the low dtype does not hold


@pytest.mark.parametrize("bound", ["-1e9", "-3.4028234e38"])
def test_a_mask_made_of_arithmetic_stays_float32_up_to_the_softmax(bound: str) -> None:
    source = graph(
        f"""g (float[2,3,3] s, float[2,1,3] m) => (float[2,3,3] y) <float big = {{{bound}}}, float one = {{1}}>
        {{ hidden = Sub(one, m)  bias = Mul(hidden, big)  z = Add(s, bias)  p = Softmax<axis=-1>(z)
          y = MatMul(p, s) }}"""
    )
    feeds = {"s": normal(2, 3, 3), "m": np.array([[[1, 1, 0]], [[0, 0, 0]]], np.float32)}
    lowered = checked(source)
    assert_close(lowered, source, feeds)
    assert by_op(lowered)["Softmax"] == {"float32"}
    assert by_op(lowered)["MatMul"] == {"float16"}


def test_an_infinite_mask_is_no_island() -> None:
    source = graph(
        """g (float[2,3] s, bool[2,3] m) => (float[2,3] y) <float no = {-inf}>
        { z = Where(m, s, no)  y = Softmax(z) }"""
    )
    lowered = checked(source)
    assert lowered.notes == ()
    assert_close(lowered, source, {"s": normal(2, 3), "m": np.array([[True, False, True], [True, True, False]])})


@pytest.mark.parametrize(
    ("body", "op", "held"),
    [
        ("a = Add(x, c)  b = Tanh(a)", "Add", "1e6"),
        ("a = Clip(x, , c)", "Clip", "3.4e38"),
        ("a = Min(x, c)", "Min", "3.4e38"),
        ("a = Div(x, c)", "Div", "1e6"),
        ("a = Add(x, c)  b = Clip(a, m, n)", "Add", "1e6"),
        ("a = Mul(x, c)", "Mul", "1e-9"),
    ],
    ids=["tanh", "far clip", "far min", "large divisor", "clip", "tiny factor"],
)
def test_an_island_ends_where_values_are_ordinary_again(body: str, op: str, held: str) -> None:
    last = "b" if "b =" in body else "a"
    source = graph(
        f"""g (float[5] x) => (float[5] y)
        <float c = {{{held}}}, float m = {{-2}}, float n = {{3}}, float[5] w = {{1,2,3,4,5}}>
        {{ {body} z = Mul({last}, w)  y = Sigmoid(z) }}"""
    )
    lowered = checked(source)
    assert by_op(lowered)[op] >= {"float32"}
    assert by_op(lowered)["Sigmoid"] == {"float16"}
    assert_close(lowered, source, {"x": normal(5)})


def test_an_island_goes_on_through_what_does_not_bound() -> None:
    source = graph(
        """g (float[2,3] x) => (float[2,3] y)
        <float c = {1e9}, int64[2] s = {2,3}, float half = {0.5}, float[3,3] w = {1,2,3,4,5,6,7,8,9}>
        { a = Mul(x, c)  b = Reshape(a, s)  d = MatMul(b, w)  e = Mul(d, half)  y = Softsign(e) }"""
    )
    lowered = checked(source)
    assert "float16" not in {dtype for name, dtype in dtypes(lowered).items() if "to_float" not in name}
    assert "and 2 more" in lowered.notes[0]


def test_normalising_by_a_clamped_norm_stays_float32_up_to_the_division() -> None:
    source, feeds = exported("cosine")
    lowered = checked(source)
    assert by_op(lowered)["Div"] == {"float32"}
    zero = {name: np.zeros_like(value) for name, value in feeds.items()}
    assert_close(lowered, source, feeds)
    assert all(np.isfinite(value).all() for value in reference(lowered.graph, zero).values())


@pytest.mark.parametrize("dtype", BOTH)
def test_a_written_out_layer_norm_does_not_overflow(dtype: str) -> None:
    source, feeds = exported("channels-first norm")
    lowered = checked(source, dtype)
    assert_close(lowered, source, feeds, dtype)
    assert len(lowered.notes) == 1
    assert "sum of squares" in lowered.notes[0]
    # One cast up before the chain, one down behind it.
    assert lowered.graph.op_counts()["Cast"] == 4


@pytest.mark.parametrize(
    "body",
    [
        "q = Mul(r, r)  v = ReduceMean(q, ax)  w = Add(v, eps)  s = Sqrt(w)  i = Reciprocal(s)  y = Mul(r, i)",
        "q = Pow(r, two)  v = ReduceMean(q, ax)  w = Add(v, eps)  s = Sqrt(w)  y = Div(r, s)",
        "q = Mul(r, r)  v = ReduceMean(q, ax)  m = ReduceMean(r, ax)  mm = Mul(m, m)  c = Sub(v, mm)  w = Add(c, eps)"
        " s = Sqrt(w)  d = Sub(r, m)  y = Div(d, s)",
        "v = ReduceSumSquare(r, ax)  s = Sqrt(v)  y = Div(r, s)",
        "s = ReduceL2(r, ax)  y = Div(r, s)",
        "v = LpNormalization<p=2, axis=1>(r)  y = Identity(v)",
    ],
    ids=["rms", "pow", "mean of squares", "sum square", "l2", "lp"],
)
def test_sums_of_squares_survive_large_values(body: str) -> None:
    source = graph(
        f"""g (float[3,7] x) => (float[3,7] y) <int64[1] ax = {{1}}, float eps = {{1e-6}}, float two = {{2}}>
        {{ r = Relu(x)  {body} }}"""
    )
    lowered = checked(source)
    feeds = {"x": np.abs(normal(3, 7)) * 3000}
    assert by_op(lowered)["Relu"] == {"float16"}
    assert_close(lowered, source, feeds)


def test_a_square_that_is_not_summed_is_lowered() -> None:
    source = graph(
        "g (float[3] x) => (float[3] y) <float three = {3}> { s = Mul(x, x)  c = Pow(s, three)  y = Tanh(c) }"
    )
    assert checked(source).notes == ()


def test_a_written_out_softmax_does_not_overflow() -> None:
    source = graph(
        "g (float[3,7] x) => (float[3,7] y) <int64[1] ax = {1}> { e = Exp(x)  s = ReduceSum(e, ax)  y = Div(e, s) }"
    )
    assert_close(checked(source), source, {"x": normal(3, 7) * 5 + 10})


def test_a_mean_written_as_a_sum_does_not_overflow() -> None:
    source = graph(
        """g (float[1,2,h,w] x) => (float[1,2,1,1] y) <int64[1] a = {2}, int64[1] b = {4}, int64[2] hw = {2,3}>
        { r = Relu(x)  s = Shape(x)  d = Slice(s, a, b)  p = ReduceProd<keepdims=0>(d)  n = Cast<to=1>(p)
          t = ReduceSum(r, hw)  y = Div(t, n) }"""
    )
    assert_close(checked(source), source, {"x": np.ones((1, 2, 300, 301), np.float32)})


def test_batch_norm_statistics_beyond_float16_stay() -> None:
    source = graph(
        """g (float[1,2,3,3] x) => (float[1,2,3,3] y)
        <float[2] s = {1,2}, float[2] b = {0,1}, float[2] m = {0,3}, float[2] v = {1e6,4}>
        { r = Relu(x)  n = BatchNormalization(r, s, b, m, v)  y = Relu(n) }"""
    )
    lowered = checked(source)
    assert by_op(lowered)["BatchNormalization"] == {"float32"}
    assert by_op(lowered)["Relu"] == {"float16"}
    assert_close(lowered, source, {"x": normal(1, 2, 3, 3)})


# ---- shapes and indices


def test_shape_arithmetic_in_floats_is_exact() -> None:
    """2 * 2049 / 2 is 2049 in float32, and 2048 in float16."""
    source = graph(
        """g (float[1,1,1,w] x) => (float[1,1,1,v] y)
        <float two = {2}, int64[1] a = {3}, int64[1] b = {4}, int64[1] nc = {0}, int64[1] e = {3}>
        { r = Relu(x)  s = Shape(r)  d = Slice(s, a, b)  f = Cast<to=1>(d)  g = Mul(f, two)  h = Div(g, two)
          k = Floor(h)  i = Cast<to=7>(k)  n = Slice(s, nc, e)  size = Concat<axis=0>(n, i)
          y = Resize<mode="nearest">(r, , , size) }"""
    )
    lowered = checked(source)
    found = reference(lowered.graph, {"x": normal(1, 1, 1, 2049)})
    assert found["y"].shape == (1, 1, 1, 2049)
    assert by_op(lowered)["Resize"] == {"float16"}
    assert "shape and index arithmetic" in lowered.notes[0]


def test_scales_of_a_resize_stay_and_its_image_does_not() -> None:
    source = graph(
        """g (float[1,2,3,5] x, float[4] s) => (float[1,2,h,w] y) <float[4] one = {1,1,1,1}>
        { t = Mul(s, one)  y = Resize<mode="linear">(x, , t) }"""
    )
    lowered = checked(source)
    resize = next(node for node in lowered.graph.nodes() if node.op_type == "Resize")
    assert [value.dtype.name if value else None for value in resize.inputs] == ["FLOAT16", None, "FLOAT"]
    scales = np.array([1, 1, 2.0001, 1.3], np.float32)
    assert reference(lowered.graph, {"x": normal(1, 2, 3, 5), "s": scales})["y"].shape == (1, 2, 6, 6)


def test_a_scale_computed_from_a_shape_is_cast_where_it_meets_data() -> None:
    source = graph(
        """g (float[2,n,16] q) => (float[2,n,16] y) <int64 axis = {2}, float one = {1}>
        { s = Shape(q)  d = Gather<axis=0>(s, axis)  f = Cast<to=1>(d)  r = Sqrt(f)  i = Div(one, r)  t = Mul(q, i)
          y = Softmax(t) }"""
    )
    lowered = checked(source)
    assert by_op(lowered)["Sqrt"] == {"float32"}
    assert by_op(lowered)["Mul"] == by_op(lowered)["Softmax"] == {"float16"}
    assert_close(lowered, source, {"q": normal(2, 3, 16)})


def test_integer_images_are_no_index_arithmetic() -> None:
    source = graph(
        """g (int64[1,2,5,5] x) => (float[1,1,5,5] y) <float d = {255}, float[1,2,1,1] w = {0.25,0.5}>
        { f = Cast<to=1>(x)  s = Div(f, d)  y = Conv(s, w) }"""
    )
    assert by_op(checked(source))["Conv"] == {"float16"}


def test_boxes_of_a_non_maximum_suppression_are_computed_in_float32() -> None:
    source = graph(
        """g (float[1,5,4] b, float[1,1,5] s) => (int64[n,3] y) <int64 k = {3}, float t = {0.5}, float two = {2}>
        { r = Relu(b)  boxes = Mul(r, two)  p = Sigmoid(s)  y = NonMaxSuppression(boxes, p, k, t) }"""
    )
    lowered = checked(source)
    assert by_op(lowered)["Mul"] == {"float32"}
    assert by_op(lowered)["Relu"] == {"float16"}


def test_sampling_coordinates_stay_float32() -> None:
    source, _ = exported("spatial transformer")
    lowered = checked(source, "bfloat16")
    assert by_op(lowered)["GridSample"] == {"float32"}
    assert by_op(lowered)["Conv"] == {"bfloat16"}


# ---- kinds of nodes and values


def test_control_flow_stays_float32_and_what_it_captures_is_cast() -> None:
    source = graph(
        """g (float[2,3] x, bool c) => (float[2,3] y) <float[3,3] w = {1,2,3,4,5,6,7,8,9}>
        { r = MatMul(x, w)
          z = If(c) <then_branch = t () => (float[2,3] a) { k = Relu(r)  a = MatMul(k, w) },
                     else_branch = e () => (float[2,3] b) { b = Neg(r) }>
          y = Sigmoid(z) }"""
    )
    lowered = checked(source)
    for choice in (True, False):
        feeds = {"x": normal(2, 3), "c": np.array(choice)}
        assert_close(lowered, source, feeds)
        run(lowered.graph, feeds)
    weights = lowered.graph.weight_bytes()
    assert weights == {"float32": 36, "float16": 18}


def test_a_loop_stays_float32() -> None:
    source = graph(
        """g (float[2,3] x, int64 n) => (float[2,3] y)
        <float[3,3] w = {0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9}, bool t = {1}>
        { r = MatMul(x, w)
          z = Loop(n, t, r) <body = b (int64 i, bool c, float[2,3] s) => (bool d, float[2,3] o)
            { d = Identity(c)  m = MatMul(s, w)  k = Add(m, r)  o = Tanh(k) }>
          y = Sigmoid(z) }"""
    )
    assert_close(checked(source), source, {"x": normal(2, 3), "n": np.array(3)})


def test_model_local_functions_are_inlined() -> None:
    source = graph(
        """g (float[1,4,5,5] x) => (float[1,4,5,5] y) { a = edgeattn.Gate(x)  y = edgeattn.Gate(a) }
        <domain: "edgeattn", opset_import: ["": 18]> Gate (x) => (y)
        { ax = Constant<value_ints = [2,3]>()  m = ReduceMean(x, ax)  s = Sigmoid(m)  y = Mul(x, s) }""",
        domains=', "edgeattn": 1',
    )
    lowered = checked(source)
    assert lowered.graph.op_counts()["Sigmoid"] == 2
    assert by_op(lowered)["Mul"] == {"float16"}
    assert_close(lowered, source, {"x": normal(1, 4, 5, 5)})


def test_operators_of_other_domains_stay_float32_whatever_they_are_called() -> None:
    source = graph(
        """g (float[1,4] x) => (float[1,4] y) <float[4] w = {1,2,3,4}>
        { a = Mul(x, w)  b = other.Pow(a)  c = Add(b, w)  d = other.Exp(c)  e = Relu(d)  y = Sigmoid(e) }""",
        domains=', "other": 1',
    )
    for dtype in BOTH:
        found = by_op(checked(source, dtype))
        assert found["Pow"] == found["Exp"] == {"float32"}
        assert found["Mul"] == found["Add"] == found["Relu"] == found["Sigmoid"] == {dtype}


def test_quantised_neighbours_stay_float32() -> None:
    source = graph(
        """g (float[1,2,4,4] x) => (float[1,3,4,4] y)
        <float s = {0.1}, int8 z = {0}, int8[2,3,1,1] wq = {1,2,3,4,5,6},
         float ws = {0.01}, float[3,3,1,1] w2 = {1,2,3,4,5,6,7,8,9}>
        { r = Relu(x)  q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)  dw = DequantizeLinear(wq, ws, z)
          w = Transpose<perm=[1,0,2,3]>(dw)  c = Conv(d, w)  a = Relu(c)  y = Conv(a, w2) }""",
        opset=19,
    )
    lowered = checked(source)
    convs = [node for node in lowered.graph.nodes() if node.op_type == "Conv"]
    assert [node.outputs[0].dtype.name for node in convs] == ["FLOAT", "FLOAT16"]
    scales = [node.inputs[1].const_value.numpy() for node in lowered.graph.nodes() if "antizeLinear" in node.op_type]
    assert {str(scale.dtype) for scale in scales} == {"float32"}
    assert_close(lowered, source, {"x": normal(1, 2, 4, 4)})


def test_sequences_stay_float32() -> None:
    source = graph(
        """g (float[4,2] x) => (float[4,2] y)
        { r = Relu(x)  s = SplitToSequence<axis=0>(r)  z = ConcatFromSequence<axis=0>(s)  y = Sigmoid(z) }""",
        opset=17,
    )
    assert_close(checked(source), source, {"x": normal(4, 2)})


def test_an_operator_without_float16_stays_float32_and_is_named() -> None:
    source = graph("g (float[2,3] x) => (float[2,3] y) <int64 a = {1}> { r = Relu(x)  y = CumSum(r, a) }", opset=13)
    lowered = checked(source)
    assert_close(lowered, source, {"x": normal(2, 3)})
    assert lowered.notes == ("stays float32: CumSum 'node_1': CumSum of opset 13 computes in float32",)


def test_float64_is_left_alone() -> None:
    source = graph(
        """g (float[2] x, double[2] u) => (double[2] y, float[2] z)
        { r = Relu(x)  d = Cast<to=11>(r)  y = Add(d, u)  f = Cast<to=1>(y)  z = Sigmoid(f) }"""
    )
    lowered = checked(source)
    assert_close(lowered, source, {"x": normal(2), "u": np.ones(2)})
    assert by_op(lowered)["Add"] == {"float64"}


def test_constants_of_every_kind_become_stored_numbers() -> None:
    source = graph(
        """g (float[1,3] x) => (float[1,3] y)
        { a = Constant<value_float = 0.5>()  b = Constant<value_floats = [1.0,2.0,3.0]>()
          c = Constant<value = float[1] {3}>()
          s = Constant<value_ints = [1,3]>()  d = ConstantOfShape<value = float[1] {7}>(s)  e = ConstantOfShape(s)
          f = Mul(x, a)  g = Add(f, b)  h = Mul(g, c)  i = Add(h, d)  y = Add(i, e) }"""
    )
    lowered = checked(source)
    assert_close(lowered, source, {"x": normal(1, 3)})
    assert lowered.graph.op_counts()["Cast"] == 2
    assert by_op(lowered)["ConstantOfShape"] == {"float16"}


def test_an_extreme_fill_is_an_island_too() -> None:
    source = graph(
        """g (float[1,3] x) => (float[1,3] y) <int64[2] s = {1,3}>
        { d = ConstantOfShape<value = float[1] {-1e9}>(s)  a = Add(x, d)  y = Softmax(a) }"""
    )
    assert_close(checked(source), source, {"x": normal(1, 3)})


def test_random_numbers_are_drawn_in_float32() -> None:
    source = graph(
        "g (float[1,3] x) => (float[1,3] y) { r = RandomNormal<shape = [1,3]>()  a = Add(x, r)  y = Relu(a) }"
    )
    lowered = checked(source)
    assert by_op(lowered)["RandomNormal"] == {"float32"}
    run(lowered.graph, {"x": normal(1, 3)})


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_weights_wanted_in_both_dtypes_are_stored_twice(keep_io_types: bool) -> None:
    source = graph(
        """g (float[2,3] x) => (float[2,3] y, float[3,3] z) <float[3,3] w = {1,2,3,4,5,6,7,8,9}, int64 a = {0}>
        { y = MatMul(x, w)  z = CumSum(w, a) }""",
        opset=13,
    )
    lowered = checked(source, keep_io_types=keep_io_types)
    assert lowered.graph.weight_bytes() == {"float32": 36, "float16": 18, "int64": 8}
    assert sorted(lowered.graph.model.graph.initializers) == ["a", "w", "w_float16"]


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_inputs_and_weights_that_are_outputs_keep_their_names(keep_io_types: bool) -> None:
    source = graph(
        """g (float[2,3] x, float[2,3] p) => (float[2,3] x, float[3] w, float[3] c, float[3,2] t, float[2,3] y,
        float[2,3] z) <float[3] w = {1,2,3}>
        { c = Constant<value_floats = [1.0,2.0,3.0]>()  t = Transpose(p)  a = Mul(x, w)  y = Mul(a, c)
          z = Sigmoid(y) }"""
    )
    lowered = checked(source, keep_io_types=keep_io_types)
    feeds = {"x": normal(2, 3), "p": normal(2, 3, seed=1)}
    truth = run(source, feeds)
    found = run(lowered.graph, feeds if keep_io_types else {k: v.astype(np.float16) for k, v in feeds.items()})
    assert all(distance(found[name], truth[name]) <= tolerance_for("float16").floor for name in truth)
    if keep_io_types:
        np.testing.assert_array_equal(found["t"], feeds["p"].T)  # data that only moves is not rounded
        np.testing.assert_array_equal(found["x"], feeds["x"])


def test_initializers_listed_as_inputs_are_weights() -> None:
    source = graph("g (float[2,3] x, float[3] w = {1,2,3}) => (float[2,3] y) { y = Mul(x, w) }")
    assert checked(source).graph.weight_bytes() == {"float16": 6}


def test_taken_names_are_not_taken_again() -> None:
    source = graph(
        """g (float[2] x, float[2] x_float16) => (float[2] y)
        { y_float16 = Relu(x)  a = Add(y_float16, x_float16)  y = Neg(a) }"""
    )
    assert_close(checked(source), source, {"x": normal(2), "x_float16": normal(2, seed=1)})


def test_questions_about_a_value_need_no_cast() -> None:
    source = graph(
        """g (float[2,3] x) => (int64[2] s, int64[2] k, bool[2,3] b, float[2,3] y) <float h = {0.5}>
        { s = Shape(x)  k = ArgMax<axis=1, keepdims=0>(x)  b = Greater(x, h)  y = Relu(x) }"""
    )
    lowered = checked(source)
    assert lowered.graph.op_counts()["Cast"] == 2
    x = np.array([[0.5, 0.50001, 0.4], [1.0, 1.00001, 0.2]], np.float32)
    assert reference(lowered.graph, {"x": x})["k"].tolist() == [1, 1]


def test_external_weights_are_converted(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[1,9] x) => (float[1,9] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(9, 9), "w"))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    source = Graph(ir.load(tmp_path / "m.onnx"))
    for dtype in BOTH:
        assert checked(source, dtype).graph.weight_bytes() == {dtype: 162}


def test_bfloat16_weights_are_rounded_to_nearest() -> None:
    values = normal(7, 11)
    numbers = ",".join(repr(float(value)) for value in values.ravel())
    source = graph(f"g (float[1,7] x) => (float[1,11] y) <float[7,11] w = {{{numbers}}}> {{ y = MatMul(x, w) }}")
    stored = checked(source, "bfloat16").graph.model.graph.initializers["w"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), values.astype(ml_dtypes.bfloat16))


def test_a_graph_that_holds_the_dtype_is_left_as_it_is() -> None:
    source = graph("g (float16[2] x) => (float[2] y) { r = Relu(x)  f = Cast<to=1>(r)  y = Sigmoid(f) }")
    lowered = lower(source, "fp16")
    assert lowered.graph is source
    assert lowered.notes == ("the graph already computes in float16: left as it is",)


def test_a_graph_without_floats_stays() -> None:
    source = graph("g (int64[2] x) => (int64[2] y) { y = Neg(x) }")
    assert checked(source).graph.op_counts() == source.op_counts()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_another_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match="expected float16 or bfloat16"):
        lower(graph("g (float[2] x) => (float[2] y) { y = Relu(x) }"), dtype)


# ---- any graph

UNARY = ("Relu", "Sigmoid", "Tanh", "Neg", "Softmax", "Identity", "Abs", "Transpose")
BINARY = ("Add", "Mul", "Sub", "Max", "Min")
FRAIL = ("Div", "Exp", "Sqrt", "Reciprocal", "Pow")  # rounding may turn a finite result into an infinite one
CONSTANTS = (0.5, -1.0, 3.0, 1e-12, -1e9, 3.4e38, 1e6)


@st.composite
def graphs(draw: st.DrawFn, frail: bool) -> Graph:
    """Up to twenty nodes on 3x3 matrices, each fed by earlier values or by constants of all sizes."""
    lines, matrices = [], ["x", "u", "w"]
    constants = [f"c{index}" for index in range(len(CONSTANTS))]
    operators = st.sampled_from((*UNARY, *BINARY, "MatMul", *(FRAIL if frail else ())))
    for index in range(draw(st.integers(1, 20))):
        op = draw(operators)
        fed = [draw(st.sampled_from(matrices))]
        if op in (*BINARY, "Div", "Pow", "MatMul"):
            fed.append(draw(st.sampled_from(matrices if op == "MatMul" else matrices + constants)))
        lines.append(f"v{index} = {op}({', '.join(fed)})")
        matrices.append(f"v{index}")
    outputs = draw(st.lists(st.sampled_from(matrices[3:]), min_size=1, unique=True))
    weights = [f"float {name} = {{{value}}}" for name, value in zip(constants, CONSTANTS, strict=True)]
    return graph(
        f"""g (float[3,3] x, float[3,3] u) => ({", ".join("float[3,3] " + name for name in outputs)})
        <float[3,3] w = {{1,2,3,4,5,6,7,8,9}}, {", ".join(weights)}> {{ {" ".join(lines)} }}"""
    )


@settings(max_examples=40, deadline=None)
@given(graphs(frail=True), st.sampled_from(BOTH), st.booleans())
def test_any_graph_stays_valid(source: Graph, dtype: str, keep_io_types: bool) -> None:
    lowered = checked(source, dtype, keep_io_types)
    if dtype == "float16":
        onnxruntime.InferenceSession(lowered.graph.serialized, providers=["CPUExecutionProvider"])


@settings(max_examples=100, deadline=None)
@given(graphs(frail=False), st.integers(0, 3))
def test_no_constant_makes_float16_infinite_where_float32_is_finite(source: Graph, seed: int) -> None:
    """Where the lowered nodes' own results are within 1e4, whatever is infinite has escaped from an island."""
    lowered = lower(source, "float16")
    feeds = {"x": np.tanh(normal(3, 3, seed=seed)), "u": np.tanh(normal(3, 3, seed=seed + 9))}
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(source.proto()).run(None, feeds, intermediate=True)
        truth = {name: value for name, value in found.items() if name}
    outputs = [node.outputs[0] for node in lowered.graph.nodes() if node.op_type != "Cast"]
    low = [(value.name or "").removesuffix("_float16") for value in outputs if value.dtype == ir.DataType.FLOAT16]
    if all(np.isfinite(value).all() for value in truth.values()) and all(abs(truth[name]).max() < 1e4 for name in low):
        assert all(np.isfinite(value).all() for value in reference(lowered.graph, feeds).values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_that_ir_version_3_lists_as_inputs_stay_weights(dtype: str) -> None:
    weights = {"w": np.arange(81, dtype=np.float32).reshape(9, 9), "s": np.array([9, 1], np.int64)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Reshape", ["y", "s"], ["z"])]
    inputs = [helper.make_tensor_value_info(*item) for item in (("x", 1, [1, 9]), ("w", 1, [9, 9]), ("s", 7, [2]))]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "old", inputs, [helper.make_tensor_value_info("z", 1, [9, 1])], tensors)
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
    lowered = lower(Graph(ir.from_proto(old)), dtype).graph
    assert [spec.name for spec in lowered.inputs] == ["x"]
    onnx.checker.check_model(lowered.proto(), full_check=True)
    assert lowered.model.ir_version >= 4
