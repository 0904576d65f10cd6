"""Data and changed weights for engines that tests break on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.graphs import Array


def samples(folder: Path, shape: tuple[int, ...], count: int = 8) -> None:
    folder.mkdir()
    for index in range(count):
        np.savez(folder / f"{index}.npz", x=np.random.default_rng(index).standard_normal(shape).astype(np.float32))


def edited(source: Path, target: Path, change: Callable[[Array], Array], *names: str) -> Path:
    """A copy of an ONNX file with other weights under some names."""
    model = onnx.load(source)
    weights = {item.name: item for item in model.graph.initializer}
    for name in names:
        weights[name].CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weights[name])), name))
    onnx.save(model, target)
    return target
