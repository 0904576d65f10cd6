"""The backends by name, in the order in which `auto` prefers them, and the way to one of them.

A backend is a module with four functions (`edgeattn.backends.base.Backend`); adding one is such a module and a line
in `BACKENDS`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from edgeattn.backends.base import Backend, Session
from edgeattn.engine import Engine, read_engine
from edgeattn.errors import InputError, UnsupportedError, UsageError

BACKENDS = {
    "tensorrt": "edgeattn.backends.tensorrt",
    "tensorrt-rtx": "edgeattn.backends.tensorrt_rtx",
    "openvino": "edgeattn.backends.openvino",
    "onnxruntime": "edgeattn.backends.onnxruntime",
}


def backend_named(name: str) -> Backend:
    """Import a backend's module.

    Raises:
        UsageError: there is no such backend.
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    return cast(Backend, importlib.import_module(BACKENDS[name]))


def choose_backend(name: str = "auto") -> tuple[str, str]:
    """Decide which backend builds, and say why in words.

    `auto` takes the first in `BACKENDS` that can run its engines here: a GPU is preferred to a CPU. A backend asked
    for by name needs only be able to build: TensorRT-RTX does that without a GPU.

    Raises:
        UnsupportedError: none can, or not the one that was asked for; carries every reason.
    """
    if name != "auto":
        reasons = backend_named(name).missing(running=False)
        if reasons:
            raise UnsupportedError(f"backend {name} cannot build here", reasons)
        return name, "as asked"
    passed_over: list[str] = []
    for candidate in BACKENDS:
        reasons = backend_named(candidate).missing()
        if not reasons:
            return candidate, "; ".join(passed_over) or "the first choice"
        passed_over.append(f"not {candidate}: {reasons[0]}")
    raise UnsupportedError("no backend can run here", passed_over)


def open_session(path: str | Path, trust: bool = False) -> Session:
    """Load an engine file, after checking that it is the one its sidecar describes and fits this machine.

    Raises:
        InputError: no such engine, or not the described one (unless `trust`).
        UnsupportedError: its backend cannot run here, or it was built for something else.
    """
    return session_of(read_engine(path, trust), str(path))


def session_of(engine: Engine, name: str, profiling: bool = False) -> Session:
    """Load an engine that was read already; `name` is for messages. See `open_session` for what it raises."""
    if engine.sidecar.backend not in BACKENDS:
        raise InputError(f"{name} was built by an unknown backend {engine.sidecar.backend!r}; build it again")
    backend = backend_named(engine.sidecar.backend)
    reasons = backend.missing()
    if reasons:
        raise UnsupportedError(f"{name} needs {engine.sidecar.backend}, which cannot run here", reasons)
    return backend.load(engine, profiling)
