"""Quantisation by what samples say: what helps accuracy where it does, and what helps speed where it costs little.

Rounding weights shifts the mean of each output channel by (rounded W - W) E[x]; its bias takes that back.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, arXiv 1906.04721,
section 4.2, with the mean of x as samples have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.errors import UsageError, did_you_mean
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import to_backend
from edgeattn.precision.int8.equalise import Channels, equalise
from edgeattn.precision.int8.placement import SCHEMES, Placement, Product, operand, place
from edgeattn.precision.int8.qdq import Quantised, prepared, quantise, require_nodes, stored
from edgeattn.precision.int8.weights import Names, initializer, numbers
from edgeattn.precision.ranges import Ranges
from edgeattn.precision.signatures import op
from edgeattn.tensors import numpy_dtype

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Feeds

MIN_GAIN_DB = 0.5
MOST_LOSS_DB = 1.5  # what rounding the operands of attentions may cost: less than half as much noise again
FEWEST_SAMPLES = 8  # with four, what seemed to gain cost a DeiT 2 dB on others


def quantise_best(
    graph: Graph,
    ranges: Ranges,
    scheme: str,
    keep: Collection[str] = (),
    *,
    rest: str = "float32",
    samples: Sequence[Feeds] = (),
    improve: Collection[str] | None = None,
) -> Quantised:
    """Quantise as `quantise` does, with equalised channels and corrected biases where each gains 0.5 dB of SQNR.

    Then the queries and keys of attentions are rounded too, where that makes the scheme's runtime faster and costs less
    than 1.5 dB. Half of the samples tell the sizes and means of channels, the other half what is gained and lost. With
    fewer than eight, nothing is tried. See `quantise` for the other arguments and errors.

    `improve` names the steps to take as they are, without asking what they gain, as `Quantised.improved` has them of
    another placement in the same graph: what gains in the whole is taken to gain in a part of it.

    Raises:
        UsageError: `improve` names a step that is not one of `STEPS`, nor `ROUNDED`.
    """
    source = _Source(graph, ranges, scheme, keep, rest)
    if improve is None and len(samples) < FEWEST_SAMPLES:
        return source.quantised()
    require_nodes(graph, keep)
    ready = Graph(prepared(graph), graph.path)
    left = {node.name for node in ready.model.graph}  # what does nothing is not
    source = dataclasses.replace(source, graph=ready, keep=[name for name in keep if name in left])
    if improve is not None:
        return _as_asked(source, samples, improve)
    return _by_gain(source, samples[: len(samples) // 2], samples[len(samples) // 2 :])


@dataclass(frozen=True)
class _Source:
    """A graph that is to be quantised, as the steps so far have left it, and how; see `quantise`."""

    graph: Graph
    ranges: Ranges
    scheme: str
    keep: Collection[str]
    rest: str

    def quantised(self, attention: bool = False) -> Quantised:
        return quantise(self.graph, self.ranges, self.scheme, self.keep, rest=self.rest, attention=attention)

    def after(self, what: str, samples: Sequence[Feeds]) -> _Source:
        graph = self.graph.copy()
        placement = place(graph.model.graph, graph.opset, self.ranges, SCHEMES[self.scheme], self.keep)
        ranges = STEPS[what](graph, placement, self.ranges, samples, self.rest)
        return dataclasses.replace(self, graph=graph, ranges=ranges)


def _as_asked(source: _Source, samples: Sequence[Feeds], improve: Collection[str]) -> Quantised:
    """Take the steps that are named, but those for which there are too few samples."""
    for what in improve:
        if what not in (*STEPS, ROUNDED):
            raise UsageError(f"no step {what!r} improves INT8; {did_you_mean(what, (*STEPS, ROUNDED))}")
    enough = len(samples) >= FEWEST_SAMPLES
    used, notes = [], []
    for what in filter(improve.__contains__, STEPS):
        if enough:
            source = source.after(what, samples[: len(samples) // 2])
            used.append(what)
        why = "used, as asked" if enough else f"left out, since that takes {FEWEST_SAMPLES} samples or more"
        notes.append(f"{what}: {why}")
    if ROUNDED in improve:
        used.append(ROUNDED)
        notes.append("queries and keys of attentions: rounded, as asked")
    found = source.quantised(attention=ROUNDED in improve)
    return dataclasses.replace(found, notes=(*found.notes, *notes), improved=tuple(used))


def _by_gain(source: _Source, known: Sequence[Feeds], judging: Sequence[Feeds]) -> Quantised:
    """Take the steps that gain what they should, one after the other."""
    truth = _outputs(source.graph, judging)
    best = source.quantised()
    score, used, notes = _sqnr(_outputs(best.graph, judging), truth), [], []
    for what in STEPS:
        tried = source.after(what, known)
        found = tried.quantised()
        gained = _sqnr(_outputs(found.graph, judging), truth)
        better = gained >= score + MIN_GAIN_DB
        verdict = "used" if better else f"left out, since they gain less than {MIN_GAIN_DB} dB"
        notes.append(f"{what}: {verdict}: SQNR {gained:.1f} dB instead of {score:.1f}")
        if better:
            best, source, score = found, tried, gained
            used.append(what)
    found = source.quantised(attention=True)
    if found.kept != best.kept:
        left = _sqnr(_outputs(found.graph, judging), truth)
        harmless = left > score - MOST_LOSS_DB
        verdict = "rounded" if harmless else f"left in float, since that costs {MOST_LOSS_DB} dB or more"
        notes.append(f"queries and keys of attentions: {verdict}: SQNR {left:.1f} dB instead of {score:.1f}")
        if harmless:
            best = found
            used.append(ROUNDED)
    return dataclasses.replace(best, notes=(*best.notes, *notes), improved=tuple(used))


Step = Callable[[Graph, Placement, Ranges, Sequence["Feeds"], str], Ranges]


def _equalised(graph: Graph, placement: Placement, ranges: Ranges, samples: Sequence[Feeds], rest: str) -> Ranges:
    changed = equalise(graph.model.graph, placement, _channels(graph, placement, samples))
    return dataclasses.replace(ranges, tensors={**ranges.tensors, **changed})


def _corrected(graph: Graph, placement: Placement, ranges: Ranges, samples: Sequence[Feeds], rest: str) -> Ranges:
    seen, names = _channels(graph, placement, samples), Names(graph.model.graph)
    for product in placement.products.values():
        node = product.node
        if product.bias is None and op(node) != "Conv":
            continue
        shift = _shift(product, seen[operand(node, product.x).name or ""].mean, numpy_dtype(rest))
        if shift is None:
            continue
        user, index = product.bias or (node, 2)
        bias = -shift if product.bias is None else numbers(operand(user, index)).reshape(-1) - shift
        if len(user.inputs) <= index:
            user.resize_inputs(index + 1)
        dtype = (operand(node, product.w).dtype or ir.DataType.FLOAT).numpy()
        value = initializer(graph.model.graph, names, f"{node.name}_corrected_bias", bias.astype(dtype))
        user.replace_input_with(index, value)
    return ranges


EQUALISED, ROUNDED = "equalised channels", "rounded queries and keys"
STEPS: dict[str, Step] = {EQUALISED: _equalised, "corrected biases": _corrected}


def _shift(product: Product, mean: Array, rest: np.dtype[np.generic]) -> Array | None:
    """By how much rounded weights shift the mean of each output channel."""
    node, weights = product.node, numbers(operand(product.node, product.w))
    codes, scale = stored(weights, product.axis, rest)
    along = [-1 if place == product.axis else 1 for place in range(weights.ndim)]
    error = codes * scale.astype(np.float64).reshape(along) - weights
    if op(node) == "Conv":
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        each = error.reshape(groups, len(error) // groups, error.shape[1], -1).sum(-1)
        shift: Array = np.einsum("goi,gi->go", each, mean.reshape(groups, -1)).reshape(-1)
        return shift
    if op(node) == "ConvTranspose" or weights.ndim != 2 or product.w == 0:
        return None
    return mean @ error if product.axis == 1 else error @ mean


def _channels(graph: Graph, placement: Placement, samples: Sequence[Feeds]) -> dict[str, Channels]:
    """What samples show of the channels of every value that a product reads."""
    axes = {
        operand(product.node, product.x).name or "": 1 if op(product.node).startswith("Conv") else -1
        for product in placement.products.values()
    }
    found: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in axes}
    run = _runner(graph, axes)
    for feeds in samples:
        values = {**feeds, **run(feeds)}
        for name, axis in axes.items():
            rows = np.moveaxis(values[name], axis, 0).reshape(values[name].shape[axis], -1)
            found[name].append((rows.min(1), rows.max(1), rows.mean(1, dtype=np.float64)))
    return {
        name: Channels(np.min(lows, 0), np.max(highs, 0), np.mean(means, 0))
        for name, (lows, highs, means) in ((name, zip(*items, strict=True)) for name, items in found.items())
    }


def _runner(graph: Graph, names: Iterable[str]) -> Callable[[Feeds], dict[str, Array]]:
    """Runs a fused graph for these values alone."""
    expanded = to_backend(graph, "openvino").copy()
    main = expanded.model.graph
    values = {value.name: value for node in main for value in node.outputs}
    wanted = [values[name] for name in names if name in values]
    if not wanted:  # all are inputs
        return lambda feeds: {}
    main.outputs.clear()
    main.outputs.extend(wanted)
    return run_as_written(expanded)


def _outputs(graph: Graph, samples: Sequence[Feeds]) -> list[Array]:
    """The floating-point outputs of a fused graph on samples."""
    run = run_as_written(to_backend(graph, "openvino"))
    return [array for feeds in samples for array in run(feeds).values() if array.dtype.kind == "f"]


def _sqnr(found: Sequence[Array], truth: Sequence[Array]) -> float:
    """Signal to noise in dB, over all arrays together; those of other shapes than the truth's count as lost."""
    noise = signal = 1e-30
    for got, right in zip(found, truth, strict=True):
        wide = right.astype(np.float64)
        noise += float(np.square(got - wide if got.shape == right.shape else wide).sum())
        signal += float(np.square(wide).sum())
    return float(10 * np.log10(signal / noise))
