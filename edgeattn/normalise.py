"""A graph brought to a common form before a pass walks it: functions inlined, a newer operator set, types inferred."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    copy.ir_version = max(copy.ir_version, 4)  # before that, every initializer had to be an input
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
    except (RuntimeError, onnx.version_converter.ConvertError) as err:
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
    """Fill in the types, shapes and dimensions that values lack, as onnx infers them."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    known = {info.name: info.type for info in (*inferred.value_info, *inferred.output)}
    for value in chain.from_iterable(node.outputs for node in model.graph):
        if value.name in known:
            value.type = value.type or ir.serde.deserialize_type_proto_for_type(known[value.name])
            value.shape = _merged(value.shape, ir.serde.deserialize_type_proto_for_shape(known[value.name]))


def _merged(own: ir.Shape | None, inferred: ir.Shape | None) -> ir.Shape | None:
    """A number beats a name, and a name of the file one that inference made up."""
    if own is None or inferred is None or len(own) != len(inferred):
        return own if own is not None else inferred
    return ir.Shape(
        [new if isinstance(new, int) or named(dim) is None else dim for dim, new in zip(own, inferred, strict=True)]
    )


def named(dim: int | ir.SymbolicDim) -> int | str | None:
    """A dimension as a plain value: a number, a name, or None for one that is not known."""
    return dim if isinstance(dim, int) else dim.value


def settle_shapes(model: ir.Model) -> None:
    """Infer what is not known of shapes, then solve for sizes that onnx names `unk__N` but that follow from others.

    They follow through a Reshape, where all other sizes are known, and through a sliding window that keeps its size.
    Names that only an output declares are inferred too: exporters give unrelated sizes the same one there.
    """
    given = {named(dim) for value in model.graph.inputs for dim in value.shape or ()}
    declared = {value: value.shape for value in model.graph.outputs}
    for value, shape in declared.items():
        if shape is not None:
            value.shape = ir.Shape([dim if named(dim) in given or isinstance(dim, int) else None for dim in shape])
    outputs = [value for node in model.graph for value in node.outputs]
    if any(value.shape is None or any(named(dim) is None for dim in value.shape) for value in outputs):
        infer_types(model)
    settled: dict[int | str | None, int | str] = {}
    for node in model.graph:
        settled.update(_solved(node, settled))
    for value in outputs:
        if value.shape is not None:
            value.shape = ir.Shape([settled.get(named(dim), dim) for dim in value.shape])
    for value, shape in declared.items():
        value.shape = _merged(value.shape, shape) if value.shape is not None else shape


Sizes = list[int | str | None]


def _solved(node: ir.Node, settled: dict[int | str | None, int | str]) -> Iterator[tuple[str, int | str]]:
    """(made-up name, what it is) for the sizes of a node's output."""
    if node.op_type not in ("Reshape", "Conv", "MaxPool", "AveragePool") or node.domain:
        return
    shapes = [node.inputs[0].shape if node.inputs[0] is not None else None, node.outputs[0].shape]
    before, after = ([settled.get(named(dim), named(dim)) for dim in shape or ()] for shape in shapes)
    if None in (*before, *after) or not before or not after:
        return
    if node.op_type == "Reshape":
        pairs = _remaining(before, after)
    else:
        pairs = [(new, old) for new, old, same in zip(after[2:], before[2:], _keeps_size(node), strict=False) if same]
    for new, old in pairs:
        if isinstance(new, str) and new.startswith("unk__") and new != old and old is not None:
            yield new, old


def _remaining(before: Sizes, after: Sizes) -> list[tuple[int | str | None, int | str | None]]:
    """What stays of a reshape's equation of products once equal names are cancelled, if that is one name."""
    before, after = ([part for dim in dims for part in _factors(dim)] for dims in (before, after))
    for name in [dim for dim in before if isinstance(dim, str)]:
        if name in after:
            before.remove(name)
            after.remove(name)
    names = [[dim for dim in dims if isinstance(dim, str)] for dims in (before, after)]
    sizes = [math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (before, after)]
    if len(names[1]) != 1 or len(names[0]) > 1 or 0 in sizes:
        return []
    if not names[0]:
        return [(names[1][0], sizes[0] // sizes[1])] if sizes[0] % sizes[1] == 0 else []
    times, rest = divmod(sizes[0], sizes[1])
    return [(names[1][0], names[0][0] if times == 1 else f"{times}*{names[0][0]}")] if rest == 0 else []


def _factors(dim: int | str | None) -> tuple[int | str | None, ...]:
    """The number and the name of a size like `3*batch`, as PyTorch writes it."""
    times, star, name = dim.partition("*") if isinstance(dim, str) else ("", "", "")
    return (int(times), name) if star and times.isdecimal() and name.isidentifier() else (dim,)


def _keeps_size(node: ir.Node) -> list[bool]:
    """For each spatial axis of a convolution or pooling: whether it steps by one and pads for its window."""

    def ints(name: str, rank: int, default: int) -> list[int]:
        attribute = node.attributes.get(name)
        return list(attribute.as_ints()) if attribute is not None else [default] * rank

    window = ints("kernel_shape", 0, 1)
    if not window and len(node.inputs) > 1 and node.inputs[1] is not None and node.inputs[1].shape is not None:
        window = [dim if isinstance(dim, int) else 0 for dim in node.inputs[1].shape[2:]]
    rank, padding = len(window), node.attributes.get("auto_pad")
    strides, dilations = ints("strides", rank, 1), ints("dilations", rank, 1)
    pads = ints("pads", 2 * rank, 0)
    if padding is not None and padding.as_string() != "NOTSET":
        return [False] * rank
    return [
        window[axis] > 0
        and strides[axis] == 1
        and pads[axis] + pads[rank + axis] == dilations[axis] * (window[axis] - 1)
        for axis in range(rank)
    ]
