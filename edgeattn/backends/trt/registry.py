"""Brings plugins to TensorRT: kernels embedded in the graph, or the library that has them, loaded and recorded."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeattn import files
from edgeattn.backends.trt import aot
from edgeattn.backends.trt import library as lib
from edgeattn.backends.trt.capabilities import NAMESPACE, plugin_route
from edgeattn.backends.trt.device import gpus
from edgeattn.backends.trt.plugin_library import PluginLibrary, read_library
from edgeattn.backends.trt.plugins import Request, obstacles
from edgeattn.engine import Sidecar
from edgeattn.errors import UnsupportedError
from edgeattn.graph import Graph
from edgeattn.ops.base import DOMAIN

# Names the library. No sidecar or settings file does, since loading a library is running it.
VARIABLE = "EDGEATTN_PLUGIN_LIBRARY"
HINT = f"set {VARIABLE} to the library that has it; edgeattn plugins build makes one"


def obstacle(request: Request) -> str:
    """Why TensorRT on this machine cannot run a request as a plugin; empty where it can."""
    arch = _embeds_for()
    if arch:
        return "; ".join(obstacles(request, [arch]))
    library = _library_here()
    if library is None:
        return f"there is no plugin for it here: {HINT}"
    return "" if library.answers(request) else f"{library.path} has no kernel for {request}"


def provide(library: lib.Library, graph: Graph) -> tuple[Graph, tuple[Mapping[str, Any], ...]]:
    """Make sure that TensorRT has the plugins of a graph's nodes.

    Returns:
        The graph to be parsed, and what the sidecar says of its plugins.

    Raises:
        UnsupportedError: this TensorRT has no plugins, or there is none for a node.
        BuildError: a kernel did not compile.
    """
    ops = sorted({node.op_type for node in graph.model.graph if node.domain == DOMAIN})
    if not ops:
        return graph, ()
    if plugin_route(library.can) is None:
        raise UnsupportedError(f"{library} has no plugins in its networks; build without --attention plugin")
    arch = _embeds_for()
    if arch:
        quick = importlib.import_module(f"{library.flavour.package}.plugin")
        embedded = aot.embed(graph, arch, aot.registration(library.trt, quick))
        return embedded, ({"route": "embedded", "plugins": ops},)
    load(library, ops)
    path = os.environ.get(VARIABLE)  # not set where whoever runs this process has registered them
    found = {"library": Path(path).name, "sha256": files.sha256_file(Path(path))} if path else {}
    return graph, ({"route": "library", "plugins": ops, **found},)


def require(library: lib.Library, sidecar: Sidecar) -> None:
    """Bring the plugins that an engine needs, before it is deserialised.

    Raises:
        UnsupportedError: one is missing.
    """
    for record in sidecar.plugins:
        if record.get("route") == "library":
            load(library, [str(name) for name in record.get("plugins", ())])


def load(library: lib.Library, ops: Iterable[str]) -> None:
    """Register the plugins of some ops with TensorRT, where they are not there yet.

    Raises:
        UnsupportedError: there is no library, or it does not have them.
    """
    if not (lacking := _lacking(library, ops)):
        return
    names = ", ".join(lacking)
    given = os.environ.get(VARIABLE)
    if not given:
        raise UnsupportedError(f"{library} has no plugin {names}, which the engine needs: {HINT}")
    path = Path(given).resolve()
    if not path.is_file():
        raise UnsupportedError(
            f"{VARIABLE} names {given}, which is no file; {library} has no plugin {names} without it"
        )
    with lib.messages() as heard:
        library.trt.get_plugin_registry().load_library(str(path))
    if lacking := _lacking(library, ops):
        names = ", ".join(lacking)
        raise UnsupportedError(f"{path} does not bring the plugin {names} to {library}: {lib.errors_in(heard)}")


def _lacking(library: lib.Library, ops: Iterable[str]) -> list[str]:
    registry = library.trt.get_plugin_registry()
    with lib.messages():
        return [op for op in ops if registry.get_creator(op, "1", NAMESPACE) is None]


def _library_here() -> PluginLibrary | None:
    path = os.environ.get(VARIABLE)
    return _read(path, os.path.getmtime(path) if os.path.exists(path) else 0) if path else None


@functools.lru_cache(maxsize=1)
def _read(path: str, changed: float) -> PluginLibrary:
    return read_library(path)


def _embeds_for() -> int:
    """The architecture to embed kernels for; 0 where this TensorRT or machine cannot."""
    if importlib.util.find_spec("triton") is None or lib.missing(lib.TENSORRT, running=False):
        return 0
    route = plugin_route(lib.library(lib.TENSORRT).can)
    return int(gpus()[0].compute_capability.removeprefix("sm_")) if route and route.kind == "embedded" else 0
