"""A graph read by TensorRT's own ONNX parser into a strongly typed network, and what that network computes in."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from edgeattn.backends.trt import library as lib
from edgeattn.errors import BuildError
from edgeattn.graph import Graph

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_FLOATS = ("float32", "float16", "bfloat16", "float8_e4m3fn")
_PRODUCTS = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"}
_MOVES_DATA = {
    "CAST",
    "CONCATENATION",
    "CONSTANT",
    "DEQUANTIZE",
    "FILL",
    "GATHER",
    "IDENTITY",
    "ONE_HOT",
    "PADDING",
    "QUANTIZE",
    "SCATTER",
    "SELECT",
    "SHAPE",
    "SHUFFLE",
    "SLICE",
    "SQUEEZE",
    "UNSQUEEZE",
}


@dataclass(frozen=True)
class Parsed:
    """A network with what keeps it alive, and why it cannot be built, if it cannot.

    `problems` is what TensorRT lacks, `faults` what is wrong with the graph: shapes or dtypes that do not fit.
    """

    builder: Any
    network: Any
    parser: Any
    problems: tuple[str, ...]
    faults: tuple[str, ...]


def parse(library: lib.Library, graph: Graph) -> Parsed:
    """Read a graph into a network.

    Raises:
        BuildError: TensorRT does not start.
    """
    from polygraphy.backend.trt import create_network
    from polygraphy.backend.trt.util import get_trt_logger

    model = graph.serialized
    with lib.messages() as heard, lib.quiet_polygraphy():
        try:
            builder, network = create_network(strongly_typed=True)
            library.trt.init_libnvinfer_plugins(get_trt_logger(), "")
            parser = library.trt.OnnxParser(network, get_trt_logger())
            understood = parser.parse(model)
        except Exception as err:
            raise BuildError(f"{library} does not start: {lib.errors_in(heard, err)}") from err
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    problems = _foreign_types(graph) + [_in_words(error) for error in errors if _is_lacking(error)]
    faults = [_in_words(error) for error in errors if not _is_lacking(error)]
    if understood:
        problems += _shape_inputs(network)
    elif not errors:
        faults = [lib.errors_in(heard)]
    return Parsed(builder, network, parser, tuple(problems), tuple(faults))


def _is_lacking(error: Any) -> bool:
    return "Plugin not found" in error.desc() or "UNSUPPORTED" in error.code().name


def _in_words(error: Any) -> str:
    """One parser error: the node, its operator, and what TensorRT has against it."""
    text = lib.clean(error.desc().replace(f"Invalid Node - {error.node_name()}", ""))
    if quoted := re.search(r'&& "(.+?)"', text):
        text = quoted[1]
    text = re.sub(r"^Assertion failed: .*?: (?=\w)", "", text)
    if text in ("", "false"):
        text = "not supported"
    if "Plugin not found" in text:
        text = "no such operator, and no plugin of that name"
    where = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "the graph"
    return f"{where}: {text}"


def _shape_inputs(network: Any) -> list[str]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return [
        f"input {tensor.name!r} holds a shape, not data: make it a constant of the graph"
        for tensor in tensors
        if tensor.is_shape_tensor
    ]


def _foreign_types(graph: Graph) -> list[str]:
    """Inputs and outputs in dtypes that TensorRT lacks: most it refuses, float64 it reads as float32 without a word."""
    return [
        f"tensor {spec.name!r} is {spec.dtype}, which TensorRT does not have: cast it in the model"
        for spec in (*graph.inputs, *graph.outputs)
        if spec.dtype not in DTYPES.values()
    ]


def make_attention_decomposable(trt: Any, network: Any) -> None:
    """Let attention run as several kernels where no fused one fits.

    TensorRT otherwise refuses the whole network, for example for any attention in float32.
    """
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def count_compute(network: Any) -> dict[str, int]:
    """Count the layers that compute, by the dtype they compute in.

    A strongly typed network is built as it is typed, and a product of what was dequantised is one in INT8. Layers that
    only move data, and those that only work on constants, do not count.
    """
    seen: Counter[str] = Counter()
    constants: set[str] = set()
    dequantized: set[str] = set()
    for layer in _layers(network):
        inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        if all(tensor is None or tensor.name in constants for tensor in inputs):
            constants.update(tensor.name for tensor in outputs)
            continue
        dtype = DTYPES.get(outputs[0].dtype.name, "") if outputs else ""
        if layer.type.name == "DEQUANTIZE":
            dequantized.update(tensor.name for tensor in outputs)
        if layer.type.name in _PRODUCTS and not dequantized.isdisjoint(tensor.name for tensor in inputs if tensor):
            seen["int8"] += 1
        elif dtype in _FLOATS and layer.type.name not in _MOVES_DATA:
            seen[dtype] += 1
    return dict(seen.most_common())


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]
