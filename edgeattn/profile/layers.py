"""From a backend's raw times to layers and attention blocks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from edgeattn.backends.base import LayerTimes, RawLayer
from edgeattn.lowering import BODY
from edgeattn.profile.provenance import Node, Origin, PlannedBlock, Provenance, origins
from edgeattn.profile.report import Block, Layer, Reconciliation
from edgeattn.profile.timing import median_interval
from edgeattn.tensors import DTYPES

if TYPE_CHECKING:
    from edgeattn.tensors import Dim

__all__ = ["blocks_of", "layers_of", "reconciled"]

NEGLIGIBLE = 0.02  # of the whole
MOVING = ("Reorder", "ReorderInput", "ReorderOutput", "Reformat", "Reshape", "Transpose", "NoOp")


def layers_of(
    readings: Sequence[LayerTimes], nodes: Sequence[Node], whole_ms: float, batch: int, per_sample: bool
) -> tuple[tuple[Layer, ...], float]:
    """Sum up the times of all readings; layers that never took any time are left out.

    Where all layers together take longer than the whole without instrumentation, the instrument's own time is in each
    of them: the excess is taken off in equal parts, never more than the fastest layer has.

    Returns:
        The layers, and the milliseconds that were taken off each.
    """
    raw, turns = _ran(readings)
    if not raw:
        return (), 0.0
    pooled = [sorted(time for turn in own for time in turn) for own in turns]
    medians = [statistics.median(times) for times in pooled]
    off = min(max(0.0, sum(medians) - whole_ms) / len(raw), *medians)
    total = sum(medians) - off * len(raw) or 1.0
    found = []
    for layer, origin, own, times, median in zip(raw, origins(raw, nodes), turns, pooled, medians, strict=True):
        low, high = median_interval(own)
        found.append(
            Layer(
                name=layer.name,
                kind=layer.kind,
                precision=layer.precision,
                median_ms=median - off,
                p90_ms=times[-(-len(times) * 9 // 10) - 1] - off,
                interval_ms=(max(0.0, low - off), high - off),
                share=(median - off) / total,
                mean_ms=max(0.0, statistics.fmean(times) - off),
                input_shapes=_shapes(layer.input_shapes, batch),
                output_shapes=_shapes(layer.output_shapes, batch),
                nodes=origin.nodes,
                attention=origin.attention,
                module=origin.module,
                stage=origin.module.partition(".")[0],
                kernel=layer.kernel,
                flops=_flops(origin, batch if per_sample else 1),
                bytes=_bytes(layer, batch),
            )
        )
    return tuple(found), off


def _ran(readings: Sequence[LayerTimes]) -> tuple[list[RawLayer], list[list[list[float]]]]:
    """The layers that took time, and the milliseconds of each, turn by turn."""
    names = {layer.name: layer for reading in readings for layer in reading.layers}
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    for reading in readings:
        if reading.rows:
            places = {layer.name: place for place, layer in enumerate(reading.layers)}
            for name, turns in times.items():
                turns.append([row[places[name]] / 1e6 if name in places else 0.0 for row in reading.rows])
    kept = [
        name for name, turns in times.items() if statistics.median([t for turn in turns for t in turn] or [0.0]) > 0
    ]
    places = {name: place for place, name in enumerate(kept)}
    raw: list[RawLayer] = []
    seen_as: list[set[int]] = []  # the kept layers that one stands for: itself, or where it is not kept, what it reads
    for name, layer in names.items():
        sources = set().union(*(seen_as[place] for place in layer.reads if place < len(seen_as)))
        seen_as.append({places[name]} if name in places else sources)
        if name in places:
            raw.append(replace(layer, reads=tuple(sorted(sources))))
    return raw, [times[name] for name in kept]


def _shapes(shapes: Sequence[tuple[Dim, ...]], batch: int) -> tuple[tuple[Dim, ...], ...]:
    """Shapes with the batch where it is dynamic."""
    return tuple((batch, *shape[1:]) if shape[:1] == ("?",) else shape for shape in shapes)


def _flops(origin: Origin, times: int) -> int | None:
    return None if origin.flops is None else origin.flops * times


def _bytes(layer: RawLayer, batch: int) -> int | None:
    """Bytes of inputs and outputs, all of them in the layer's dtype; None of unknown sizes."""
    bits = next((row.bits for row in DTYPES if row.name == layer.precision), None)
    shapes = _shapes((*layer.input_shapes, *layer.output_shapes), batch)
    sizes = [size for shape in shapes for size in shape]
    if bits is None or not all(isinstance(size, int) for size in sizes):
        return None
    return sum(prod(int(size) for size in shape) for shape in shapes) * bits // 8


