"""A graph brought to a common form before a pass walks it: functions inlined, a newer operator set, types inferred."""

from __future__ import annotations

from itertools import chain

import onnx
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.errors import InputError, one_line

_SMALL_TENSOR = 1024  # elements; inference may need the values of a shape, never those of a weight


def inlined(model: ir.Model) -> ir.Model:
    """A copy without model-local functions, and without initializers among its inputs."""
    copy = model.clone()
    if copy.functions:
        common.InlinePass()(copy)
        common.RemoveUnusedOpsetsPass()(copy)
    common.RemoveInitializersFromInputsPass()(copy)
    return copy


def upgraded(model: ir.Model, opset: int) -> ir.Model:
    """The model in at least this operator set; weights never pass through protobuf.

    Raises:
        InputError: onnx cannot carry an operator over.
    """
    version = model.opset_imports.get("", 1)
    if version >= opset:
        return model
    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(without_weights(model), opset))
    except RuntimeError as err:
        raise InputError(
            f"cannot convert the graph from opset {version} to {opset}: {one_line(err)}; export it with opset {opset}"
        ) from err
    for value in [value for value in converted.graph.inputs if value.name in weights]:
        converted.graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        converted.graph.register_initializer(value)
    return converted


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model with its large weights turned into inputs: protobuf ends at 2 GiB, and copying them costs time."""
    light = model.clone()
    for name, value in tuple(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and (tensor.size > _SMALL_TENSOR or isinstance(tensor, ir.ExternalTensor)):
            light.graph.inputs.append(
                ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
            )
            del light.graph.initializers[name]
    return ir.to_proto(light)


def infer_types(model: ir.Model) -> None:
    """Fill in the types and shapes of values that have none, as onnx infers them."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    known = {info.name: info.type for info in inferred.value_info}
    for value in chain.from_iterable(node.outputs for node in model.graph):
        if value.name in known:
            value.type = value.type or ir.serde.deserialize_type_proto_for_type(known[value.name])
            value.shape = value.shape or ir.serde.deserialize_type_proto_for_shape(known[value.name])
