"""TensorRT-RTX: engines for GeForce and RTX GPUs, built on any x86-64 machine, with or without a GPU."""

from __future__ import annotations

from edgeattn.backends.base import BuildConfig, Session
from edgeattn.backends.trt import builder, session
from edgeattn.backends.trt import library as lib
from edgeattn.engine import Engine
from edgeattn.graph import Graph

INT8 = "signed"
BESIDE_INT8 = ("float32", "float16", "bfloat16")


def missing(running: bool = True) -> list[str]:
    """Why TensorRT-RTX cannot run engines here, or not even build them."""
    return lib.missing(lib.RTX, running)


def unsupported(graph: Graph) -> list[str]:
    """Everything in a graph that TensorRT-RTX refuses, node by node."""
    return builder.unsupported(lib.RTX, graph)


def build(graph: Graph, config: BuildConfig) -> Engine:
    """Build for `config.targets`; see `edgeattn.backends.trt.builder.build`."""
    return builder.build(lib.RTX, graph, config)


def load(engine: Engine, profiling: bool = False) -> Session:
    """Open an engine; see `edgeattn.backends.trt.session.load`."""
    return session.load(lib.RTX, engine, profiling)
