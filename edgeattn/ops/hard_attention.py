"""HardAttention: the k items with the highest scores, and nothing of the others.

    HardAttention(scores, items) = (items[b, i_1], ..., items[b, i_k]),  scores[b, i_1] >= scores[b, i_2] >= ...

scores (B, N), items (B, N, ...), y (B, k, ...); of equal scores the one with the lower index comes first, as ArgMax
and TopK of ONNX promise. Attribute: `k`, a list of one number. Variants: "" takes the places from TopK, "argmax"
(k = 1) from ArgMax, each as the graph did, since only numbers are compared alike: not NaN.

What counts: a choice of features by computed, floating-point scores. The same nodes also do other work, and that is
left alone. Not reported: items that are no floating-point tensor or have at most four numbers (boxes, points), and
rows of a constant table. Reported as missed: scores that are whole numbers (CLIP takes the token with the largest
id), items chosen by their own maximum (class scores), and choices that take boxes (B, N, 4) as well (a detector's
pre-selection before its suppression or its decoder). A crop is a Slice: one whose start depends on data has no
canonical form here and is missed; one by affine sampling is a SpatialTransformer.

Source: Xu et al., "Show, Attend and Tell", 2015, arXiv 1502.03044, section 4.1 (one item, the most likely, at test
time); Almahairi et al., "Dynamic Capacity Networks", 2015, arXiv 1511.07838, section 2.2 (the k most salient patches).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.base import AttentionOp, Case, Facts, Match, Miss, Tape
from edgeattn.ops.hard_attention_search import (
    GATHERS,
    STEPS,
    Choice,
    Gathered,
    choice,
    chooser,
    count_of,
    gathered,
    starts_from_data,
)
from edgeattn.ops.layers import Unlike, itemsize, sizes
from edgeattn.ops.layout import same

if TYPE_CHECKING:
    from torch import Tensor

NAME = "HardAttention"
BOX = 4  # numbers of a box; a feature has more


def function(variant: str) -> str:
    """The body of a variant."""
    top = """
            count = Constant <value_ints: ints = @k> ()
            best, places = TopK <axis = 1> (scores, count)"""
    places = "places = ArgMax <axis = 1> (scores)" if variant else top
    return f"""
        HardAttention <k> (scores, items) => (y) {{
            last = Constant <value_ints = [-1]> ()
            {places}
            rows = Unsqueeze (places, last)
            y = GatherND <batch_dims = 1> (items, rows)
        }}"""


def reference(variant: str, scores: Tensor, items: Tensor, *, k: Sequence[int]) -> Tensor:
    """The formula in PyTorch, whose own `topk` does not say which of equal scores it takes."""
    import torch

    places = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, : k[0]]
    return items[torch.arange(len(items))[:, None], places]


# Search


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """From every gather of features, back through its index to a choice, and from there to the scores."""
    found = [(node, picked) for node in graph if (picked := _picked(node)) is not None]
    boxes = {picked for node, picked in found if _numbers(node) == BOX}
    for node, picked in found:
        if _is_of_features(node):
            try:
                if picked in boxes:
                    raise Unlike(f"{picked.name} chooses boxes as well: a detector's pre-selection")
                yield _match(node, picked)
            except Unlike as err:
                yield Miss(NAME, node, (picked, node), str(err))
    for node in graph:
        if node.op_type == "Slice" and not node.domain and starts_from_data(node):
            yield Miss(NAME, node, (node,), f"{node.name} crops from a place that is computed, expected a gather")


def _picked(node: ir.Node) -> ir.Node | None:
    return chooser(node) if node.op_type in GATHERS and not node.domain else None


def _numbers(node: ir.Node) -> int | None:
    """How many numbers an item has of what a gather takes from; None where that is not known."""
    shape = walk.dims(node.inputs[0]) or ()
    axis = walk.integer(node, "axis", 0) if node.op_type == "GatherElements" else min(1, len(shape) - 2)
    rest = [size for place, size in enumerate(shape) if place not in (0, axis % max(len(shape), 1))]
    return prod(size for size in rest if isinstance(size, int)) if all(isinstance(size, int) for size in rest) else None


def _is_of_features(node: ir.Node) -> bool:
    """Whether what is gathered may be features: floating-point, computed, of more numbers than a box."""
    data = node.inputs[0]
    if data is None or data.dtype is None or not data.dtype.is_floating_point() or walk.constant(data) is not None:
        return False
    numbers = _numbers(node)
    return len(walk.dims(data) or ()) > 1 + (node.op_type == "GatherElements") and (numbers is None or numbers > BOX)


def _match(node: ir.Node, picked: ir.Node) -> Match:
    count = count_of(picked)
    gather = gathered(node, count)
    found = choice(gather, count)
    shape, among = walk.dims(gather.items) or (), (walk.dims(found.scores) or ())[found.axis]
    if found.scores.dtype is None or not found.scores.dtype.is_floating_point():
        raise Unlike(f"the scores {found.scores.name!r} are of type {found.scores.dtype}, expected floating-point ones")
    if len(shape) < 3 or not same(shape[gather.axis], among):
        raise Unlike(f"{among} scores choose among items {shape}, expected one score for each item")
    if _maximised(found.scores) is _bare(gather.items):
        raise Unlike(f"{picked.name} chooses scores by their own maximum: a detector's pre-selection")
    rest = [size for place, size in enumerate(shape) if place not in (0, gather.axis)]
    if gather.form == "merged" and not all(isinstance(size, int) for size in rest):
        raise Unlike(f"items of shape {shape} are merged with the batch, expected fixed sizes")
    order = [0, gather.axis, *(place for place in range(1, len(shape)) if place != gather.axis)]

    def finish(tape: Tape, value: ir.Value) -> ir.Value:
        if gather.form == "squeezed":
            return tape.op("Squeeze", [value, tape.constant(np.array([1]))])
        if gather.form == "merged":
            return tape.op("Reshape", [value, tape.constant(np.array([-1, *rest], np.int64))])
        return tape.op("Transpose", [value], perm=[int(place) for place in np.argsort(order)]) if moved else value

    moved = gather.axis != 1
    return Match(
        NAME,
        "argmax" if picked.op_type == "ArgMax" else "",
        node,
        tuple(walk.between(node.outputs[0], {found.scores, gather.items})),
        node.outputs[0],
        lambda tape: [
            _flat(tape, found),
            tape.op("Transpose", [gather.items], perm=order) if moved else gather.items,
        ],
        {"k": (count,)},
        _facts(found, gather, rest),
        finish,
    )


def _flat(tape: Tape, found: Choice) -> ir.Value:
    """The scores (B, N)."""
    ones = [place for place in range(1, len(walk.dims(found.scores) or ())) if place != found.axis]
    return tape.op("Squeeze", [found.scores, tape.constant(np.array(ones))]) if ones else found.scores


def _bare(value: ir.Value | None) -> ir.Value | None:
    """What a value is but for its layout and a sigmoid."""
    while (node := walk.made_by(value, *STEPS[:7], "Sigmoid")) is not None:
        value = node.inputs[0]
    return value


def _maximised(scores: ir.Value) -> ir.Value | None:
    """What scores are the maximum of, but for its layout and a sigmoid."""
    node = walk.made_by(_bare(scores), "ReduceMax")
    return _bare(node.inputs[0]) if node is not None else None


def _facts(found: Choice, gather: Gathered, rest: Sequence[int | str | None]) -> Facts:
    named = sizes(gather.items, "batch") | {"chosen": found.count}
    among = (walk.dims(found.scores) or ())[found.axis]
    named |= {"items": among if among is not None else "?"}
    if not isinstance(among, int) or not all(isinstance(size, int) for size in rest):
        return Facts(named)
    numbers = prod(size for size in rest if isinstance(size, int))
    taken = 2 * found.count * numbers * itemsize(gather.items)
    width = itemsize(found.scores)
    return Facts(
        named | {"numbers": numbers},
        flops=0,
        bytes_decomposed=taken + width * (among + found.count) + 8 * 4 * found.count,
        bytes_fused=taken + width * among,
    )


def cases() -> Sequence[Case]:
    """Modules that must match and that must not."""
    from edgeattn.ops.hard_attention_cases import CASES

    return CASES


OP = AttentionOp(NAME, "arXiv 1502.03044, 1511.07838", find, function, reference, cases, maps=("places",))
