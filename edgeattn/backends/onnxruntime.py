"""ONNX Runtime on the CPU: the reference runtime, and the way out where nothing else runs.

The plan is the typed graph itself, as ONNX: any ONNX Runtime loads it, and optimises it while it loads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.backends.base import BuildConfig, Session, unknown_operators
from edgeattn.backends.onnxruntime_profile import LayerTimer, compute_dtype, kernels, profiled
from edgeattn.engine import Engine, Precision, Sidecar, this_platform
from edgeattn.errors import BuildError, InferenceError, InputError, UnsupportedError, one_line
from edgeattn.graph import Graph
from edgeattn.tensors import numpy_dtype

if TYPE_CHECKING:
    import onnxruntime as ort

    from edgeattn.backends.onnxruntime_profile import Runner
    from edgeattn.tensors import Array

NAME = "onnxruntime"
INT8 = "unsigned"
BESIDE_INT8 = ("float32",)
_MOVES = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Cast",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Concat",
    "Slice",
    "Gather",
}
SATURATES = (
    "this CPU has no VNNI: in INT8, ONNX Runtime's sums of two products end at 32,767 here, where large weights meet "
    "large inputs; compare on samples (edgeattn parity --data), or build with --backend openvino"
)
DOMAINS = ("", "ai.onnx.ml", "com.microsoft")


def missing(running: bool = True) -> list[str]:
    """Why ONNX Runtime cannot run here."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ["the package onnxruntime is not installed: pip install 'edgeattn[cpu]'"]
    return []


def unsupported(graph: Graph) -> list[str]:
    """Operators that neither ONNX Runtime nor the model itself defines."""
    return unknown_operators(graph, DOMAINS)


def build(graph: Graph, config: BuildConfig) -> Engine:
    """Load the graph once, so that what cannot run is said now, and see in which precision it computes.

    Raises:
        BuildError: ONNX Runtime refuses the graph.
        UnsupportedError: it has no CPU kernel for an operator in its dtype.
    """
    import onnxruntime as ort

    config.progress("compiling", None)
    compute = _precisions_seen(graph, config)
    notes = []
    floating = config.rest if config.precision == "int8" else config.precision
    most = next((dtype for dtype in compute if dtype != "int8"), floating)
    if floating not in ("float32", most):
        notes.append(f"ONNX Runtime computes most layers in {most} on this CPU: weights are stored in {floating}")
    if config.precision == "int8" and _saturates():
        notes.append(SATURATES)
    sidecar = Sidecar(
        backend=NAME,
        backend_version=ort.__version__,
        inputs=graph.inputs,
        outputs=graph.outputs,
        profile=dict(config.profile),
        precision=Precision(config.precision, graph.weight_bytes(), compute, tuple(notes)),
        targets=("cpu",),
        platform=this_platform(),
        config={"threads": config.threads},
    )
    return Engine(graph.serialized, sidecar)


def load(engine: Engine, profiling: bool = False) -> Session:
    """Open an engine; any version that knows the graph's operators may run it.

    Raises:
        InputError: the plan is no model that this ONNX Runtime reads.
    """
    import onnxruntime as ort

    def opened(options: ort.SessionOptions) -> ort.InferenceSession:
        options.intra_op_num_threads = engine.sidecar.config.get("threads") or 0  # its own choice
        try:
            return _session(engine.plan, options, engine.sidecar.precision.asked)
        except Exception as err:
            raise InputError(f"ONNX Runtime {ort.__version__} cannot load the engine: {one_line(err)}") from err

    about = (engine.sidecar.inputs, engine.sidecar.outputs, engine.sidecar.profile)
    runner = functools.partial(_runner, names=[spec.name for spec in engine.sidecar.outputs])
    if profiling:
        timer = LayerTimer(engine.plan, opened, runner)
        return Session(*about, timer.infer, timer.close, layers=timer.layers)
    return Session(*about, runner(opened(ort.SessionOptions())))


def _runner(session: ort.InferenceSession, names: list[str]) -> Runner:
    """The function that runs a session."""

    def infer(feeds: dict[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(names, feeds), strict=True))
        except Exception as err:
            raise InferenceError(f"ONNX Runtime failed: {one_line(err)}") from err

    return infer


def _session(plan: bytes, options: ort.SessionOptions, precision: str) -> ort.InferenceSession:
    import onnxruntime as ort

    options.log_severity_level = 4
    # ONNX Runtime 1.31 crashes where it lays out a float16 transformer with dynamic shapes in channel blocks.
    disabled = ["NchwcTransformer"] if precision in ("float16", "bfloat16") else None
    return ort.InferenceSession(plan, options, ["CPUExecutionProvider"], disabled_optimizers=disabled)


def _precisions_seen(graph: Graph, config: BuildConfig) -> dict[str, int]:
    """Run once under ONNX Runtime's profiler and count kernels by the float dtype they compute in.

    The optimised graph carries no types, and kernels are chosen after it: only a run tells.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        try:
            session = _session(graph.serialized, profiled(folder), config.precision)
        except Exception as err:
            if type(err).__name__ == "NotImplemented":
                raise UnsupportedError(f"ONNX Runtime has no CPU kernel: {one_line(err)}") from err
            raise BuildError(f"ONNX Runtime cannot build the graph: {one_line(err)}") from err
        with contextlib.suppress(Exception):  # ones need not be values that the graph admits, as an axis or a size
            session.run(None, {s.name: np.ones(config.profile[s.name].min, numpy_dtype(s.dtype)) for s in graph.inputs})
        ran = [event["args"] for run in kernels(session) for event in run]
    seen = Counter(compute_dtype(kernel) for kernel in ran if kernel["op_name"] not in _MOVES)
    return {dtype: count for dtype, count in seen.most_common() if "float" in dtype or dtype == "int8"}


def _saturates() -> bool:
    """Whether this CPU multiplies bytes by AVX2's instruction, whose sums of two products are cut off at 16 bits."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return " avx2" in flags and "vnni" not in flags
