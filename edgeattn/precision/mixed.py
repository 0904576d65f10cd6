"""A fused graph in the precisions that a build asks for, as its backend takes them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig
from edgeattn.data import Sample, spread
from edgeattn.errors import UnsupportedError, UsageError, did_you_mean
from edgeattn.graph import Graph, modules_around, with_profile
from edgeattn.lowering import to_backend
from edgeattn.lowering.tensorrt import give_codes
from edgeattn.precision.fp16 import lower
from edgeattn.precision.int8.improve import quantise_best
from edgeattn.precision.ranges import Ranges

if TYPE_CHECKING:
    from edgeattn.tensors import Array

IMPROVED_SAMPLES = 16


def floating(config: BuildConfig) -> str:
    """The dtype of what computes in floating point; empty for the graph's own."""
    return config.rest if config.precision == "int8" else config.precision


def typed_for(
    fused: Graph,
    backend: str,
    config: BuildConfig,
    *,
    ranges: Ranges | None = None,
    samples: Iterable[Sample] | None = None,
) -> tuple[Graph, tuple[str, ...], tuple[str, ...] | None]:
    """Turn a fused graph into what a backend builds, in the precisions asked for.

    Returns:
        The graph, in words what became of its precisions, and `BuildConfig.improve` as samples chose it.

    Raises:
        UsageError: a precision is asked of a node that is not there.
        UnsupportedError: the backend has no INT8 beside the dtype asked for, or nothing can be quantised.
    """
    notes: tuple[str, ...] = ()
    improved = config.improve
    layers = _layers(fused, config.layer_precisions)
    if config.precision == "int8" and ranges is not None:
        module = backend_named(backend)
        if config.rest not in module.BESIDE_INT8:
            raise UnsupportedError(f"{backend} has INT8 beside {' or '.join(module.BESIDE_INT8)}, not {config.rest}")
        quantised = quantise_best(
            fused,
            ranges,
            module.INT8,
            [name for name, precision in layers.items() if precision != "int8"],
            rest=config.rest,
            samples=[_filled(fused, sample) for sample in spread(samples or (), IMPROVED_SAMPLES)],
            improve=config.improve,
        )
        fused, notes, improved = quantised.graph, quantised.notes, quantised.improved
    graph = with_profile(to_backend(fused, backend, config.forms), config.profile)
    in_graph = config.precision != "int8" or backend.startswith("tensorrt")  # OpenVINO takes it as a setting
    if floating(config) in ("float16", "bfloat16") and in_graph:
        high = {name for name, precision in layers.items() if precision == "float32"}
        lowered = lower(graph, floating(config), config.keep_io_types, ranges, high)
        graph, notes = lowered.graph, (*notes, *lowered.notes)
    graph, more = give_codes(graph)
    return graph, (*notes, *more), improved


def _filled(graph: Graph, sample: Sample) -> dict[str, Array]:
    """A sample, repeated to a graph's fixed batch."""
    sizes = {spec.name: spec.shape[0] if spec.shape else 1 for spec in graph.inputs}
    return {
        name: np.repeat(array, size if isinstance(size := sizes[name], int) else 1, axis=0)
        for name, array in sample.feeds.items()
    }


def _layers(fused: Graph, wanted: Mapping[str, str]) -> dict[str, str]:
    """The precisions asked for by node, module or glob, by the names of nodes; of two globs, the later one counts."""
    paths = {node.name or "": {node.name or "", *modules_around(node)} for node in fused.model.graph}
    found: dict[str, str] = {}
    for pattern, precision in wanted.items():
        matched = [name for name, own in paths.items() if pattern in own or fnmatch.filter(own, pattern)]
        if not matched:
            known = sorted(set().union(*paths.values()) - {""})
            raise UsageError(f"the graph has no node or module {pattern!r}; {did_you_mean(pattern, known)}")
        found.update(dict.fromkeys(matched, precision))
    return found
