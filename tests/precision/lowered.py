"""Lowering a graph with all that every result owes, and the evaluators that tests hold it against."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.graph import Graph, dtype_name
from edgeattn.interpreter import run_as_written
from edgeattn.precision.fp16 import Lowered, lower
from edgeattn.precision.ranges import Range, Ranges
from edgeattn.tolerance import tolerance_for
from tests.models import ZOO, settled

BOTH = ("float16", "bfloat16")


def graph(text: str, opset: int = 18, domains: str = "") -> Graph:
    return Graph(ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}{domains}]>\n{text}'))


def checked(
    source: Graph,
    dtype: str = "float16",
    keep_io_types: bool = True,
    ranges: Ranges | None = None,
    keep: Collection[str] = (),
) -> Lowered:
    """Lower, and hold the result to what every result owes."""
    before = source.proto().SerializeToString(deterministic=True)
    lowered = lower(source, dtype, keep_io_types, ranges, keep)
    again = lower(source, dtype, keep_io_types, ranges, keep)
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
    assert_no_needless_casts(lowered.graph)
    return lowered


def assert_no_needless_casts(lowered: Graph) -> None:
    """No value is cast twice to a dtype, to the dtype it has, or back to the one it was cast from."""
    casts = [node for node in lowered.model.graph if node.op_type == "Cast"]
    assert len({(node.inputs[0], node.attributes["to"].value) for node in casts}) == len(casts)
    for node in casts:
        source, result = node.inputs[0], node.outputs[0]
        producer = source.producer()
        assert source.dtype != result.dtype or result.is_graph_output()
        assert producer not in casts or producer.inputs[0].dtype != result.dtype


def observed(source: Graph, *samples: dict[str, Any]) -> Ranges:
    """The ranges of all float values over samples, inputs included."""
    execute = run_as_written(source, every=True)
    spans: dict[str, list[float]] = {}
    for feeds in samples:
        for name, array in {**feeds, **execute(feeds)}.items():
            if array.dtype == np.float32 and array.size:
                spans.setdefault(name, []).extend((float(array.min()), float(array.max())))
    tensors = {name: Range(min(ends), max(ends), min(ends), max(ends)) for name, ends in spans.items()}
    return Ranges("minmax", len(samples), tensors)


class LayerNormalization(OpRun):
    """The operator with its statistics in float32, as `stash_type` says; onnx's own computes them in x's dtype."""

    def _run(self, x: Any, scale: Any, bias: Any = None, *, axis: int, epsilon: float, stash_type: int) -> Any:
        assert stash_type == 1
        wide = x.astype(np.float32)
        axes = tuple(range(axis % x.ndim, x.ndim))
        centred = wide - wide.mean(axes, keepdims=True)
        y = (centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + epsilon)).astype(x.dtype) * scale
        return (y if bias is None else y + bias,)


def reference(source: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = ReferenceEvaluator(source.proto(), new_ops=[LayerNormalization]).run(None, feeds)
    return {spec.name: value for spec, value in zip(source.outputs, found, strict=True)}


def run(source: Graph, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(source.serialized, providers=["CPUExecutionProvider"])
    return dict(zip([spec.name for spec in source.outputs], session.run(None, feeds), strict=True))


def rtx_products(lowered: Graph) -> set[str]:
    """Build a graph with TensorRT-RTX, strongly typed; the dtypes that convolutions and products compute in."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(lowered.serialized), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in layers if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)]
    names = {trt.float16: "float16", trt.bfloat16: "bfloat16", trt.float32: "float32"}
    return {names[layer.get_output(0).dtype] for layer in products}


def sqnr(found: dict[str, Any], truth: dict[str, Any]) -> float:
    """Signal to noise over all outputs, in dB."""
    noise = sum(np.square(found[name].astype(np.float64) - truth[name]).sum() for name in truth)
    signal = sum(np.square(value.astype(np.float64)).sum() for value in truth.values())
    return float(10 * np.log10(signal / max(noise, 1e-300)))


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
    return {node.name: dtype_name(node.outputs[0].dtype) for node in lowered.graph.nodes()}


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
    found = traced(module, inputs, dynamic_shapes=shapes, opset_version=opset)
    return found, {spec.name: tensor.numpy() for spec, tensor in zip(found.inputs, inputs, strict=True)}


def traced(module: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Graph:
    """What PyTorch's exporter makes of a module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False, **options)
    return Graph(ir.from_proto(program.model_proto))


MODELS = [*ZOO, "masked", "masked by the smallest float32", "channels-first norm", "cosine", "spatial transformer"]


# ---- graphs of any form

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
