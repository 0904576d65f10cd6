"""What an ONNX file must satisfy before any runtime sees it.

Runtimes trust a model: a chain of functions overflows ONNX Runtime's stack, a shape of 2^34 takes all memory, external
data names any file. So a file is read once, here: versions and limits first, by loops that do not recurse, then every
weight's shape against its bytes, then onnx's own checker and shape inference. These run in a child process, and never
see large weights, which keeps them fast.
"""

from __future__ import annotations

import math
import os
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from edgeattn import files
from edgeattn.errors import InputError, first_cause, one_line, quote
from edgeattn.validate.external import external_files
from edgeattn.validate.inference import adopt_types, infer_types
from edgeattn.validate.protos import (
    BITS,
    EXTERNAL,
    STRING,
    Body,
    FunctionId,
    attributes,
    check_fields,
    domain_of,
    function_id,
    initializers,
    nested,
    tensor_bytes,
)

PROTOBUF_LIMIT_BYTES = 2**31 - 1
MAX_TENSOR_BYTES = 2**33  # TensorRT stops at 2^31 - 1 elements, which are 8 GiB of float32
MAX_RANK = 64  # numpy's
MAX_NODES = 50_000  # a call of a model-local function counts as what it expands to
MAX_CALL_DEPTH = 64  # ONNX Runtime crashes between 1000 and 3000

_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def read_model(path: Path) -> tuple[ir.Model, str]:
    """Read an ONNX file that may come from anywhere; the model carries inferred types and shapes.

    Returns:
        The model, and the SHA-256 over the file's bytes and then those of its external data files, sorted by location.

    Raises:
        InputError: the file is no valid ONNX model, or one that could harm its reader; names what and where.
    """
    data = files.read_bytes(path, PROTOBUF_LIMIT_BYTES)
    try:
        proto = _parse(data)
        _check_text(proto)
        _check_header(proto)
        _check_functions(proto)
        _check_operators(proto)
        for body in (proto.graph, *proto.functions):
            for graph in nested(body):
                _check_body(graph)
        folder = Path(os.path.realpath(path.parent))
        digest = files.sha256_files(external_files(_external_tensors(proto), folder), start=data)
        inferred = infer_types(proto)
        for graph in nested(inferred.graph):
            _check_types(graph)
        adopt_types(proto, inferred)
        return _to_ir(proto, folder), digest
    except InputError as err:
        raise InputError(f"cannot use {path}: {err}") from err


def _parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise InputError("it is empty; copy or export it again")
    if data.startswith(b"version https://git-lfs"):
        raise InputError("it is a git-lfs pointer, not the model: run git lfs pull")
    if data.startswith(b"PK\x03\x04"):
        raise InputError("it is a zip archive, such as a PyTorch checkpoint: export the model with edgeattn export")
    try:
        check_fields(data)
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except DecodeError as err:
        what = "it is text" if set(data[:256]) <= set(string.printable.encode()) else "truncated or corrupt"
        raise InputError(f"it is no ONNX model ({what}); copy or export it again") from err
    if not proto.HasField("graph"):
        raise InputError("it holds no graph, so it is truncated or no ONNX model; copy or export it again")
    return proto


def _check_text(proto: onnx.ModelProto) -> None:
    """Refuse strings that are not UTF-8: protobuf hands them out as bytes, and only some of its readers mind."""
    stack: list[Message] = [proto]
    while stack:
        message = stack.pop()
        # The fields of a tensor are listed by hand, since listing them all copies its data.
        fields = message.ListFields() if not isinstance(message, onnx.TensorProto) else _texts(message)
        for field, value in fields:
            many = (value,) if isinstance(value, str | bytes | Message) else value
            if field.type == field.TYPE_MESSAGE:
                stack.extend(many)
            elif field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in many):
                raise InputError(f"field {field.full_name} holds {quote(value)}, which is not UTF-8; export it again")


