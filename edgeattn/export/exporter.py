"""Model to Graph: PyTorch's exporters, with what they get wrong put right or refused, and the result checked."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from edgeattn import files
from edgeattn.errors import EdgeAttnError, ExportError, InputError, MissingDependencyError, UnsupportedError, UsageError
from edgeattn.export.fidelity import Check, base_shapes, check_fidelity, resized
from edgeattn.graph import SCOPES, Graph, load_graph
from edgeattn.model import Model, call_named, parameters, tensor_from
from edgeattn.tensors import TensorSpec, format_size, random_feeds
from edgeattn.validate import PROTOBUF_LIMIT_BYTES
from edgeattn.weights import reason

if TYPE_CHECKING:
    from torch import Tensor

    from edgeattn.model import Dynamic

EXPORTERS = ("dynamo", "torchscript")
# TensorRT reads GridSample of opset 20 wrong (NVIDIA/TensorRT issue 4646), of 16 to 19 right.
DEFAULT_OPSET = 18
GRID_SAMPLE_OPSET = 20
DYNAMO_MIN_OPSET = 18
KEPT_METADATA = (SCOPES, "pkg.torch.onnx.class_hierarchy")
# What to do next, by what the exporter said.
HINTS = {
    "data-dependent": "it branches on values: use torch.where, or pass the choice as an input",
    "added in version (14|15|16|17|18)": "use --opset 18",
    "added in version": "use the dynamo exporter",
    "No ONNX function found|not supported": "write it with other operators, or try the other --exporter",
    "Constraints violated|specialized|static shape": "leave that axis out of --dynamic",
}


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked; `notes` are the rewrites applied, and what to mind."""

    path: Path
    source: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    exporter: str
    op_counts: Mapping[str, int]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        ops = ", ".join(f"{count} {op}" for op, count in sorted(self.op_counts.items(), key=lambda item: -item[1]))
        lines = [f"{self.path}: {self.source}, opset {self.opset}, {self.exporter} exporter"]
        lines += [f"  input   {spec}" for spec in self.inputs]
        lines += [f"  output  {spec}" for spec in self.outputs]
        lines += [f"  ops     {ops}"]
        lines += [f"  note    {note}" for note in self.notes]
        lines += [
            f"  check   {check.case}: max-abs error {check.max_abs:.2g} (relative {check.relative:.2g}), "
            f"at most {check.budget:.2g}"
            for check in self.checks
        ]
        return "\n".join(lines if self.checks else [*lines, "  check   not made"])

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def export_model(
    model: Model,
    path: str | Path,
    *,
    dynamic: Dynamic | None = None,
    opset: int = DEFAULT_OPSET,
    exporter: str = "dynamo",
    check: bool = True,
) -> ExportReport:
    """Write a module as one `.onnx` file with its weights inside, and check that the file computes the same.

    `dynamic` names the axes that may vary, as `edgeattn.model.parse_dynamic` returns them. On any failure nothing is
    written and an older file stays.

    Raises:
        UsageError: no such folder, an unknown exporter, an opset it cannot write, or no input shapes.
        ExportError: PyTorch cannot export the module, or the file computes something else; names the node.
        UnsupportedError: the weights exceed what one ONNX file can hold.
    """
    path, dynamic = Path(path), dynamic or {}
    if not path.parent.is_dir():
        raise UsageError(f"no such folder: {path.parent}")
    _require_settings(model, opset, exporter)
    names = model.output_names
    made, notes = _trace(model, dynamic, opset, exporter, names)
    graph = Graph(_tidied(made))
    _require_interface(graph, model, dynamic, opset)
    if graph.opset >= GRID_SAMPLE_OPSET and graph.op_counts()["GridSample"]:
        notes.append(f"TensorRT reads GridSample of opset {graph.opset} wrong; export with --opset 18 for it")
    with files.staged(path) as part:
        part.write_bytes(graph.serialized)
        written = _read_back(part, exporter)
        try:
            checks = check_fidelity(written, model, dynamic) if check else ()
        except ExportError as err:
            raise ExportError("; ".join([str(err), *notes])) from err
    counts = dict(written.op_counts())
    return ExportReport(
        path, model.source, written.inputs, written.outputs, written.opset, exporter, counts, checks, tuple(notes)
    )


def _read_back(path: Path, exporter: str) -> Graph:
    try:
        return load_graph(path)
    except InputError as err:
        raise ExportError(f"the {exporter} exporter wrote an invalid graph: {err}; try the other --exporter") from err


def _trace(
    model: Model, dynamic: Dynamic, opset: int, exporter: str, names: tuple[str, ...]
) -> tuple[ir.Model, list[str]]:
    from edgeattn.export.remedies import Remedies

    shapes = base_shapes(model.inputs)
    for name in {name for axes in dynamic.values() for name in axes.values()}:
        # PyTorch takes a size of 1 for one that stays 1.
        shapes = resized(shapes, dynamic, name, lambda size: max(size, 2))
    feeds = {name: tensor_from(array) for name, array in random_feeds(model.inputs, shapes, seed=0).items()}
    image_axes_move = any(axis > 0 for axes in dynamic.values() for axis in axes)
    export = _dynamo if exporter == "dynamo" else _torchscript
    try:
        with _quiet(), fast_path_off(), _flat(model, list(feeds)), Remedies(exporter, image_axes_move) as remedies:
            return export(model, feeds, dynamic, opset, names), list(remedies.notes)
    except Exception as err:
        for cause in _causes(err):
            if isinstance(cause, EdgeAttnError):
                raise cause from None
        raise ExportError(
            f"{exporter} cannot export {model.source}: {_core_reason(err, list(feeds))}{_hint(err)}"
        ) from err


