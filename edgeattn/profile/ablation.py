"""What an attention block costs, by taking it out: for engines whose layers hide it.

The graph that an engine was built from is built again with and without the block, whose place something of no cost
takes, and the two are timed in turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.backends import backend_named, open_session
from edgeattn.backends.base import Progress, config_of, silent
from edgeattn.engine import Sidecar, read_sidecar
from edgeattn.errors import EdgeAttnError, UnsupportedError
from edgeattn.folding import built_from
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.ops.base import DOMAIN, Tape
from edgeattn.ops.walk import dims
from edgeattn.precision.mixed import typed_for
from edgeattn.profile.paired import difference_ms
from edgeattn.profile.report import Interval, ProfileReport
from edgeattn.profile.timing import measure_turns
from edgeattn.tensors import random_feeds

if TYPE_CHECKING:
    from edgeattn.backends.base import Session
    from edgeattn.tensors import Shape

__all__ = ["ablated", "dissectable", "without_block"]

Dims = tuple[int | str | None, ...]


def dissectable(engine: str | Path, trust: bool = False) -> Graph:
    """The fused graph of an engine whose blocks can be taken out.

    Raises:
        InputError: the graph that its sidecar names is gone, or has changed.
        UnsupportedError: the engine is in INT8, and what it rounds is not kept.
    """
    sidecar = read_sidecar(engine, trust)
    if sidecar.precision.asked == "int8":
        raise UnsupportedError(f"{engine} is in INT8, and what it rounds is not kept: take blocks out of one in FP16")
    return fuse(built_from(engine, sidecar))[0]


def ablated(
    report: ProfileReport,
    engine: str | Path,
    graph: Graph,
    *,
    duration_s: float = 1.0,
    trust: bool = False,
    progress: Progress = silent,
) -> ProfileReport:
    """A profile with what its engine saves without each of its attention blocks, one at a time.

    A block without which the engine can neither be built nor timed keeps none, and a note says why.

    Args:
        report: the profile of the engine.
        engine: where it is.
        graph: its `dissectable` graph.
        duration_s: how long to time the engine for each block, and as long without the block.
        trust: go on where the sidecar does not describe the plan.
        progress: called with what is done, and the fraction that is.
    """
    sidecar = read_sidecar(engine, trust)
    blocks, notes = [], [] if report.blocks else [f"{engine} has no attention blocks to take out"]
    with open_session(engine, trust) as session:
        for place, block in enumerate(report.blocks):
            progress(f"taking out {block.name}", place / len(report.blocks))
            try:
                with _built(without_block(graph, block.name), block.name, sidecar) as other:
                    saved, bounds = _saved(session, other, report.shapes, duration_s)
            except EdgeAttnError as err:
                notes.append(f"{block.name} was not taken out: {err}")
                blocks.append(block)
            else:
                blocks.append(replace(block, ablation_ms=saved, ablation_interval_ms=bounds))
    return replace(report, blocks=tuple(blocks), notes=(*report.notes, *notes))


def without_block(fused: Graph, name: str) -> Graph:
    """A copy of a fused graph in which a block gives what it was given: a gate its map, an attention its values.

    Where these have another size than the result, as many of them are taken as fit, and single ones repeated. One
    element of every other operand is added, so that a backend still computes them: what goes is the block alone, and
    not what leads to it.

    Raises:
        UnsupportedError: there is no such block, or none of its operands can stand in for its result.
    """
    edited = fused.copy()
    main = edited.model.graph
    node = next((node for node in main if node.domain == DOMAIN and node.name == name), None)
    if node is None:
        raise UnsupportedError(f"the graph has no attention block {name!r} to take out")
    output, tape = node.outputs[0], Tape()
    result = _stand_in(tape, node)
    for number, value in enumerate((*tape.constants, *(made.outputs[0] for made in tape.nodes))):
        value.name = f"{output.name}/without_{number}"
    for value in tape.constants:
        main.register_initializer(value)
    main.insert_before(node, tape.nodes)
    result.type, result.shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    result.name, output.name = output.name, None
    common.RemoveUnusedNodesPass()(edited.model)
    common.RemoveUnusedFunctionsPass()(edited.model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(edited.model)
    return edited


def _stand_in(tape: Tape, node: ir.Node) -> ir.Value:
    """A value of the shape of a block's result, made of its operands at next to no cost."""
    output = node.outputs[0]
    shape = dims(output)
    operands = [
        value for value in node.inputs if value is not None and value.const_value is None and _is_floating(value)
    ]
    if node.op_type == "SoftmaxAttention":  # its values, though its queries may well have their size
        operands.sort(key=lambda value: value is not node.inputs[2])
    for value in operands:
        own = dims(value)
        if shape is not None and own is not None and value.dtype == output.dtype and _fits(own, shape):
            others = [_element(tape, other, output) for other in operands if other is not value]
            fitted = _fitted(tape, value, own, shape)
            return tape.op("Add", [fitted, _sum(tape, others)]) if others else tape.op("Identity", [fitted])
    raise UnsupportedError(f"nothing that goes into {node.op_type} {node.name!r} can be cut to the size of its result")