def blocks_of(known: Provenance, layers: Sequence[Layer], batch: int) -> tuple[Block, ...]:
    """The attention blocks that a sidecar knows, each with its layers and what it costs at a batch."""
    return tuple(_block(planned, known, layers, batch if known.per_sample else 1) for planned in known.blocks)


def _block(planned: PlannedBlock, known: Provenance, layers: Sequence[Layer], times: int) -> Block:
    own = [layer for layer in layers if layer.attention == planned.name]
    computing = [layer for layer in own if layer.kind not in MOVING]
    fused = len(computing) == 1 if own else planned.plan != BODY
    moved = planned.bytes_fused if fused else planned.bytes_decomposed
    flops, moved = (None if cost is None else cost * times for cost in (planned.flops, moved))
    return Block(
        name=planned.name,
        op=planned.op,
        plan=planned.plan,
        fused=fused,
        why=_why(planned, own, len(computing), _hidden(planned.name, layers, known.nodes)),
        layers=tuple(layer.name for layer in own),
        median_ms=sum(layer.median_ms for layer in own) if own else None,
        share=sum(layer.share for layer in own) if own else None,
        flops=flops,
        bytes=moved,
        intensity=flops / moved if flops is not None and moved else None,
    )


def _hidden(name: str, layers: Sequence[Layer], nodes: Sequence[Node]) -> str:
    """The layer of others in which a block's nodes are computed, if any."""
    own = {node.name for node in nodes if node.attention == name}
    return next((layer.name for layer in layers if layer.attention != name and own & set(layer.nodes)), "")


def _why(planned: PlannedBlock, own: Sequence[Layer], computing: int, hidden: str) -> str:
    """Why nothing better ran a block than what did; empty where nothing is better."""
    if not own and hidden:
        return f"the backend computes it within {hidden}, beside other layers: --ablate says what it costs"
    if own and computing == 1:
        return "" if planned.plan != BODY else "the backend fused the plain operators itself"
    if planned.plan != BODY and own:
        return f"planned as one kernel, but the backend runs it in {computing} layers"
    return planned.why


def reconciled(
    layers: Sequence[Layer],
    readings: Sequence[LayerTimes],
    whole_ms: float,
    instrumented_ms: float,
    taken_off_ms: float,
) -> Reconciliation:
    """Say how the layers add up to the whole.

    Args:
        layers: after what was taken off them; at least one.
        readings: what they were made of.
        whole_ms: the median of a run without instrumentation.
        instrumented_ms: the median of a run with it.
        taken_off_ms: what was taken off each layer.
    """
    runs = [sum(row) / 1e6 for reading in readings for row in reading.rows]
    together = statistics.median(runs) - taken_off_ms * len(layers)
    total = sum(layer.median_ms for layer in layers)
    found = Reconciliation(whole_ms, instrumented_ms, total, together, (), taken_off_ms)
    averaged = max(reading.runs_a_row for reading in readings)
    return replace(found, explanation=tuple(_explained(found, len(layers), averaged)))


def _explained(sums: Reconciliation, layers: int, averaged: int) -> Iterator[str]:
    """Where the differences are, in words; `averaged` is how many runs a time is the mean of."""
    yield f"{layers} layers take {sums.layers_ms:.3f} ms of {sums.whole_ms:.3f} ms"
    if sums.taken_off_ms > 0:
        off = f"{1e3 * sums.taken_off_ms:.1f} us"
        yield f"timing takes {off} within each layer, which was taken off: the fastest are uncertain by as much"
    least = NEGLIGIBLE * sums.whole_ms
    if sums.layers_ms > sums.whole_ms + least:
        more = f"{sums.layers_ms - sums.whole_ms:.3f} ms more than the whole"
        yield f"together they take {more}: some run beside others, or timing slows them"
    elif sums.uneven_ms > least:
        yield f"in one run they take {sums.uneven_ms:.3f} ms more: what disturbs runs hits other layers each time"
    if sums.outside_ms > least:
        rest = "feeding, reading, dispatch, and layers shorter than the clock's step"
        yield f"{sums.outside_ms:.3f} ms lie outside: {rest}"
    slower = sums.instrumented_ms / sums.whole_ms - 1
    yield f"a run with every layer timed takes {sums.instrumented_ms:.3f} ms, {100 * slower:+.0f} %"
    if averaged > 1:
        yield f"the backend tells means: each time is a mean of about {averaged} runs, in whole microseconds"
