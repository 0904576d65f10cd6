"""What this machine can do: versions, devices, and in each usable backend one real inference per precision.

The inference runs in a child process, so that a crash in a driver or a kernel is a line here and not the end.
`python -m edgeattn.doctor BACKEND PRECISION` is that child.
"""

from __future__ import annotations

import importlib.metadata
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeattn import __version__
from edgeattn.backends import BACKENDS, backend_named
from edgeattn.errors import EdgeAttnError, one_line
from edgeattn.reports.text import table

PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "openvino", "polygraphy", "pycuda", "tensorrt", "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu12", "torch", "onnxscript", "safetensors", "pillow", "rich",
)  # fmt: skip
PRECISIONS = ("float32", "float16", "bfloat16")
CHILD_TIMEOUT_S = 120


@dataclass(frozen=True)
class BackendHealth:
    """`missing` says why the backend cannot run; `inferences` gives per precision `ok`, or what went wrong."""

    name: str
    missing: tuple[str, ...]
    inferences: Mapping[str, str]

    @property
    def usable(self) -> bool:
        return self.inferences.get("float32") == "ok"


@dataclass(frozen=True)
class Health:
    """What `examine` found."""

    machine: Mapping[str, str]
    packages: Mapping[str, str]
    gpus: tuple[str, ...]
    backends: tuple[BackendHealth, ...]

    @property
    def usable(self) -> bool:
        return any(backend.usable for backend in self.backends)

    def __str__(self) -> str:
        rows = [
            *self.machine.items(),
            *(("GPU", gpu) for gpu in self.gpus or ("none",)),
            *(("package", f"{name} {version}") for name, version in self.packages.items()),
        ]
        for backend in self.backends:
            rows += [(backend.name, reason) for reason in backend.missing]
            rows += [(backend.name, f"{precision}: {said}") for precision, said in backend.inferences.items()]
        return table(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return asdict(self)


def examine() -> Health:
    """Look at everything; an obstacle is a line in the answer, never an exception."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        backends = tuple(pool.map(_examine_backend, BACKENDS))
    return Health(_machine(), _packages(), _gpus(), backends)


def _examine_backend(name: str) -> BackendHealth:
    try:
        missing = tuple(backend_named(name).missing())
    except Exception as err:  # a broken installation may raise anything while it is imported
        missing = (f"{type(err).__name__}: {one_line(err)}",)
    return BackendHealth(name, missing, {} if missing else {kind: _infer_in_child(name, kind) for kind in PRECISIONS})


def _infer_in_child(name: str, precision: str) -> str:
    command = [sys.executable, "-m", "edgeattn.doctor", name, precision]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {CHILD_TIMEOUT_S} s"
    except OSError as err:
        return f"cannot start: {err.strerror}"
    if child.returncode < 0:
        return f"crashed with {signal.Signals(-child.returncode).name}"
    lines = (child.stdout if child.returncode == 0 else child.stderr).strip().splitlines()
    return lines[-1] if lines else f"exit {child.returncode} without a word"


def _infer(name: str, precision: str) -> str:
    """Build, load and run softmax(x w) in one backend, and compare it with numpy in float64."""
    import numpy as np

    from edgeattn.backends.base import BuildConfig
    from edgeattn.build import LOW_PRECISIONS
    from edgeattn.precision.fp16 import lower
    from edgeattn.tensors import resolve_profile

    x, w = (np.random.default_rng(seed).standard_normal((16, 16), np.float32) for seed in (0, 1))
    graph = _attention_scores(w)
    if precision in LOW_PRECISIONS:
        graph = lower(graph, precision).graph
    backend = backend_named(name)
    config = BuildConfig(precision=precision, profile=resolve_profile(graph.inputs))
    engine = backend.build(graph, config)
    with backend.load(engine) as session:
        found = session.run({"x": x})["y"]
    scores = np.exp(x.astype(np.float64) @ w)
    worst = float(np.abs(found - scores / scores.sum(axis=-1, keepdims=True)).max())
    limit = 1e-5 if precision == "float32" else 5e-2
    if not worst <= limit:
        return f"wrong: off by {worst:.1e}, more than {limit:.0e}"
    notes = engine.sidecar.precision.notes
    return f"ok ({notes[0]})" if notes else "ok"


def _attention_scores(w: Any) -> Any:
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    from edgeattn.graph import Graph

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["y"], name="softmax", axis=-1),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, w.shape) for name in ("x", "y")]
    proto = helper.make_graph(nodes, "doctor", ends[:1], ends[1:], [numpy_helper.from_array(w, "w")])
    return Graph(ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)))


def _machine() -> dict[str, str]:
    facts = {
        "edgeattn": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _first_match("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "board": _text("/proc/device-tree/model"),
        "L4T": _text("/etc/nv_tegra_release").split(", GCID")[0],
        "memory": _first_match("/proc/meminfo", "MemTotal"),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _packages() -> dict[str, str]:
    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return {name: version(name) for name in PACKAGES}


def _gpus() -> tuple[str, ...]:
    from edgeattn.backends.trt.device import gpus

    return tuple(str(gpu) for gpu in gpus())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _first_match(path: str, key: str) -> str:
    lines = (line for line in _text(path).splitlines() if line.startswith(key))
    return next(lines, "").partition(":")[2].strip()


if __name__ == "__main__":
    try:
        print(_infer(*sys.argv[1:3]))
    except EdgeAttnError as error:
        sys.exit(str(error))
