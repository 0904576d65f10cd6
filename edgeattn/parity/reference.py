"""What an engine is held against: a PyTorch model, or a graph where there is no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.errors import EdgeAttnError, InferenceError, UnsupportedError, UsageError, one_line
from edgeattn.graph import Graph, load_graph
from edgeattn.images import Recipe, of_pixels
from edgeattn.interpreter import run_as_written
from edgeattn.tensors import TensorSpec, dtype_named, numpy_dtype

if TYPE_CHECKING:
    from edgeattn.model import Model
    from edgeattn.tensors import Array, Feeds

__all__ = ["Reference", "load_reference", "on_pixels", "reference_from_graph", "reference_from_model"]

BFLOAT16_CAST_OPSET = 13  # the first whose Cast knows bfloat16


@dataclass(frozen=True)
class Reference:
    """The original of an engine. Each function maps feeds to the outputs, in their order.

    `run` is the original as its user runs it, `oracle` the truth, in float64 where that is possible, and
    `low(feeds, dtype)` its own run in that dtype, None where it has none: what the dtype alone costs. Without
    `inputs`, feeds go by the engine's names. `sha256` is that of the file it was read from, if it was one.
    """

    source: str
    inputs: tuple[TensorSpec, ...]
    run: Callable[[Feeds], list[Array]]
    oracle: Callable[[Feeds], list[Array]]
    low: Callable[[Feeds, str], list[Array] | None]
    sha256: str = ""


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

    `low` runs it with inputs, weights and every node's result rounded to the dtype, as PyTorch would, and shares no
    code with what is checked; where that overflows or the opset has no such Cast, with inputs and weights rounded only.
    A graph that holds the dtype itself has no `low`: it is no truth to measure the dtype's cost against.

    Raises:
        UnsupportedError: the graph cannot be run here.
    """
    source = str(graph.path or graph.model.graph.name or "graph")
    run = _runner(graph, source)

    @cache
    def rounded(dtype: str, results: bool) -> Callable[[Feeds], list[Array]]:
        return _runner(_rounded_graph(graph, dtype, results), source)

    def low(feeds: Feeds, dtype: str) -> list[Array] | None:
        if dtype == "float32" or _holds(graph, dtype):
            return None
        feeds = {name: _rounded(array, dtype) for name, array in feeds.items()}
        if dtype == "bfloat16" and graph.opset < BFLOAT16_CAST_OPSET:
            return rounded(dtype, False)(feeds)
        outputs = rounded(dtype, True)(feeds)
        finite = all(np.isfinite(array).all() for array in outputs if array.dtype.kind == "f")
        return outputs if finite else rounded(dtype, False)(feeds)

    return Reference(source, graph.inputs, run, run, low, graph.source_sha256)


def on_pixels(reference: Reference, recipe: Recipe) -> Reference:
    """The same original behind a recipe: for an engine with its preprocessing in the graph. One on pixels stays so."""
    if any("float" not in spec.dtype for spec in reference.inputs):
        return reference

    def prepared(feeds: Feeds) -> dict[str, Array]:
        return {name: of_pixels(pixels, recipe) for name, pixels in feeds.items()}

    return replace(
        reference,
        inputs=tuple(replace(spec, dtype="uint8", shape=None) for spec in reference.inputs),
        run=lambda feeds: reference.run(prepared(feeds)),
        oracle=lambda feeds: reference.oracle(prepared(feeds)),
        low=lambda feeds, dtype: reference.low(prepared(feeds), dtype),
    )


def load_reference(target: str, weights: Path | None = None) -> Reference:
    """Load `model.onnx`, `FILE.py:FACTORY` or `pkg.mod:FACTORY`; see `load_graph` and `load_model` for the errors."""
    if target.lower().endswith(".onnx"):
        if weights is not None:
            raise UsageError(f"{target} has its weights inside; leave --weights out")
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


def _holds(graph: Graph, dtype: str) -> bool:
    return any(value.dtype == ir.DataType(dtype_named(dtype).onnx) for node in graph.nodes() for value in node.outputs)


def _rounded_graph(graph: Graph, dtype: str, results: bool) -> Graph:
    """The graph in float32 with weights, and maybe results, that have been through the dtype."""
    rounded = graph.copy()
    for value in rounded.model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(_rounded(tensor.numpy(), dtype), name=value.name)
    for node in tuple(rounded.model.graph) if results else ():
        for value in node.outputs:
            used = value.is_graph_output() or value.uses()
            if used and value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType):
                down = ir.node("Cast", [value], {"to": ir.DataType(dtype_named(dtype).onnx)})
                up = ir.node("Cast", down.outputs, {"to": ir.DataType.FLOAT})
                down.outputs[0].name, up.outputs[0].name = f"{value.name}:{dtype}", f"{value.name}:rounded"
                up.outputs[0].type, up.outputs[0].shape = value.type, value.shape
                value.replace_all_uses_with(up.outputs[0], replace_graph_outputs=True)
                down.replace_input_with(0, value)
                rounded.model.graph.insert_after(node, [down, up])
    return rounded


def _rounded(array: Array, dtype: str) -> Array:
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(numpy_dtype(dtype)).astype(np.float32)
