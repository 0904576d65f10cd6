"""What an engine takes of the host's memory, seen from a process of its own that only loads and runs it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from edgeattn.backends import backend_named, session_of
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.engine import Sidecar, read_engine, read_sidecar
from edgeattn.errors import one_line
from edgeattn.graph import Graph
from edgeattn.profile.report import Memory
from edgeattn.tensors import random_feeds, resolve_profile

if TYPE_CHECKING:
    from edgeattn.tensors import Shape

__all__ = ["memory_of"]

LIMIT_S = 300


def memory_of(
    engine: Path, sidecar: Sidecar, session: Session, shapes: Mapping[str, Shape], trust: bool
) -> tuple[Memory, str]:
    """Weights, activations and peak of an engine in bytes, and why the last two are not known, where they are not.

    On a GPU the device's own numbers count; else the growth of a process, once the runtime has run something else.
    """
    weights = sum(sidecar.precision.weights.values()) or None
    if "memory" in session.details:
        activations = int(session.details["memory"]())
        return Memory(weights, activations, activations + (weights or 0)), ""
    asked = json.dumps({"engine": str(engine), "shapes": shapes, "trust": trust})
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"from {__name__} import main; main()", asked],
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT_S,
        )
        peak, running = map(int, done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError) as err:
        said = getattr(err, "stderr", None) or err
        return Memory(weights, None, None), f"peak memory is not known: a process of its own failed ({one_line(said)})"
    return Memory(weights, max(0, running - (weights or 0)), peak), ""


def _peaks(asked: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes that this process grows by at most, from loading an engine on, and while it runs."""
    path = Path(asked["engine"])
    _start(read_sidecar(path, asked["trust"]))
    before = _resident("VmRSS")
    with session_of(read_engine(path, asked["trust"]), str(path)) as session:
        feeds = random_feeds(session.inputs, {name: tuple(shape) for name, shape in asked["shapes"].items()}, 0)
        loading = _resident("VmHWM")
        with contextlib.suppress(OSError):  # then loading counts as running
            Path("/proc/self/clear_refs").write_text("5")  # lets VmHWM begin again
        for _ in range(3):
            session.run(feeds)
        running = _resident("VmHWM")
    return max(loading, running) - before, running - before


def _start(sidecar: Sidecar) -> None:
    """Run y = x + x, so that what the runtime takes for itself is there before the engine comes."""
    module = backend_named(sidecar.backend)
    port = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [8]) for name in "xy"]
    nodes = [onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    made = onnx.helper.make_graph(nodes, "start", port[:1], port[1:])
    opset = onnx.helper.make_opsetid("", 18)
    graph = Graph(ir.from_proto(onnx.helper.make_model(made, opset_imports=[opset], ir_version=10)))
    config = BuildConfig(precision=sidecar.precision.asked, profile=resolve_profile(graph.inputs))
    with module.load(module.build(graph, config)) as session:
        session.run({"x": np.zeros(8, np.float32)})


def _resident(key: str) -> int:
    """Bytes in memory: `VmRSS` now, `VmHWM` at most so far in this program (ru_maxrss would count what started it)."""
    match = re.search(rf"(?m)^{key}:\s*(\d+) kB$", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else 0


def main() -> None:
    """Print the peaks of what the first argument asks for: the program of the process of its own."""
    print(*_peaks(json.loads(sys.argv[1])))