def _is_floating(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _fits(own: Dims, shape: Dims) -> bool:
    """Whether one can be cut and repeated to the other: each size is the same, or both are numbers."""
    pairs = list(zip(own, shape, strict=False))
    return len(own) == len(shape) and all(a == b or (isinstance(a, int) and isinstance(b, int)) for a, b in pairs)


def _fitted(tape: Tape, value: ir.Value, own: Dims, shape: Dims) -> ir.Value:
    """The first elements of every axis that is too long, and the first one as often as needed where it is too short."""
    known = [(a, b) if isinstance(a, int) and isinstance(b, int) else (1, 1) for a, b in zip(own, shape, strict=True)]
    ends = {axis: b if a > b else 1 for axis, (a, b) in enumerate(known) if a != b}
    cut = _first(tape, value, ends) if ends else value
    repeated = [b if a < b else 1 for a, b in known]
    return tape.op("Expand", [cut, tape.constant(np.array(repeated))]) if max(repeated, default=1) > 1 else cut


def _element(tape: Tape, value: ir.Value, like: ir.Value) -> ir.Value:
    """The first element of a value, in the dtype of another, as a tensor of one."""
    rank = len(dims(value) or ())
    first = tape.op("Reshape", [_first(tape, value, dict.fromkeys(range(rank), 1)), tape.constant(np.array([1]))])
    return first if value.dtype == like.dtype else tape.op("CastLike", [first, like])


def _first(tape: Tape, value: ir.Value, ends: Mapping[int, int]) -> ir.Value:
    zeros = np.zeros(len(ends), np.int64)
    indices = (zeros, np.array([*ends.values()]), np.array([*ends]))
    return tape.op("Slice", [value, *map(tape.constant, indices)])


def _sum(tape: Tape, values: Sequence[ir.Value]) -> ir.Value:
    return tape.op("Sum", values) if len(values) > 1 else values[0]


def _built(graph: Graph, name: str, sidecar: Sidecar) -> Session:
    """An engine of a graph without a block, built as the sidecar's was, and open."""
    config = config_of(sidecar)
    forms, precisions = (
        {key: value for key, value in setting.items() if key != name}
        for setting in (config.forms, config.layer_precisions)
    )
    config = replace(config, forms=forms, layer_precisions=precisions)
    typed, *_ = typed_for(graph, sidecar.backend, config)
    if sidecar.config.get("inference_precision") == "f32":  # for something that may be gone with the block
        config = replace(config, precision="float32")
    module = backend_named(sidecar.backend)
    return module.load(module.build(typed, config))


def _saved(session: Session, other: Session, shapes: Mapping[str, Shape], duration_s: float) -> tuple[float, Interval]:
    """Milliseconds that one session takes more than the other, in the median over turns, and bounds of that."""
    feeds = random_feeds(session.inputs, shapes, seed=0)
    calls = {"with": partial(session.run, feeds), "without": partial(other.run, feeds)}
    turns = measure_turns(calls, duration_s=duration_s)
    return difference_ms(turns["with"], turns["without"])
