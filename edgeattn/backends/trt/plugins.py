"""What attentions ask of plugins, and the kernels that answer, compiled ahead of time: values, with no TensorRT."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgeattn.backends.base import Progress, silent
from edgeattn.backends.trt.layouts import CANONICAL, layouts, operand, residual
from edgeattn.errors import UnsupportedError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, dtype_name
from edgeattn.kernels import KERNELS, kernel
from edgeattn.kernels.launch import Launch
from edgeattn.ops.base import DOMAIN
from edgeattn.ops.walk import dims
from edgeattn.tensors import Dim

if TYPE_CHECKING:
    from edgeattn.kernels.compile import Compiled

# What a plugin's node carries beside the attributes of its op.
ADDED = ("variant", "plugin_namespace", "plugin_version")
ATTENTION = "SoftmaxAttention"
PLAIN = ",".join([CANONICAL] * 4)


@dataclass(frozen=True)
class Request:
    """What one canonical node asks of its kernels.

    Attributes:
        op: the node's type.
        variant: its overload.
        dtypes: of all inputs.
        shapes: of all inputs, as they lie in memory; sizes that are open are called d0, d1, ... and are equal where
            they have one name.
        attributes: the node's own.
    """

    op: str
    variant: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[Dim, ...], ...]
    attributes: Mapping[str, int | float | str | tuple[int, ...]] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Of the first input."""
        return self.dtypes[0]

    @property
    def result(self) -> str:
        """The dtype of the output."""
        return "int8" if self.codes else self.dtype

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the kernels call the inputs."""
        more = {"residual": True} if self.adds else {}
        names: tuple[str, ...] = kernel(self.op).inputs(self.variant, **more)
        return (*names, "y_scale") if self.codes else names

    @property
    def adds(self) -> bool:
        """Whether the last two inputs are x and gamma, and the output gamma y + x, shaped as x."""
        return bool(self.attributes.get("residual"))

    @property
    def codes(self) -> bool:
        """Whether the output is INT8 codes, and the last input their scale, of shape (1)."""
        return bool(self.attributes.get("codes"))

    @property
    def open(self) -> tuple[str, ...]:
        """The names of the open sizes, in order."""
        return tuple(dict.fromkeys(size for shape in self.shapes for size in shape if isinstance(size, str)))

    @property
    def output(self) -> tuple[tuple[int, int], ...]:
        """For each axis of the output, the input and the axis whose size it has."""
        if self.op != ATTENTION or self.adds:
            source = len(self.shapes) - 2 if self.adds else 0
            return tuple((source, axis) for axis in range(len(self.shapes[source])))
        q, _, v, y = self.layout
        return tuple((2, v.index(axis)) if axis == "d" else (0, q.index(axis)) for axis in y)

    @property
    def layout(self) -> tuple[str, ...]:
        """How q, k, v and y of a softmax attention lie in memory."""
        return tuple(str(self.attributes.get("layout", PLAIN)).split(","))

    @property
    def fields(self) -> dict[str, float | str]:
        """The attributes of the plugin's node: the variant, and the node's own, lists as text."""
        texts = {name: ",".join(map(str, value)) for name, value in self.attributes.items() if isinstance(value, tuple)}
        return {"variant": self.variant, **self.attributes, **texts}  # type: ignore[dict-item]

    def covers(self, other: Request) -> bool:
        """Whether kernels for this request run another: the same, or one with sizes where this one has them open."""
        if (self.op, self.variant, self.dtypes) != (other.op, other.variant, other.dtypes):
            return False
        if [len(shape) for shape in self.shapes] != [len(shape) for shape in other.shapes]:
            return False
        sizes: dict[Dim, Dim] = {}
        pairs = (
            (mine, size)
            for shapes in zip(self.shapes, other.shapes, strict=True)
            for mine, size in zip(*shapes, strict=True)
        )
        fits = all(
            mine == size if isinstance(mine, int) else sizes.setdefault(mine, size) == size for mine, size in pairs
        )
        return (
            fits
            and self.attributes.keys() == other.attributes.keys()
            and all(_alike(value, other.attributes[name]) for name, value in self.attributes.items())
        )

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        fields = ", ".join(f"{name}={value}" for name, value in self.fields.items() if value != "")
        return f"{self.op}({shapes}) {self.dtype}{f' [{fields}]' if fields else ''}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which `Request` is made again."""
        return {
            "op": self.op,
            "variant": self.variant,
            "dtypes": list(self.dtypes),
            "shapes": [list(shape) for shape in self.shapes],
            "attributes": {k: list(v) if isinstance(v, tuple) else v for k, v in self.attributes.items()},
        }

    @property
    def digest(self) -> str:
        """The same for the same request, on any machine."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Answer:
    """A request's launches as compiled for each architecture."""

    request: Request
    builds: Mapping[int, tuple[Compiled, ...]]