def _dynamo(model: Model, feeds: dict[str, Tensor], dynamic: Dynamic, opset: int, names: tuple[str, ...]) -> ir.Model:
    import torch

    if importlib.util.find_spec("onnxscript") is None:
        raise MissingDependencyError("onnxscript is not installed; pip install 'edgeattn[torch]'")
    axes = tuple(dict(dynamic.get(name, {})) for name in feeds)
    program = torch.onnx.export(
        model.module,
        tuple(feeds.values()),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        dynamic_shapes=(axes,) if dynamic else None,
        input_names=list(feeds),
        output_names=list(names),
    )
    if program is None:
        raise ExportError("PyTorch returned no program")
    return program.model


def _torchscript(
    model: Model, feeds: dict[str, Tensor], dynamic: Dynamic, opset: int, names: tuple[str, ...]
) -> ir.Model:
    import torch

    buffer: Any = io.BytesIO()
    torch.onnx.export(
        model.module,
        tuple(feeds.values()),
        buffer,
        dynamo=False,
        opset_version=opset,
        dynamic_axes={name: dict(axes) for name, axes in dynamic.items()},
        input_names=list(feeds),
        output_names=list(names),
    )
    return ir.from_proto(onnx.load_model_from_string(buffer.getvalue()))


def _tidied(model: ir.Model) -> ir.Model:
    """Make names unique, and drop what says more of the exporting machine than of the model: paths and traces."""
    NameFixPass()(model)  # an output may be called as a weight is
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        kept = {key: node.metadata_props[key] for key in KEPT_METADATA if key in node.metadata_props}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


def _require_settings(model: Model, opset: int, exporter: str) -> None:
    if exporter not in EXPORTERS:
        raise UsageError(f"unknown exporter {exporter!r}; known: {', '.join(EXPORTERS)}")
    if exporter == "dynamo" and opset < DYNAMO_MIN_OPSET:
        raise UsageError(
            f"the dynamo exporter writes opset {DYNAMO_MIN_OPSET} or newer, not {opset}; add --exporter torchscript"
        )
    size = sum(tensor.nbytes for tensor in (*model.module.parameters(), *model.module.buffers()))
    if size > PROTOBUF_LIMIT_BYTES:
        raise UnsupportedError(
            f"the weights of {model.source} take {format_size(size)}, more than the 2 GiB one ONNX file can hold"
        )


def _require_interface(graph: Graph, model: Model, dynamic: Dynamic, opset: int) -> None:
    if graph.opset != opset:
        raise ExportError(f"the exporter wrote opset {graph.opset} instead of {opset}; ask for --opset {graph.opset}")
    specs = {spec.name: spec for spec in graph.inputs}
    for spec in model.inputs:
        if spec.name not in specs:
            raise ExportError(
                f"torchscript drops input {spec.name!r}, which the module does not use; use the dynamo exporter"
            )
        for axis, name in dynamic.get(spec.name, {}).items():
            made = (specs[spec.name].shape or ())[axis]
            if isinstance(made, int):
                raise ExportError(
                    f"axis {axis} of {spec.name!r} ({name}) became the constant {made}: the module fixes it; "
                    f"leave {name} out of --dynamic or take the size from the input's shape"
                )


@contextlib.contextmanager
def _flat(model: Model, inputs: list[str]) -> Iterator[None]:
    """Let `forward` take tensors by position and return a flat tuple, which both exporters understand alike."""
    module, taken, original = model.module, parameters(model.module), model.module.forward
    own = "forward" in vars(module)

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(call_named(original, taken, dict(zip(inputs, tensors, strict=True))).values())

    module.forward = forward
    try:
        yield
    finally:
        if own:
            module.forward = original
        else:
            del module.forward


@contextlib.contextmanager
def fast_path_off() -> Iterator[None]:
    """Run `nn.MultiheadAttention` step by step; its fast path is one fused operator, into which nobody can look."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress, warnings and graph dumps off the terminal; what matters is checked after."""
    import torch

    before = logging.root.manager.disable
    dump = torch._C._jit_onnx_log  # prints whole graphs from C++, past sys.stdout
    sink = io.StringIO()
    logging.disable(logging.CRITICAL)
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_onnx_log = dump
        logging.disable(before)


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    while err is not None:
        yield err
        err = err.__cause__


def _core_reason(err: BaseException, inputs: list[str]) -> str:
    """The line of the innermost cause that says what is wrong; the exporters wrap it in pages."""
    innermost = list(_causes(err))[-1]
    lines = [line.strip() for line in str(innermost).splitlines()]
    telling = next((line[2:302] for line in lines if line.startswith("- ")), None)
    text = f"{type(innermost).__name__}: {telling}" if telling else reason(innermost)
    return re.sub(r"inputs\['tensors'\]\[(\d+)\]", lambda match: inputs[int(match[1])], text).rstrip(".")


def _hint(err: BaseException) -> str:
    text = str(list(_causes(err))[-1])
    return next((f"; {hint}" for pattern, hint in HINTS.items() if re.search(pattern, text)), "")
