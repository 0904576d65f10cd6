"""A graph brought to a common form before a pass walks it: functions inlined, a newer operator set, types inferred."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn import sizes
from edgeattn.errors import InputError, one_line

if TYPE_CHECKING:
    from edgeattn.tensors import Array

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


def merge_casts(model: ir.Model) -> None:
    """Keep one of the casts of a value to a type: converters to FP16 cast an input for each of its readers."""
    known: dict[tuple[object, ...], ir.Value] = {}
    for node in [node for node in model.graph if node.op_type == "Cast" and node.domain in ("", "ai.onnx")]:
        output = node.outputs[0]
        how = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        first = known.setdefault((node.inputs[0], *how), output)
        if first is not output and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, first)
            model.graph.remove(node, safe=True)


def drop_identities(model: ir.Model) -> None:
    """Remove each Identity of the main graph that makes no output; a branch of an If may need its own to return one."""
    for node in [node for node in model.graph if node.op_type == "Identity" and node.domain in ("", "ai.onnx")]:
        source, result = node.inputs[0], node.outputs[0]
        if source is not None and not result.is_graph_output():
            source.shape, source.type = _merged(source.shape, result.shape), source.type or result.type
            ir.convenience.replace_all_uses_with(result, source)
            model.graph.remove(node, safe=True)


def upgraded(model: ir.Model, opset: int) -> ir.Model:
    """The model in at least this operator set; weights never pass through protobuf, and nodes keep their metadata.

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
    notes = {value.name: node.metadata_props for node in model.graph for value in node.outputs}
    for node in converted.graph:
        node.metadata_props.update(notes.get(node.outputs[0].name, {}))
    return converted


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model with its large weights turned into inputs: protobuf ends at 2 GiB, and copying them costs time."""
    graph, inputs, small = model.graph, [*model.graph.inputs], []
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and (tensor.size > _SMALL_TENSOR or isinstance(tensor, ir.ExternalTensor)):
            shape = ir.Shape(tensor.shape.numpy())
            inputs.append(ir.Value(name=value.name, shape=shape, type=ir.TensorType(tensor.dtype)))
        else:
            small.append(value)
    light = copy.copy(model)
    light.graph = ir.GraphView(  # type: ignore[assignment]
        inputs, graph.outputs, nodes=[*graph], initializers=small, opset_imports=graph.opset_imports, name=graph.name
    )
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
    """Infer what is not known of shapes, follow what is computed from them, and turn small results into initializers.

    onnx names a size it does not know `unk__N`. It is solved where it follows from others: through a Reshape whose
    other sizes are known, a sliding window that keeps its size, and targets that are computed from shapes. Names and
    numbers that only an output declares are inferred too: exporters give unrelated sizes the same one there.
    """
    given = {named(dim) for value in model.graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    declared = {value: value.shape for value in model.graph.outputs if value.producer() is not None}
    for value, shape in declared.items():
        if shape is not None:
            value.shape = ir.Shape([dim if named(dim) in given else None for dim in shape])
    outputs = [value for node in model.graph for value in node.outputs]
    if any(value.shape is None or any(named(dim) is None for dim in value.shape) for value in outputs):
        infer_types(model)
    settlement = _Settlement(model)
    for node in model.graph:
        settlement.visit(node)
    for value in outputs:
        if value.shape is not None:
            value.shape = ir.Shape(settlement.dims(value) or ())
    for value, shape in declared.items():
        value.shape = _merged(value.shape, shape) if value.shape is not None else shape
    settlement.fold()
    if _take_branches(model):
        for value in (value for node in model.graph for value in node.outputs):
            if value.shape is not None:
                value.shape = ir.Shape([None if _is_made_up(named(dim)) else dim for dim in value.shape])
        settle_shapes(model)


def _take_branches(model: ir.Model) -> bool:
    """Put the branch of each If of the main graph in its place where the condition is known; whether one was."""
    taken = False
    for node in [node for node in model.graph if node.op_type == "If" and node.domain in ("", "ai.onnx")]:
        condition = node.inputs[0].const_value if node.inputs[0] is not None else None
        if condition is None or any(value.is_graph_output() for value in node.outputs):
            continue
        branch = node.attributes["then_branch" if condition.numpy().item() else "else_branch"].as_graph()
        if branch.initializers:
            continue
        results, nodes = tuple(branch.outputs), tuple(branch)
        branch.outputs.clear()
        branch.remove(nodes)
        model.graph.insert_before(node, nodes)
        for value in (value for inner in nodes for value in inner.outputs):  # a branch names sizes for itself
            value.shape = value.shape and ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
        for value, result in zip(node.outputs, results, strict=True):
            ir.convenience.replace_all_uses_with(value, result)
        model.graph.remove(node, safe=True)
        taken = True
    if taken:
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.NameFixPass()(model)
    return taken


Sizes = list[int | str | None]


class _Settlement:
    """One sweep over a graph: `settled` says what made-up names are, `data` what small values hold."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opsets = [onnx.helper.make_opsetid(name, number) for name, number in model.opset_imports.items()]
        self.settled: dict[str, int | str] = {}
        self.data: dict[ir.Value, Array] = {}
        self.news: set[ir.Value] = set()  # what onnx's inference did not know

    def dims(self, value: ir.Value | None) -> Sizes | None:
        """The dimensions of a value, as far as they are settled."""
        return None if value is None or value.shape is None else [self.real(named(dim)) for dim in value.shape]

    def real(self, dim: int | str | None) -> int | str | None:
        """What a size is by now."""
        count, name = sizes.factors(dim)
        while isinstance(name, str) and name in self.settled:
            more, name = sizes.factors(self.settled[name])
            count *= more
        return sizes.times(count, name)

    def visit(self, node: ir.Node) -> None:
        """Settle the shape of a node's outputs, and what they hold."""
        if node.domain not in ("", "ai.onnx") or not node.inputs or node.op_type in ("If", "Loop", "Scan"):
            return
        if self._is_open(node):
            self._targeted(node)
            self._solve(node)
        given = [value for value in node.inputs if value is not None]
        if self._is_open(node) and any(value in self.news or self._is_settled(value) for value in given):
            self._infer(node)
            self._solve(node)
        known = [self._held(value) for value in node.inputs]
        found = sizes.computed(node, known, self.dims(node.inputs[0]) if node.inputs else None)
        if found is not None:
            self.data[node.outputs[0]] = found
            self.news.add(node.outputs[0])

    def fold(self) -> None:
        """Turn what is known into initializers where others read it, and remove the nodes that computed it."""
        graph = self.model.graph
        folded = {value: array for value, array in self.data.items() if _is_constant(value, array)}
        for value, array in folded.items():
            if any(node.outputs[0] not in folded for node, _ in value.uses()):
                tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape))
                known = ir.Value(shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
                known.name, value.name = value.name, None
                graph.register_initializer(known)
                ir.convenience.replace_all_uses_with(value, known)
        graph.remove([node for value in reversed(folded) if (node := value.producer()) is not None], safe=True)

    def _is_open(self, node: ir.Node) -> bool:
        return any(_is_made_up(dim) for value in node.outputs for dim in self.dims(value) or [None])

    def _held(self, value: ir.Value | None) -> Array | None:
        tensor = value.const_value if value is not None else None
        if value is None or tensor is None:
            return self.data.get(value) if value is not None else None
        array = tensor.numpy() if tensor.size <= sizes.LARGEST else None
        return array if array is not None and array.dtype.kind in "iufb" else None

    def _is_settled(self, value: ir.Value) -> bool:
        return value.shape is not None and [named(dim) for dim in value.shape] != self.dims(value)

    def _infer(self, node: ir.Node) -> None:
        """Ask onnx again, now that more is known of the inputs."""
        types, data = {}, {}
        for value in node.inputs:
            if value is None or not isinstance(value.type, ir.TensorType) or value.name is None:
                continue
            types[value.name] = onnx.helper.make_tensor_type_proto(value.type.dtype.value, self.dims(value))
            tensor, held = value.const_value, self.data.get(value)
            if tensor is not None and tensor.size <= _SMALL_TENSOR:
                data[value.name] = ir.to_proto(tensor)
            elif held is not None and held.dtype != object:
                data[value.name] = onnx.numpy_helper.from_array(held)
        try:
            schema = onnx.defs.get_schema(node.op_type, self.model.opset_imports.get("", 1), "")
            found = onnx.shape_inference.infer_node_outputs(
                schema, ir.to_proto(node), types, data, opset_imports=self.opsets
            )
        except (KeyError, onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
            return
        for value in node.outputs:
            if value.name in found and found[value.name].HasField("tensor_type"):
                value.type = value.type or ir.serde.deserialize_type_proto_for_type(found[value.name])
                shape = ir.serde.deserialize_type_proto_for_shape(found[value.name])
                if shape is not None:
                    self._learn(value, [named(dim) for dim in shape])

    def _targeted(self, node: ir.Node) -> None:
        """The result of a reshape or an expansion to sizes that are known in part."""
        target = self._held(node.inputs[1]) if node.op_type in ("Reshape", "Expand", "Tile") else None
        source = self.dims(node.inputs[0]) if target is not None else None
        if target is None or target.ndim != 1 or source is None:
            return
        wanted: Sizes = target.tolist()
        if node.op_type == "Reshape":
            keeps = not (node.attributes["allowzero"].as_int() if "allowzero" in node.attributes else 0)
            wanted = [source[place] if size == 0 and keeps else size for place, size in enumerate(wanted)]
            self._learn(node.outputs[0], [None if size == -1 else size for size in wanted])
            return
        if node.op_type == "Tile":
            pairs = zip(wanted, source, strict=True)
            tiled = [sizes.times(count, size) if isinstance(count, int) else None for count, size in pairs]
            self._learn(node.outputs[0], tiled)
            return
        rank = max(len(source), len(wanted))
        both = zip([1] * (rank - len(source)) + source, [1] * (rank - len(wanted)) + wanted, strict=True)
        self._learn(node.outputs[0], [_broadcast(own, size) for own, size in both])

    def _solve(self, node: ir.Node) -> None:
        before, after = (self.dims(value) for value in (node.inputs[0], node.outputs[0]))
        if not before or not after or None in (*before, *after):
            return
        if node.op_type == "Reshape":
            self._equate(_remaining(before, after))
        elif node.op_type in ("Conv", "MaxPool", "AveragePool"):
            pairs = zip(after[2:], before[2:], _keeps_size(node), strict=False)
            self._equate([(new, old) for new, old, same in pairs if same])

    def _learn(self, value: ir.Value, dims: Sizes) -> None:
        """Take over what is better known than before; what is not known at all gets a name."""
        before = self.dims(value)
        own = [None] * len(dims) if before is None else before
        if len(own) != len(dims):
            return
        self._equate(zip(own, dims, strict=True))
        known = [self.real(new if old is None else old) for old, new in zip(own, dims, strict=True)]
        known = [f"unk__{value.name}_{axis}" if dim is None else dim for axis, dim in enumerate(known)]
        if known != before:
            self.news.add(value)
        value.shape = ir.Shape(known)

    def _equate(self, pairs: Iterable[tuple[int | str | None, int | str | None]]) -> None:
        for made_up, dim in pairs:
            real = self.real(dim)
            is_open = isinstance(made_up, str) and made_up.startswith("unk__") and made_up not in self.settled
            if is_open and real is not None and sizes.factors(real)[1] != made_up:
                self.settled[str(made_up)] = real


def _is_made_up(dim: int | str | None) -> bool:
    return dim is None or "unk__" in str(dim)


def _is_constant(value: ir.Value, array: Array) -> bool:
    """Whether a value is fixed: numbers that say where things are, or a single one of any kind."""
    return array.dtype != object and (array.dtype.kind in "iub" or array.size == 1) and not value.is_graph_output()


def _broadcast(own: int | str | None, size: int | str | None) -> int | str | None:
    if size in (own, 1):
        return own
    return size if own == 1 or (isinstance(size, int) and size > 1) else own if isinstance(own, int) else None


def _remaining(before: Sizes, after: Sizes) -> list[tuple[int | str | None, int | str | None]]:
    """What stays of a reshape's equation of products once equal names are cancelled, if that is one name."""
    before, after = ([part for dim in dims for part in sizes.factors(dim)] for dims in (before, after))
    for name in [dim for dim in before if isinstance(dim, str)]:
        if name in after:
            before.remove(name)
            after.remove(name)
    names = [[dim for dim in dims if isinstance(dim, str)] for dims in (before, after)]
    known = [math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (before, after)]
    if len(names[1]) != 1 or len(names[0]) > 1 or 0 in known or known[0] % known[1]:
        return []
    times = known[0] // known[1]
    return [(names[1][0], sizes.times(times, names[0][0]) if names[0] else times)]


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
