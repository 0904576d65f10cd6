"""What an engine is held against: a PyTorch model, or a graph where there is no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.errors import EdgeAttnError, InferenceError, UnsupportedError, one_line
from edgeattn.graph import Graph, load_graph
from edgeattn.interpreter import run_as_written
from edgeattn.tensors import TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from edgeattn.model import Model
    from edgeattn.tensors import Array, Feeds

__all__ = ["Reference", "load_reference", "reference_from_graph", "reference_from_model"]


@dataclass(frozen=True)
class Reference:
    """The original of an engine. Each function maps feeds to the outputs, in their order.

    `run` is the original as its user runs it, `oracle` the truth, in float64 where that is possible, and
    `low(feeds, dtype)` its own run in that dtype, None where it has none: what the dtype alone costs. Without
    `inputs`, feeds go by the engine's names.
    """

    source: str
    inputs: tuple[TensorSpec, ...]
    run: Callable[[Feeds], list[Array]]
    oracle: Callable[[Feeds], list[Array]]
    low: Callable[[Feeds, str], list[Array] | None]


def reference_from_model(model: Model) -> Reference:
    """Take a PyTorch model: float64 is the oracle, and `low` is PyTorch's own run in the dtype."""

    def low(feeds: Feeds, dtype: str) -> list[Array] | None:
        try:
            return model.run(feeds, dtype)
        except UnsupportedError:
            return None

    return Reference(model.source, model.inputs, model.run, lambda feeds: model.run(feeds, "float64"), low)


def reference_from_graph(graph: Graph) -> Reference:
    """Take a float32 graph, run as it is written: no optimisation, and no float64, so it is its own oracle.

    `low` runs it with weights and inputs rounded to the dtype. On eight networks that gave 0.65 to 1.0 times the L2
    error of PyTorch's own run in the dtype, and unlike a converted graph it shares no code with what is checked.

    Raises:
        UnsupportedError: the graph cannot be run here.
    """
    source = str(graph.path or graph.model.graph.name or "graph")
    run = _runner(graph, source)
    rounded: dict[str, Callable[[Feeds], list[Array]]] = {}

    def low(feeds: Feeds, dtype: str) -> list[Array] | None:
        if dtype == "float32":
            return None
        if dtype not in rounded:
            rounded[dtype] = _runner(_rounded_weights(graph, dtype), source)
        return rounded[dtype]({name: _rounded(array, dtype) for name, array in feeds.items()})

    return Reference(source, graph.inputs, run, run, low)


def load_reference(target: str, weights: Path | None = None) -> Reference:
    """Load `model.onnx`, `FILE.py:FACTORY` or `pkg.mod:FACTORY`; see `load_graph` and `load_model` for the errors."""
    if target.lower().endswith(".onnx"):
        return reference_from_graph(load_graph(target))
    from edgeattn.model import load_model

    return reference_from_model(load_model(target, weights))


def _runner(graph: Graph, source: str) -> Callable[[Feeds], list[Array]]:
    try:
        call = run_as_written(graph)
    except EdgeAttnError:
        raise
    except Exception as err:
        raise UnsupportedError(f"{source} cannot be run as a reference: {one_line(err)}") from err

    def run(feeds: Feeds) -> list[Array]:
        try:
            return list(call(feeds).values())
        except Exception as err:
            raise InferenceError(f"the reference {source} failed: {one_line(err)}") from err

    return run


def _rounded_weights(graph: Graph, dtype: str) -> Graph:
    rounded = graph.copy()
    for value in rounded.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(_rounded(tensor.numpy(), dtype), name=value.name)
    return rounded


def _rounded(array: Array, dtype: str) -> Array:
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(numpy_dtype(dtype)).astype(np.float32)
