"""An ONNX model, owned: loaded with suspicion, saved whole, and asked what it holds."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from edgeattn import files
from edgeattn.errors import InputError, UnsupportedError, first_cause, one_line
from edgeattn.tensors import DTYPES, Profile, TensorSpec
from edgeattn.validate import PROTOBUF_LIMIT_BYTES, read_model

SCOPES = "pkg.torch.onnx.name_scopes"  # where the dynamo exporter writes the modules around a node


@dataclass(frozen=True)
class Graph:
    """A thin owner of an `onnx_ir.Model`. Passes return a new Graph and leave this one as it was.

    `path` is where it was read from; `source_sha256` is the hash of those bytes, external data included.
    """

    model: ir.Model
    path: Path | None = None
    source_sha256: str = field(default="")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it was read from: the model's, and those of its external data."""
        values = (value.const_value for value in self._initializers())
        external = {Path(tensor.path) for tensor in values if isinstance(tensor, ir.ExternalTensor)}
        return (*([self.path] if self.path else []), *sorted(external))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs a caller feeds: initializers listed as inputs (ONNX before IR 4) are not among them."""
        initializers = self.model.graph.initializers
        return tuple(_spec(value) for value in self.model.graph.inputs if value.name not in initializers)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(_spec(value) for value in self.model.graph.outputs)

    @property
    def opset(self) -> int:
        """The version of the default ONNX operator set."""
        return self.model.opset_imports.get("", 1)

    def nodes(self) -> Iterator[ir.Node]:
        """Every node, those inside control flow and model-local functions too."""
        yield from self.model.graph.all_nodes()
        for function in self.model.functions.values():
            yield from function.all_nodes()

    def op_counts(self) -> Counter[str]:
        """How often each operator occurs; those outside the default domain as `domain::Op`."""
        return Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in self.nodes())

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of initializers per dtype, largest first."""
        sizes: Counter[str] = Counter()
        for value in self._initializers():
            if value.const_value is not None:
                sizes[dtype_name(value.const_value.dtype)] += value.const_value.nbytes
        return dict(sizes.most_common())

    @property
    def parameter_count(self) -> int:
        """Elements of the floating-point initializers."""
        return sum(
            value.const_value.size
            for value in self._initializers()
            if value.const_value is not None and value.const_value.dtype.is_floating_point()
        )

    def _initializers(self) -> Iterator[ir.Value]:
        for graph in (self.model.graph, *self.model.graph.subgraphs()):
            yield from graph.initializers.values()

    def copy(self) -> Graph:
        """An independent copy; weights are shared, since no pass writes into a tensor."""
        return Graph(self.model.clone(), self.path, self.source_sha256)

    @cached_property
    def serialized(self) -> bytes:
        """The graph as ONNX bytes, external weights included.

        Raises:
            UnsupportedError: it exceeds protobuf's 2 GiB.
        """
        too_large = UnsupportedError("the graph exceeds 2 GiB, more than one ONNX file can hold")
        if sum(self.weight_bytes().values()) > PROTOBUF_LIMIT_BYTES:
            raise too_large
        try:
            serialized: bytes = self.proto().SerializeToString()
        except EncodeError as err:
            raise too_large from err
        return serialized

    def proto(self) -> onnx.ModelProto:
        """The graph as protobuf, its external weights read in.

        Raises:
            InputError: the weights' files are gone or changed, or onnx_ir cannot write what it could read.
        """
        model = self.model.clone()
        try:
            ir.external_data.load_to_model(model)
            return ir.to_proto(model)
        except (OSError, ValueError, ir.serde.SerdeError) as err:
            why = one_line(first_cause(err))
            raise InputError(f"cannot serialise {self.path or 'the graph'}: {why}; export it again") from err

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the file it was read from, else of its serialised form."""
        return self.source_sha256 or hashlib.sha256(self.serialized).hexdigest()


def load_graph(path: str | Path) -> Graph:
    """Read an ONNX file that may come from anywhere.

    Raises:
        InputError: it is no valid ONNX model, or one that could harm its reader (see `edgeattn.validate`).
    """
    path = Path(path)
    model, digest = read_model(path)
    return Graph(model, path, digest)


def save_graph(graph: Graph, path: str | Path) -> None:
    """Write one `.onnx` file with its weights inside, replacing what was there in one step.

    Raises:
        EdgeAttnError: the file cannot be written.
        UnsupportedError: the weights exceed protobuf's 2 GiB.
    """
    files.write_atomic(Path(path), graph.serialized)


def with_profile(graph: Graph, profile: Profile) -> Graph:
    """Fix every input dimension whose range holds a single value, so that backends can plan for it."""
    fixed = graph.copy()
    for value in fixed.model.graph.inputs:
        spread = profile.get(value.name or "")
        if spread is None:
            continue
        names = value.shape or ir.Shape([None] * len(spread.opt))
        dims = [
            low if low == high else name for low, high, name in zip(spread.min, spread.max, names.dims, strict=True)
        ]
        value.shape = ir.Shape(dims)
    return fixed


def dtype_name(dtype: ir.DataType | None) -> str:
    """The dtype table's name of an onnx_ir dtype; ones that the table lacks keep ONNX's name in lower case."""
    if dtype is None:
        return "unknown"
    return next((row.name for row in DTYPES if row.onnx == dtype.value), dtype.name.lower())


def module_of(node: ir.Node) -> str:
    """The path of the PyTorch module a node was traced in, where the exporter left it; else empty."""
    return (modules_around(node) or [""])[-1]


def modules_around(node: ir.Node) -> list[str]:
    """The paths of the PyTorch modules around a node, from the outermost in, where the exporter left them."""
    scopes = node.metadata_props.get(SCOPES)
    return [str(scope) for scope in ast.literal_eval(scopes)[:-1]] if scopes else []


def _spec(value: ir.Value) -> TensorSpec:
    shape = None
    if value.shape is not None:
        dims = enumerate(value.shape.dims)
        shape = tuple(dim if isinstance(dim, int) else (dim.value or f"dim_{axis}") for axis, dim in dims)
    return TensorSpec(value.name or "", dtype_name(value.dtype), shape)
