"""OpenVINO on the CPU: the engine of choice where there is no GPU.

The plan is OpenVINO's own compiled blob (`export_model`), which is why an engine loads in milliseconds and only in
the release that wrote it.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgeattn.backends.amx import ISA_VARIABLE, ISA_WITHOUT_AMX, avoid_broken_amx
from edgeattn.backends.base import BuildConfig, Session, unknown_operators
from edgeattn.backends.openvino_profile import DTYPES, LayerTimer, runtime_info
from edgeattn.engine import Engine, Precision, Sidecar, require_match, this_platform
from edgeattn.errors import BuildError, InferenceError, InputError, UnsupportedError, one_line
from edgeattn.graph import Graph

if TYPE_CHECKING:
    import openvino as ov

    from edgeattn.backends.openvino_profile import Runner
    from edgeattn.tensors import Array

NAME = "openvino"
# Measured with 2026.4: behind a Concat of signed INT8 it computes nonsense, and next to Q/DQ in bfloat16 or float16. So
# the dtype of the rest is a setting and does not stand in the graph.
INT8 = "shifted"
BESIDE_INT8 = ("float32", "bfloat16")
DOMAINS = ("", "com.microsoft")
_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_CAPABILITIES = {"float16": "FP16", "bfloat16": "BF16"}
_ON_AMX = ("bfloat16", "int8")
_told: list[str] = []  # what oneDNN might use, by its variable, at each beginning in this process
_MOVES = {"Cast", "Identity", "Constant", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"}
_NOT_COMPUTE = {"Input", "Output", "Const", "Reorder", "Convert", "Reshape", "Transpose", "ShapeOf", "FakeQuantize"}


def missing(running: bool = True) -> list[str]:
    """Why OpenVINO cannot run here."""
    if importlib.util.find_spec("openvino") is None:
        return ["the package openvino is not installed: pip install 'edgeattn[cpu]'"]
    return []


def unsupported(graph: Graph) -> list[str]:
    """Operators that neither OpenVINO nor the model itself defines."""
    return unknown_operators(graph, DOMAINS)


def build(graph: Graph, config: BuildConfig) -> Engine:
    """Compile for this CPU, in the precision the graph is typed in as far as the CPU has it.

    Raises:
        BuildError: OpenVINO refuses the graph.
    """
    config.progress("compiling", None)
    avoided = avoid_broken_amx()
    core, notes = _core(config.precision), [avoided] if avoided and config.precision in _ON_AMX else []
    hint = _inference_precision(core, graph, config, notes)
    try:
        model = core.read_model(io.BytesIO(graph.serialized))
        _give_names(model, graph)
        ranges = {name: config.profile[name] for name in _names(model.inputs, config.profile)}
        model.reshape({name: _partial_shape(spread.min, spread.max) for name, spread in ranges.items()})
        compiled = core.compile_model(model, "CPU", _properties(hint, config.threads))
        plan = compiled.export_model().getvalue()
    except Exception as err:
        raise BuildError(f"OpenVINO cannot build the graph: {one_line(err)}") from err
    sidecar = Sidecar(
        backend=NAME,
        backend_version=_release(),
        inputs=graph.inputs,
        outputs=graph.outputs,
        profile=dict(config.profile),
        precision=Precision(config.precision, graph.weight_bytes(), _layer_precisions(compiled), tuple(notes)),
        targets=("cpu",),
        platform=this_platform(),
        config={
            "inference_precision": hint,
            "max_cpu_isa": os.environ.get(ISA_VARIABLE, ""),
            "threads": config.threads,
        },
    )
    return Engine(plan, sidecar)


def load(engine: Engine, profiling: bool = False) -> Session:
    """Open an engine in the release that built it.

    Raises:
        EngineMismatchError: it was built by another release or for another platform.
        InputError: OpenVINO does not read the plan, or the plan is not what the sidecar says.
    """
    sidecar = engine.sidecar
    require_match(sidecar, "OpenVINO", [sidecar.backend_version], _release())
    require_match(sidecar, "the platform", [sidecar.platform], this_platform())
    if sidecar.config.get("max_cpu_isa") == ISA_WITHOUT_AMX:
        os.environ.setdefault(ISA_VARIABLE, ISA_WITHOUT_AMX)  # a plan loads for the instructions it was built for
    elif sidecar.precision.asked in _ON_AMX:  # and one that was built before, or elsewhere, may use them
        avoid_broken_amx()
    core = _core(sidecar.precision.asked)
    device = str(core.get_property("CPU", "FULL_DEVICE_NAME"))

    def opened() -> tuple[ov.CompiledModel, ov.InferRequest]:
        try:
            properties = _properties(sidecar.config["inference_precision"], sidecar.config.get("threads"))
            compiled = core.import_model(io.BytesIO(engine.plan), "CPU", {**properties, "PERF_COUNT": profiling})
            return compiled, compiled.create_infer_request()
        except Exception as err:
            raise InputError(f"OpenVINO cannot load the engine: {one_line(err)}") from err

    def runner(compiled: ov.CompiledModel, request: ov.InferRequest) -> Runner:
        read = _names(compiled.inputs, [spec.name for spec in sidecar.inputs])
        return _runner(request, read, [spec.name for spec in sidecar.outputs])

    if profiling:
        timer = LayerTimer(opened, runner)
        infer, layers = timer.infer, timer.layers
        return Session(sidecar.inputs, sidecar.outputs, sidecar.profile, infer, device=device, layers=layers)
    return Session(sidecar.inputs, sidecar.outputs, sidecar.profile, runner(*opened()), device=device)


def _give_names(model: ov.Model, graph: Graph) -> None:
    """Give inputs their names back: what a Dropout reads is called as what it gives, and what nothing reads is gone."""
    named = set().union(*(port.names for port in model.inputs))
    left = [value.name for value in graph.model.graph.inputs if value.uses() and value.name not in named]
    known = [spec.name for spec in graph.inputs]
    nameless = [port for port in model.inputs if port.names.isdisjoint(known)]
    for port, name in zip(nameless, left, strict=True):
        port.add_names({name})


def _names(ports: Sequence[ov.Output], known: Collection[str]) -> list[str]:
    """What the graph calls a model's inputs; one that is only passed on goes by other names too."""
    names = [next((name for name in known if name in port.names), "") for port in ports]
    if "" in names:
        own = ", ".join(port.any_name for port in ports)
        raise InputError(f"the sidecar describes another engine: it says {', '.join(known)}, the engine has {own}")
    return names


