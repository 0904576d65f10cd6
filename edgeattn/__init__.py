"""edgeattn: from a PyTorch vision model with attention to a verified engine, and kept verified.

Importing it imports nothing else: a name is fetched from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeattn import camera
    from edgeattn.backends import open_session
    from edgeattn.backends.base import BuildConfig, Session
    from edgeattn.build import build_engine
    from edgeattn.data import Recipe, open_data
    from edgeattn.errors import EdgeAttnError, InputError, UnsupportedError
    from edgeattn.export import export_model
    from edgeattn.graph import Graph, load_graph, save_graph
    from edgeattn.inspect import inspect_file
    from edgeattn.model import Model, load_model
    from edgeattn.parity import check_parity
    from edgeattn.tensors import ShapeRange, TensorSpec

__version__ = "0.1.0"

_HOMES = {
    "BuildConfig": "edgeattn.backends.base",
    "EdgeAttnError": "edgeattn.errors",
    "Graph": "edgeattn.graph",
    "InputError": "edgeattn.errors",
    "Model": "edgeattn.model",
    "Recipe": "edgeattn.data",
    "Session": "edgeattn.backends.base",
    "ShapeRange": "edgeattn.tensors",
    "TensorSpec": "edgeattn.tensors",
    "UnsupportedError": "edgeattn.errors",
    "build_engine": "edgeattn.build",
    "camera": "edgeattn",
    "check_parity": "edgeattn.parity",
    "export_model": "edgeattn.export",
    "inspect_file": "edgeattn.inspect",
    "load_graph": "edgeattn.graph",
    "load_model": "edgeattn.model",
    "open_data": "edgeattn.data",
    "open_session": "edgeattn.backends",
    "save_graph": "edgeattn.graph",
}

__all__ = [  # the table's names: written out, so that type checkers and readers see them
    "BuildConfig",
    "EdgeAttnError",
    "Graph",
    "InputError",
    "Model",
    "Recipe",
    "Session",
    "ShapeRange",
    "TensorSpec",
    "UnsupportedError",
    "build_engine",
    "camera",
    "check_parity",
    "export_model",
    "inspect_file",
    "load_graph",
    "load_model",
    "open_data",
    "open_session",
    "save_graph",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeattn' has no attribute {name!r}")
    if _HOMES[name] == __name__:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