def _texts(tensor: onnx.TensorProto) -> list[tuple[FieldDescriptor, Any]]:
    fields = onnx.TensorProto.DESCRIPTOR.fields_by_name
    return [(fields[name], getattr(tensor, name)) for name in ("name", "doc_string", "external_data", "metadata_props")]


def _check_header(proto: onnx.ModelProto) -> None:
    if not proto.graph.output:
        raise InputError("its graph has no outputs; export it again")
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise InputError(
            f"IR version {proto.ir_version} is unknown; supported: 1 to {onnx.IR_VERSION} (onnx {onnx.__version__})"
        )
    newest = onnx.defs.onnx_opset_version()
    for opset in (opset for body in (proto, *proto.functions) for opset in body.opset_import):
        if opset.domain in ("", "ai.onnx") and not 1 <= opset.version <= newest:
            raise InputError(
                f"opset {opset.version} is unknown; supported: 1 to {newest} (onnx {onnx.__version__}): "
                "upgrade onnx, or export with an older opset"
            )
    _refuse_repeated("opset of domain", (domain_of(opset.domain) for opset in proto.opset_import))
    _refuse_repeated("graph output", (value.name for value in proto.graph.output))


def _check_functions(proto: onnx.ModelProto) -> None:
    """Refuse recursion, deep chains, and calls that expand to more nodes than any model has.

    Works upwards from the functions that call none: round n settles those whose calls are n deep.
    """
    _refuse_repeated("function", ("::".join(function_id(item, item.name)) for item in proto.functions))
    calls = {function_id(function, function.name): _count_nodes(function) for function in proto.functions}
    waiting, expanded = dict(calls), dict[FunctionId, int]()
    for _ in range(MAX_CALL_DEPTH):
        ready = [key for key, called in waiting.items() if not any(other in waiting for other in called)]
        expanded |= {key: _expand(waiting.pop(key), expanded) for key in ready}
    if waiting:
        domain, name, _ = next(iter(waiting))
        raise InputError(
            f"function {quote(name)} of domain {quote(domain)} calls itself, or calls more than {MAX_CALL_DEPTH} deep: "
            "inline the model's functions, or export it again"
        )
    total = _expand(_count_nodes(proto.graph), expanded)
    if total > MAX_NODES:
        raise InputError(f"it has {total} nodes, functions expanded; at most {MAX_NODES} are read")


def _count_nodes(body: Body) -> Counter[FunctionId]:
    return Counter(function_id(node, node.op_type) for graph in nested(body) for node in graph.node)


def _expand(called: Counter[FunctionId], expanded: dict[FunctionId, int]) -> int:
    return sum(count * (1 + expanded.get(key, 0)) for key, count in called.items())


def _check_operators(proto: onnx.ModelProto) -> None:
    """Name at once every operator that claims to be ONNX's own and is not; onnx's checker names the first."""
    used = {key for body in (proto.graph, *proto.functions) for key in _count_nodes(body)}
    used -= {function_id(function, function.name) for function in proto.functions}
    unknown = sorted({name for domain, name, _ in used if not domain and not onnx.defs.has(name)})
    if unknown:
        raise InputError(
            f"unknown operators {', '.join(map(quote, unknown[:20]))}; onnx {onnx.__version__} knows opsets up to "
            f"{onnx.defs.onnx_opset_version()}, and an operator of one's own needs a domain"
        )


def _external_tensors(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, int]]:
    for body in (proto.graph, *proto.functions):
        for graph in nested(body):
            for tensor in initializers(graph):
                if tensor.data_location == EXTERNAL:
                    if body is not proto.graph:
                        raise InputError(f"initializer {quote(tensor.name)} of a function has external data; inline it")
                    yield tensor, tensor_bytes(tensor)


