"""Engines of backends that are not here: a sidecar as theirs, and some bytes for the plan, which nobody loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeattn.engine import Engine, Precision, Sidecar, write_engine
from edgeattn.tensors import ShapeRange, TensorSpec


def engine_at(path: Path, plan: bytes = b"plan", **changed: Any) -> Path:
    """Write an engine of TensorRT that takes 1 to 8 images (3, 64, 96) and gives 5 scores."""
    about: dict[str, Any] = {
        "backend": "tensorrt",
        "backend_version": "10.3.0",
        "inputs": (TensorSpec("image", "float32", ("batch", 3, 64, 96)),),
        "outputs": (TensorSpec("scores", "float32", ("batch", 5)),),
        "precision": Precision("float16"),
        **changed,
    }
    about.setdefault("profile", {spec.name: _spread(spec) for spec in about["inputs"]})
    write_engine(Engine(plan, Sidecar(**about)), path)
    return path


def _spread(spec: TensorSpec) -> ShapeRange:
    low, high = (tuple(free if isinstance(dim, str) else dim for dim in spec.shape or ()) for free in (1, 8))
    return ShapeRange(low, low, high)