def _runner(request: ov.InferRequest, read: list[str], names: list[str]) -> Runner:
    """The function that runs a request."""
    import openvino as ov

    def infer(feeds: dict[str, Array]) -> dict[str, Array]:
        try:
            if all(map(_shareable, feeds.values())):  # then past OpenVINO's own look at them, which takes longer
                for port, name in enumerate(read):
                    request.set_input_tensor(port, ov.Tensor(feeds[name], shared_memory=True))
                outputs = request.infer(share_outputs=True)
            else:
                outputs = request.infer({name: feeds[name] for name in read}, share_outputs=True)
            return {name: outputs[index].copy() for index, name in enumerate(names)}
        except Exception as err:
            raise InferenceError(f"OpenVINO failed: {one_line(err)}") from err

    return infer


def _shareable(array: Array) -> bool:
    """Whether OpenVINO reads an array's memory as it is: neither a scalar, nor read-only, nor bfloat16."""
    return array.ndim > 0 and array.flags.writeable and array.dtype.kind != "V"


def _core(precision: str) -> ov.Core:
    """OpenVINO's entry.

    Raises:
        UnsupportedError: a low precision, and oneDNN began when it did not know yet that it must not use AMX.
    """
    _told.append(os.environ.get(ISA_VARIABLE, ""))
    if precision in _ON_AMX and _told[-1] and not _told[0]:
        raise UnsupportedError(
            f"this machine stops programs that use its AMX, and oneDNN reads only once that it must not, which is too "
            f"late now: use {precision} first or in a process of its own, or set {ISA_VARIABLE}={ISA_WITHOUT_AMX}"
        )
    import openvino as ov

    return ov.Core()


def _inference_precision(core: ov.Core, graph: Graph, config: BuildConfig, notes: list[str]) -> str:
    """The precision OpenVINO is told to compute in; adds a note where that is not the one asked for.

    It is always told: left alone, it lowers a float32 graph to bfloat16 on CPUs that have it. Told a low precision, it
    lowers the parts as well that the graph keeps in float32 because they would overflow.
    """
    precision = config.rest if config.precision == "int8" else config.precision
    if precision not in _CAPABILITIES:
        return _HINTS["float32"]
    obstacle = ""
    if _CAPABILITIES[precision] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        obstacle = f"this CPU has no {precision} arithmetic"
    elif config.precision != "int8" and (high := sum(_computes_in_float32(node) for node in graph.nodes())):
        obstacle = f"the graph keeps {high} nodes in float32, which OpenVINO would lower with the rest"
    if obstacle:
        notes.append(f"{obstacle}: weights are stored in {precision}, layers compute in float32")
    return _HINTS["float32"] if obstacle else _HINTS[precision]


def _computes_in_float32(node: ir.Node) -> bool:
    return node.op_type not in _MOVES and any(value.dtype == ir.DataType.FLOAT for value in node.outputs)


def _release() -> str:
    """The release, without the build's number and hash."""
    import openvino as ov

    return str(ov.get_version()).partition("-")[0]


def _properties(hint: str, threads: int | None) -> dict[str, str]:
    chosen = {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    return {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", **chosen}


def _partial_shape(low: tuple[int, ...], high: tuple[int, ...]) -> ov.PartialShape:
    import openvino as ov

    return ov.PartialShape([ov.Dimension(*bounds) for bounds in zip(low, high, strict=True)])


def _layer_precisions(compiled: ov.CompiledModel) -> dict[str, int]:
    """Count the layers that compute, by the precision they run in."""
    seen: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ordered_ops():
        if runtime_info(op, "layerType") not in _NOT_COMPUTE:
            seen[runtime_info(op, "runtimePrecision")] += 1
    counts: Counter[str] = Counter()
    for key, count in seen.items():
        counts[DTYPES.get(key, "")] += count
    return {name: count for name, count in counts.most_common() if name}
