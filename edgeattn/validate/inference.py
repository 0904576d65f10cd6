"""Shape inference by onnx on a model that nobody has checked yet, fast and at arm's length.

onnx gets the graph without its large weights, in a child process (see `onnxchild`), and without the types that the
file states: they are claims.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

import onnx
from google.protobuf.message import Message

from edgeattn.validate.onnxchild import check_and_infer
from edgeattn.validate.protos import EXTERNAL, domain_of, function_id, initializers, nested, tensor_bytes

_LIGHT_BYTES = 1024  # a tensor below this may be a shape, whose values inference needs


def infer_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let onnx check a model and infer the type of every tensor that its nodes make.

    Returns:
        A copy without the large weights, with functions inlined where that is possible, and only inferred types.

    Raises:
        InputError: onnx refuses the model, or exhausts its limits on it.
    """
    light = _without_weights(proto)
    checked = _completed(light).SerializeToString()
    _forget_claims(light)
    inferred: onnx.ModelProto = onnx.ModelProto.FromString(check_and_infer(checked, light.SerializeToString()))
    for graph in nested(inferred.graph):
        for value in (*graph.value_info, *graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:  # what inference says of a branch that is never taken
                    dim.ClearField("dim_value")
    return inferred


def adopt_types(proto: onnx.ModelProto, inferred: onnx.ModelProto) -> None:
    """Take over what inference found of the graph's tensors, refined by what the file states of dynamic dimensions."""
    stated = {value.name: value for value in proto.graph.value_info}
    outputs = {value.name for value in proto.graph.output}
    made = {name for node in proto.graph.node for name in node.output} - outputs
    inside = (*inferred.graph.value_info, *inferred.graph.input)  # large constants have become inputs
    found = {value.name: value for value in inside if value.name in made}
    for name, value in found.items():
        dims = value.type.tensor_type.shape.dim
        known = stated[name].type.tensor_type.shape.dim if name in stated else ()
        for dim, other in zip(dims, known, strict=False):
            if len(dims) == len(known) and not dim.HasField("dim_value"):
                dim.CopyFrom(other)
    _replace(proto.graph.value_info, list((stated | found).values()))
    for value, other in zip(proto.graph.output, inferred.graph.output, strict=True):
        if not value.type.tensor_type.HasField("shape") and other.type.WhichOneof("value"):
            value.type.CopyFrom(other.type)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every large or external weight has become an input of the graph."""
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph = light.graph
    for opset in light.opset_import:
        opset.domain = domain_of(opset.domain)  # the other spelling is unknown to onnx before 1.22
    graph.name = proto.graph.name
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    graph.initializer.extend(tensor for tensor in proto.graph.initializer if not _is_heavy(tensor))
    graph.node.extend(node for node in proto.graph.node if not _is_heavy_constant(node))
    weights = [(tensor.name, tensor) for tensor in proto.graph.initializer if _is_heavy(tensor)]
    weights += [(node.output[0], node.attribute[0].t) for node in proto.graph.node if _is_heavy_constant(node)]
    for inner in nested(graph):
        if inner is not graph and any(map(_is_heavy, initializers(inner))):
            weights += [(tensor.name, tensor) for tensor in inner.initializer if _is_heavy(tensor)]
            _replace(inner.initializer, [tensor for tensor in inner.initializer if not _is_heavy(tensor)])
    specs = [onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims) for name, tensor in weights]
    inputs = {value.name for value in graph.input}
    graph.input.extend({spec.name: spec for spec in specs if spec.name not in inputs}.values())
    return light


def _is_heavy(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == EXTERNAL or (tensor.HasField("raw_data") and tensor_bytes(tensor) > _LIGHT_BYTES)


def _is_heavy_constant(node: onnx.NodeProto) -> bool:
    if node.op_type != "Constant" or domain_of(node.domain) or len(node.attribute) != 1 or len(node.output) != 1:
        return False
    return node.attribute[0].HasField("t") and _is_heavy(node.attribute[0].t)


def _completed(light: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with what the checker demands and no runtime needs: a graph's name, its outputs' types and ranks."""
    model = onnx.ModelProto()
    model.CopyFrom(light)
    if model.ir_version == 3:  # which demands that initializers are inputs as well
        model.ir_version = 4
    model.graph.name = model.graph.name or "graph"
    for value in model.graph.output:
        if not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    return model


def _forget_claims(light: onnx.ModelProto) -> None:
    """Drop the types that the file states for what its nodes make: a wrong one would stop inference without a word.

    Those of operators that nobody knows stay, since nothing else tells what they make.
    """
    functions = {function_id(function, function.name) for function in light.functions}
    for body in (light.graph, *light.functions):
        for graph in nested(body):
            opaque = {
                name
                for node in graph.node
                if function_id(node, node.op_type) not in functions
                and not onnx.defs.has(node.op_type, domain_of(node.domain))
                for name in node.output
            }
            _replace(graph.value_info, [value for value in graph.value_info if value.name in opaque])
            for value in graph.output if isinstance(graph, onnx.GraphProto) else ():
                if value.name not in opaque:
                    value.ClearField("type")


def _replace(field: MutableSequence[Message], items: Sequence[Message]) -> None:
    del field[:]
    field.extend(items)
