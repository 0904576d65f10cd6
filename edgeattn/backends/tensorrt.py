"""TensorRT: engines for the GPU of the machine that builds them, a Jetson or a desktop."""

from __future__ import annotations

from edgeattn.backends.base import BuildConfig, Session
from edgeattn.backends.trt import builder, session
from edgeattn.backends.trt import library as lib
from edgeattn.engine import Engine
from edgeattn.graph import Graph

INT8 = "signed"
BESIDE_INT8 = ("float32", "float16", "bfloat16")


def missing(running: bool = True) -> list[str]:
    """Why TensorRT cannot run engines here, or not even build them."""
    return lib.missing(lib.TENSORRT, running)


def unsupported(graph: Graph) -> list[str]:
    """Everything in a graph that TensorRT refuses, node by node."""
    return builder.unsupported(lib.TENSORRT, graph)


def build(graph: Graph, config: BuildConfig) -> Engine:
    """Build for the GPU of this machine; see `edgeattn.backends.trt.builder.build`."""
    return builder.build(lib.TENSORRT, graph, config)


def load(engine: Engine, profiling: bool = False) -> Session:
    """Open an engine; see `edgeattn.backends.trt.session.load`."""
    return session.load(lib.TENSORRT, engine, profiling)
