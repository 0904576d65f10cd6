"""What both targets share: an engine as its sidecar tells of it, and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.camera.results import Reading, reading_of
from edgeattn.engine import Sidecar
from edgeattn.reports.text import table
from edgeattn.tensors import TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from edgeattn.tensors import Array

PLUGINS = "the plan needs the plugin library that it was built with"


@dataclass(frozen=True)
class Deployed:
    """What was written for a target, and in `notes` what it does otherwise than edgeattn, or has to be told."""

    target: str
    engine: Path
    written: tuple[Path, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return table([*(("written", str(path)) for path in self.written), *(("note", note) for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        written = [str(path) for path in self.written]
        return {"target": self.target, "engine": str(self.engine), "written": written, "notes": list(self.notes)}


def task_of(sidecar: Sidecar, asked: str | None, size: tuple[int, int] = (0, 0)) -> Reading:
    """What an engine's outputs mean, by their shapes alone; see `edgeattn.camera.results.reading_of`.

    Raises:
        UsageError: they do not fit the task that was asked for.
    """
    return reading_of(
        {spec.name: _nothing(spec) for spec in sidecar.outputs if spec.shape is not None}, asked, size=size
    )


def _nothing(spec: TensorSpec) -> Array:
    """Zeros of an output's form, without their memory; a dynamic dimension counts as 1."""
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape or ())
    return np.broadcast_to(np.zeros((), numpy_dtype(spec.dtype)), shape)


def uses_library(sidecar: Sidecar) -> bool:
    """Whether a plan needs a plugin library beside it."""
    return any(record.get("route") == "library" for record in sidecar.plugins)
