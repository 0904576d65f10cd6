"""A graph's weights made ready to be quantised: computed ones become initializers, normalisation goes into them."""

from __future__ import annotations

from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.precision.signatures import constant, op

if TYPE_CHECKING:
    from edgeattn.tensors import Array

# What exporters leave between an initializer and the operator that it is a weight of.
RESHAPES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def settle_weights(model: ir.Model) -> None:
    """Fold, in place, what is computed from initializers alone, and BatchNormalization into the product before it."""
    names = Names(model.graph)
    _fold_constants(model, names)
    for node in [node for node in model.graph if op(node) == "BatchNormalization"]:
        _fold_norm(model.graph, node, names)
    common.RemoveUnusedNodesPass()(model)


class Names:
    """The names in use in a graph; `free` finds one like the one asked for and takes it."""

    def __init__(self, graph: ir.Graph) -> None:
        values = (value.name for node in graph for value in node.outputs)
        nodes = (node.name for node in graph)
        self.taken = {*values, *nodes, *graph.initializers, *(value.name for value in graph.inputs)}

    def free(self, name: str) -> str:
        """The name, or the first of name_1, name_2, ... that is free."""
        free = next(item for item in chain([name], (f"{name}_{n}" for n in count(1))) if item not in self.taken)
        self.taken.add(free)
        return free


def initializer(graph: ir.Graph, names: Names, name: str, array: Array) -> ir.Value:
    """Add an initializer, under this name or one like it."""
    free = names.free(name)
    tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _fold_constants(model: ir.Model, names: Names) -> None:
    from onnx.reference import ReferenceEvaluator

    for node in [node for node in model.graph if op(node) in RESHAPES]:
        old, proto = node.outputs[0], ir.to_proto(node)
        tensors = [tensor.numpy() for value in node.inputs if (tensor := constant(value)) is not None]
        if len(tensors) == len(node.inputs) and not old.is_graph_output():
            (array,) = ReferenceEvaluator(proto).run(None, dict(zip(proto.input, tensors, strict=True)))
            new = initializer(model.graph, names, f"{old.name}_folded", np.asarray(array))
            ir.convenience.replace_all_uses_with(old, new)
            model.graph.remove(node, safe=True)


def _fold_norm(graph: ir.Graph, norm: ir.Node, names: Names) -> None:
    """From (w * x + b - mean) s + beta, with s = gamma / sqrt(var + eps), to (w s) * x + ((b - mean) s + beta)."""
    value = norm.inputs[0]
    product = value.producer() if value is not None and len(value.uses()) == 1 else None
    if value is None or product is None or op(product) not in ("Conv", "ConvTranspose") or value.is_graph_output():
        return
    groups = product.attributes["group"].as_int() if "group" in product.attributes else 1
    fixed = all(constant(item) is not None for item in (*product.inputs[1:], *norm.inputs[1:]))
    if not fixed or (op(product) == "ConvTranspose" and groups != 1):
        return
    weights, *offset = (numbers(item) for item in product.inputs[1:])
    gamma, beta, mean, var = (numbers(item) for item in norm.inputs[1:])
    scale = gamma / np.sqrt(var + (norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5))
    channels = [-1 if place == (op(product) == "ConvTranspose") else 1 for place in range(weights.ndim)]
    bias = (offset[0] if offset else 0.0) - mean
    dtype, name = (value.dtype or ir.DataType.FLOAT).numpy(), f"{norm.name}_folded"
    arrays = weights * scale.reshape(channels), bias * scale + beta
    folded = [initializer(graph, names, name, array.astype(dtype)) for array in arrays]
    result, old = norm.outputs[0], product.outputs[0]
    product.resize_inputs(3)
    for place, item in enumerate(folded, 1):
        product.replace_input_with(place, item)
    old.type, old.shape = result.type, result.shape
    ir.convenience.replace_all_uses_with(result, old, replace_graph_outputs=True)
    old.name, result.name = result.name, None
    graph.remove(norm, safe=True)


def numbers(value: ir.Value | None) -> Array:
    """The numbers of a constant, in float64."""
    tensor = constant(value)
    assert tensor is not None
    return tensor.numpy().astype(np.float64)