def _check_body(graph: Body) -> None:
    for attribute in attributes(graph):
        what = f"attribute {quote(attribute.name)}"
        for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
            _check_tensor(tensor, what)
            if tensor.data_location == EXTERNAL:
                raise InputError(f"{what} has external data, which only initializers may have; save it inside")
    for tensor in initializers(graph):
        _check_tensor(tensor, f"initializer {quote(tensor.name)}")
    _refuse_repeated("initializer", (tensor.name for tensor in initializers(graph)))
    _check_types(graph)
    if isinstance(graph, onnx.FunctionProto):
        made = {*graph.input, *(name for node in graph.node for name in node.output)}
        if lost := [name for name in graph.output if name not in made]:
            raise InputError(f"function {quote(graph.name)} does not make its output {quote(lost[0])}; export it again")
    elif graph.sparse_initializer:
        raise InputError(f"graph {quote(graph.name)} has sparse initializers, which few runtimes read; make them dense")


def _check_tensor(tensor: onnx.TensorProto, what: str) -> None:
    """Hold a tensor's shape against the bytes that are there."""
    _check_shape(tensor.data_type, tensor.dims, what)
    if not tensor.data_type:
        raise InputError(f"{what} has no data type; export it again")
    if tensor.data_location == EXTERNAL:
        if tensor.data_type == STRING:
            raise InputError(f"{what} has strings as external data, which ONNX does not allow; save them inside")
        return
    typed = {name: found for name in _TYPED_FIELDS if (found := len(getattr(tensor, name)))}
    if tensor.HasField("raw_data"):
        unit, wanted, found = "bytes", tensor_bytes(tensor), len(tensor.raw_data)
        fits = found == wanted and not typed and tensor.data_type != STRING
    else:
        unit, wanted, found = "values", _typed_values(tensor), sum(typed.values())
        fits = found == wanted and set(typed) <= {onnx.helper.tensor_dtype_to_field(tensor.data_type)}
    if not fits:
        shape = "x".join(map(str, tensor.dims)) or "scalar"
        raise InputError(f"{what} of shape {shape} needs {wanted} {unit}, got {found}; copy or export it again")


def _typed_values(tensor: onnx.TensorProto) -> int:
    """How many entries of its typed field a tensor fills: a complex number takes two, small types share one."""
    count: int = math.prod(tensor.dims) * (2 if tensor.data_type in _COMPLEX else 1)
    return -(-count * min(BITS[tensor.data_type], 8) // 8)


def _check_types(graph: Body) -> None:
    declared = (*graph.input, *graph.output) if isinstance(graph, onnx.GraphProto) else ()
    for value in (*graph.value_info, *declared):
        tensor = value.type.tensor_type
        # A dynamic dimension counts as 1, and so does an unnamed one.
        dims = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in tensor.shape.dim]
        _check_shape(tensor.elem_type, dims, f"tensor {quote(value.name)}")


def _check_shape(data_type: int, dims: Iterable[int], what: str) -> None:
    dims = list(dims)
    if data_type and data_type not in BITS:
        raise InputError(f"{what} has the unknown data type {data_type}; export it again")
    if len(dims) > MAX_RANK:
        raise InputError(f"{what} has {len(dims)} dimensions; supported: {MAX_RANK}")
    if any(dim < 0 for dim in dims):
        raise InputError(f"{what} has a negative dimension ({min(dims)}); a dynamic one needs a name instead")
    size = math.prod(dims) * BITS.get(data_type, 8) // 8
    if size > MAX_TENSOR_BYTES:
        raise InputError(
            f"{what} would take {size} bytes, at most {MAX_TENSOR_BYTES} are supported; use a smaller shape"
        )


def _refuse_repeated(what: str, names: Iterable[object]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{what} {quote(repeated[0])} occurs twice; export the model again")


def _to_ir(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    try:
        model = ir.serde.deserialize_model(proto)
        ir.external_data.set_base_dir(model.graph, folder)
    except Exception as err:
        raise InputError(f"onnx_ir refuses it: {one_line(first_cause(err))}; export it again") from err
    return model