def request_of(node: ir.Node, dtype: str = "") -> Request:
    """What a canonical node asks for.

    Args:
        node: of a fused graph, its shapes inferred, as fused or as lowered for plugins.
        dtype: what its floating-point inputs will be lowered to; empty for what they are.
    """
    names: dict[object, str] = {}

    def size(dim: Dim | None) -> Dim:
        return dim if isinstance(dim, int) else names.setdefault(dim or object(), f"d{len(names)}")

    inputs = [value for value in node.inputs if value is not None]
    attributes = {name: _plain(attribute.value) for name, attribute in node.attributes.items() if name not in ADDED}
    variant = node.attributes["variant"].as_string() if "variant" in node.attributes else node.overload
    known_shapes = [dims(value) or () for value in inputs]
    if node.op_type == ATTENTION and "variant" not in node.attributes:
        known_shapes[:3] = [operand(value).shape for value in inputs[:3]]
        if (layout := ",".join(layouts(node))) != PLAIN:
            attributes["layout"] = layout
        if (tail := residual(node)) is not None:
            attributes["residual"] = 1
            inputs += [tail.x, tail.gamma]
            known_shapes += [dims(tail.x) or (), dims(tail.gamma) or ()]
    dtypes = tuple(dtype if dtype and name == "float32" else name for name in map(_dtype, inputs))
    shapes = tuple(tuple(map(size, shape)) for shape in known_shapes)
    return Request(node.op_type, variant, dtypes, shapes, attributes)


def in_codes(request: Request) -> Request:
    """What a gate asks for where it shall write INT8 codes, whatever their scale."""
    dtypes, shapes = (*request.dtypes, request.dtype), (*request.shapes, (1,))
    return replace(request, dtypes=dtypes, shapes=shapes, attributes={**request.attributes, "codes": 1})


def requests_in(graph: Graph, dtypes: Iterable[str], codes: bool = False) -> list[Request]:
    """What a graph's attentions ask for, each once; with `codes`, its gates in INT8 too. `graph` is not changed."""
    fused, _ = fuse(graph)
    nodes = [node for node in fused.model.graph if node.domain == DOMAIN and node.op_type in KERNELS]
    found = [request_of(node, dtype) for dtype in dtypes for node in nodes]
    found += [in_codes(request) for request in found if codes and request.op != ATTENTION]
    return list({request.digest: request for request in found}.values())


def request_from_json(record: Mapping[str, Any]) -> Request:
    """The request that `to_json` wrote."""
    return Request(
        record["op"],
        record["variant"],
        tuple(record["dtypes"]),
        tuple(map(tuple, record["shapes"])),
        {name: tuple(value) if isinstance(value, list) else value for name, value in record["attributes"].items()},
    )


def obstacles(request: Request, archs: Sequence[int]) -> list[str]:
    """Why a request has no kernels, for any of some architectures; empty where it has."""
    module = kernel(request.op)
    asked = (request.variant, _canonical(request), request.dtype)
    reasons = [reason for arch in archs for reason in module.unsupported(*asked, arch, **_settings(request))]
    return list(dict.fromkeys(reasons))


def answerable(requests: Iterable[Request], archs: Sequence[int]) -> tuple[list[Request], list[str]]:
    """Those requests that have kernels on some of the architectures, and of the others, why not."""
    found, notes = [], []
    for request in requests:
        if all(obstacles(request, [arch]) for arch in archs):
            notes.append(f"no kernel for {request}: {'; '.join(obstacles(request, archs))}")
        else:
            found.append(request)
    return found, notes


def launches(request: Request, arch: int) -> list[Launch]:
    """What a request launches on an architecture."""
    found: list[Launch] = kernel(request.op).launches(
        request.variant, _canonical(request), request.dtype, arch, **_settings(request)
    )
    return found


def architectures() -> dict[str, int]:
    """What kernels can be compiled for, by name.

    Raises:
        MissingDependencyError: Triton is not installed.
    """
    kernel("SoftmaxAttention")  # which says so
    from edgeattn.kernels.compile import PTX_ISA

    return {f"sm_{arch}": arch for arch in PTX_ISA}


def compile_request(request: Request, archs: Sequence[int], progress: Progress = silent) -> Answer:
    """Compile a request's kernels for each architecture that has them.

    Raises:
        UnsupportedError: none has.
        BuildError: Triton or ptxas failed.
    """
    from edgeattn.kernels.compile import compile_launch

    builds = {}
    for arch in archs:
        if not obstacles(request, [arch]):
            progress(f"compiling {request.op} for sm_{arch}", None)
            builds[arch] = tuple(compile_launch(launch, arch) for launch in launches(request, arch))
    if not builds:
        raise UnsupportedError(f"no kernel for {request}", obstacles(request, archs))
    return Answer(request, builds)


def _canonical(request: Request) -> tuple[tuple[Dim, ...], ...]:
    """The shapes as the op has them, whatever the layouts in memory."""
    if request.op != ATTENTION:
        return request.shapes[:-1] if request.codes else request.shapes
    placed = zip(request.layout[:3], request.shapes[:3], strict=True)
    return (
        *(tuple(shape[layout.index(axis)] for axis in CANONICAL) for layout, shape in placed),
        *request.shapes[3 : -2 if request.adds else None],
    )


def _settings(request: Request) -> dict[str, Any]:
    """A kernel's attributes, as its functions take them."""
    settings: dict[str, Any] = dict(request.attributes)
    if request.op == ATTENTION:
        settings |= {"layout": request.layout, "residual": request.adds}
    if "bias" in request.variant.split("-") and request.dtypes[3] != request.dtype:
        settings["bias_dtype"] = request.dtypes[3]
    return settings


def _dtype(value: ir.Value) -> str:
    if value.dtype is None:
        raise UnsupportedError(f"the dtype of {value.name!r} is not known: infer the graph's types first")
    return dtype_name(value.dtype)


def _alike(mine: object, other: object) -> bool:
    """Equal, up to the last digits that exporters make of one scale."""
    if isinstance(mine, float) and isinstance(other, float):
        return math.isclose(mine, other, rel_tol=1e-6)
    return mine == other


def _plain(value: Any) -> int | float | str | tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
