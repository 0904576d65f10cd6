"""Graphs written by hand, and whether fusing them changed a number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import torch

from edgeattn.fuse import FusionReport, fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.ops import softmax_attention
from edgeattn.ops.base import DOMAIN, VERSION, AttentionOp
from edgeattn.tensors import random_feeds
from edgeattn.tolerance import tolerance_for
from tests.graphs import FLOAT, Array


def graph_of(signature: str, body: str, weights: dict[str, Array], opset: int = 18) -> Graph:
    """The graph `signature { body }` in onnx's text form, these weights its initializers."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g {signature} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(proto)
    return Graph(ir.from_proto(proto))


def weights_of(seed: int, dtype: str = "float32", **shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random weights by name."""
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


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
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def graph(self, output: str, opset: int = 18, **shapes: tuple[int | str, ...]) -> Graph:
        proto = onnx.helper.make_graph(
            self.nodes,
            "graph",
            [onnx.helper.make_tensor_value_info(name, self.dtype, shape) for name, shape in shapes.items()],
            [onnx.helper.make_tensor_value_info(output, self.dtype, None)],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
        return Graph(ir.from_proto(model))


def attention(sketch: Sketch, q: str = "q", k: str = "k", v: str = "v") -> str:
    scores = sketch.op("MatMul", q, sketch.op("Transpose", k, perm=[0, 2, 1]))
    return sketch.op("MatMul", sketch.op("Softmax", scores, axis=-1), v)


def fused_exactly(graph: Graph, dtype: str = "float32") -> FusionReport:
    """The report of fusing a graph, which must compute the same on random data before and after."""
    fused, report = fuse(graph)
    shapes = {spec.name: tuple(int(dim) for dim in spec.shape or ()) for spec in graph.inputs}
    feeds = random_feeds(graph.inputs, shapes, seed=1)
    for found, truth in zip(run_as_written(fused)(feeds).values(), run_as_written(graph)(feeds).values(), strict=True):
        assert_close(found, truth, dtype)
    return report


def fused_and_same(graph: Graph, sizes: dict[str, int] | None = None) -> FusionReport:
    """The report of fusing softmax attention, which must change no result, also where that is no number."""
    fused, report = fuse(graph, (softmax_attention.OP,))
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


def assert_close(found: Array, truth: Array, dtype: str = "float32") -> None:
    assert found.shape == truth.shape
    error = np.abs(found.astype(np.float64) - truth.astype(np.float64)).max(initial=0.0)
    assert error <= tolerance_for(dtype).floor * max(float(np.abs(truth).max(initial=0.0)), 1e-3)


def assert_body_is_reference(op: AttentionOp, variant: str, inputs: list[Array], **attributes: object) -> None:
    """The ONNX body in onnxruntime against the PyTorch reference in float64."""
    header = f'<domain: "{DOMAIN}", opset_import: ["": 18], overload: "{variant}">\n'
    function = onnx.parser.parse_function(header + op.function(variant))
    names = [f"in{index}" for index in range(len(inputs))]
    node = onnx.helper.make_node(op.name, names, ["y"], domain=DOMAIN, overload=variant, **attributes)
    made = onnx.helper.make_graph(
        [node],
        "g",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
        ],
        [onnx.helper.make_tensor_value_info("y", 1, inputs[0].shape)],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid(DOMAIN, VERSION)]
    proto = onnx.helper.make_model(made, opset_imports=opsets, functions=[function], ir_version=10)
    onnx.checker.check_model(proto)
    (found,) = run_as_written(Graph(ir.from_proto(proto)))(dict(zip(names, inputs, strict=True))).values()
    tensors = [torch.from_numpy(array) for array in inputs]
    tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
    assert_close(found, op.reference(variant, *tensors, **attributes).numpy())
