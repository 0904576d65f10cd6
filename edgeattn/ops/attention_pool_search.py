"""How a graph is searched for `AttentionPool`: from every sum of products back to a softmax over what is summed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import onnx_ir as ir

from edgeattn.ops import walk
from edgeattn.ops.attention_pool_sums import Sum, behind, norm_of, sum_of
from edgeattn.ops.base import Facts, Match, Miss, Tape
from edgeattn.ops.layers import Unlike, itemsize, parameter
from edgeattn.ops.layout import VIEWS, Axes, Dim, Frame, Step, apply, same
from edgeattn.ops.products import Softmax, is_of_two_tensors, name_of, product_of, softmaxes

NAME = "AttentionPool"
FURTHEST = 64  # nodes around a softmax among which the product is whose scores it takes
STEPS = (  # between product and softmax
    *VIEWS, "Add", "Sub", "Mul", "Div", "Where", "Neg", "Clip", "Expand", "Slice", "Relu", "TopK",
    "ScatterElements", "ScatterND",
)  # fmt: skip


@dataclass(frozen=True)
class _Pool:
    """The layouts of scores, items and result, each as it is and as the canonical node wants it; what they hold."""

    variant: str
    scores: tuple[Step, ...]
    x: tuple[Step, ...]
    y: tuple[Step, ...]
    shapes: tuple[tuple[Dim, ...], ...]  # of the canonical operands and result


def find(graph: ir.Graph) -> Iterator[Match | Miss]:
    """Every weighted sum of items whose weights are a softmax over these items."""
    known = {softmax.weights: softmax for softmax in softmaxes(graph)}
    for node in graph:
        total = sum_of(node)
        if total is None:
            continue
        for side in (0, 1):
            softmax, views = behind(total.values[side], known)
            if softmax is None and (norm := norm_of(total, side)) is not None:
                reason = f"the weights are divided by their norm in {name_of(norm)}, expected a softmax over the items"
                yield Miss(NAME, node, (norm, node), reason)
                break
            if softmax is None or parameter(total.values[1 - side]) is not None:
                continue
            if not node.op_type.startswith("Reduce") and _asks(softmax.scores):
                continue  # softmax attention, found or not
            try:
                found = _match(total, side, softmax, views)
            except Unlike as err:
                yield Miss(NAME, node, (softmax.anchor, node), str(err))
                break
            if found is not None:
                yield found
                break


def _asks(scores: ir.Value) -> bool:
    """Whether scores are a product of two computed tensors, queries and keys, but for a few steps."""
    waiting, seen = [scores], set[ir.Node]()
    while waiting and len(seen) < FURTHEST:
        node = walk.made_by(waiting.pop(0))
        if node is None or node in seen:
            continue
        if is_of_two_tensors(product_of(node)):
            return True
        seen.add(node)
        if node.op_type in STEPS:
            waiting += [item for item in node.inputs[: 1 if node.op_type in VIEWS else None] if item is not None]
    return False


# Which axis is which


@dataclass(frozen=True)
class _Reading:
    """A sum of items: what the axes of the softmax, of its weights and of the items are in one frame, by label."""

    frame: Frame
    total: Sum
    side: int  # of the weights
    softmax: Softmax
    scores: Axes
    weights: Mapping[str, tuple[int, ...]]
    named: Mapping[str, tuple[int, ...]]  # of the items' labels, too

    @property
    def x(self) -> ir.Value:
        """The items."""
        return self.total.values[1 - self.side]

    def sizes(self, *, items: bool) -> dict[str, Dim]:
        """The size of each axis of the items, or of the weights."""
        side = 1 - self.side if items else self.side
        return dict(zip(self.total.labels[side], walk.dims(self.total.values[side]) or (), strict=True))

    def merged(self, labels: Iterable[str]) -> tuple[int, ...]:
        """Several axes as one."""
        return tuple(leaf for label in labels for leaf in self.frame.resolve(self.named[label]))


def _match(total: Sum, side: int, softmax: Softmax, views: list[ir.Node]) -> Match | None:
    """The match; None where it is something else.

    Raises:
        Unlike: the sum is not over the items of the softmax, or these cannot be told.
    """
    reading = _read(total, side, softmax, views)
    over = reading.frame.resolve(reading.scores[softmax.axis])
    summed = {label for label, axis in reading.weights.items() if axis and label not in total.out}
    if not over or sorted(over) != sorted(reading.merged(summed)):
        if not over or total.node.op_type == "ReduceMean":
            return None
        raise Unlike(
            f"the softmax is over axis {softmax.axis} of {walk.dims(softmax.weights)}, "
            f"but {name_of(total.node)} sums over another one, expected the same"
        )
    _require_sum(reading, summed)
    pool = _laid_out(reading)
    return None if pool is None else Match(
        NAME,
        pool.variant,
        total.node,
        tuple(walk.between(total.node.outputs[0], {softmax.scores, reading.x})),
        total.node.outputs[0],
        partial(_operands, softmax.scores, reading.x, pool),
        {},
        _facts(pool, reading.x, total.node.op_type == "ReduceSum"),
        partial(_finished, reading.x, pool),
    )  # fmt: skip


def _read(total: Sum, side: int, softmax: Softmax, views: list[ir.Node]) -> _Reading:
    """Follow the weights through their views, which may cast them once, and name the axes of the items after theirs.

    Raises:
        Unlike: an axis is lost on the way.
    """
    frame = Frame()
    given = axes = tuple(frame.leaf(size) if size != 1 else () for size in walk.dims(softmax.weights) or ())
    casts = [node for node in views if node.op_type == "Cast" and node.inputs[0].dtype != node.outputs[0].dtype]  # type: ignore[union-attr]
    if len(casts) > 1:
        raise Unlike(f"the weights are cast {len(casts)} times, expected once at most")
    for node in reversed(views):
        after = axes if node in casts else _expanded(node, axes) or frame.through(node, axes, back=False)
        if after is None:
            raise Unlike(f"{name_of(node)} mixes the axes of the weights, or their sizes are not known")
        axes = after
    weights = dict(zip(total.labels[side], frame.resolved(axes), strict=True))
    named = {" ": (), **weights}
    for label, size in zip(total.labels[1 - side], walk.dims(total.values[1 - side]) or (), strict=True):
        if not named.get(label):
            named[label] = frame.leaf(size) if size != 1 else ()
    reading = _Reading(frame, total, side, softmax, given, weights, named)
    items = reading.sizes(items=True)
    for label, size in reading.sizes(items=False).items():
        if size != 1 and not weights[label] and not same(size, items.get(label)):
            raise Unlike(f"the weights are expanded to {size}, where the items are {items.get(label, 'none')}")
        if label in total.out and 1 not in (size, items.get(label, 1)) and not same(size, items[label]):
            frame.doubt = f"{name_of(total.node)} multiplies axes of sizes {size} and {items[label]}, maybe not equal"
    return reading


def _expanded(node: ir.Node, axes: Axes) -> Axes | None:
    """The axes after an Expand, which leaves those that it only repeats without a leaf."""
    before, after = walk.dims(node.inputs[0]), walk.dims(node.outputs[0])
    if node.op_type != "Expand" or before is None or after is None:
        return None
    whole = ((),) * (len(after) - len(before)) + axes
    sizes = (1,) * (len(after) - len(before)) + before
    return whole if all(one == 1 or same(one, other) for one, other in zip(sizes, after, strict=True)) else None


def _require_sum(reading: _Reading, summed: set[str]) -> None:
    """Require that each item is weighed by its own weight, that nothing else is summed, and that it is a sum.

    Raises:
        Unlike: it is not so.
    """
    total, weights, items = reading.total, reading.sizes(items=False), reading.sizes(items=True)
    others = [label for label in items if label not in total.out and label not in summed and items[label] != 1]
    if others:
        raise Unlike(f"{name_of(total.node)} also sums over an axis that has no weights, of size {items[others[0]]}")
    guaranteed = total.node.op_type in ("MatMul", "Gemm")
    for label in summed:
        if label not in items or not (guaranteed or same(weights[label], items[label])):
            raise Unlike(f"there are {weights[label]} weights and {items.get(label, 'no')} items, maybe not as many")
    if _averages(total.node):
        raise Unlike(f"{name_of(total.node)} averages the weighted items, expected their sum")


def _averages(node: ir.Node | None) -> bool:
    """Whether one of the reductions that end in a node is a mean."""
    if node is None or node.op_type not in ("ReduceSum", "ReduceMean"):
        return False
    return node.op_type == "ReduceMean" or _averages(walk.made_by(node.inputs[0]))


def _roles(reading: _Reading) -> tuple[str, list[str], list[str], list[str]] | None:
    """(variant, leading labels, items, columns) of the items as they lie; None where each is a single number.

    Raises:
        Unlike: they would have to be transposed, or an item has several weights.
    """
    sizes, out = reading.sizes(items=True), reading.total.out
    labels = [label for label in reading.total.labels[1 - reading.side] if sizes[label] != 1]
    weighed = [label for label in labels if reading.weights.get(label) and label in out]
    places = [place for place, label in enumerate(labels) if label not in out]
    before, items, wide = labels[: places[0]], labels[places[0] : places[-1] + 1], labels[places[-1] + 1 :]
    variant, lead = "items", before
    if not wide:
        split = max((place + 1 for place, label in enumerate(before) if label in weighed), default=0)
        variant, lead, wide = "map", before[:split], before[split:]
    if not wide and len(weighed) < 2 and set(before) <= set(weighed):
        return None
    shared = [label for label in (*items, *wide) if label in weighed] or (lead[-1:] if not wide else [])
    if shared:
        raise Unlike(
            f"the weights differ along an axis of the items, of size {sizes[shared[0]]}, expected one for each item"
        )
    if len(places) != len(items):
        raise Unlike(f"the items of {reading.x.name!r} lie on axes that are not neighbours")
    return variant, lead, items, wide


def _laid_out(reading: _Reading) -> _Pool | None:
    """The canonical layout that leaves the items as they lie; None where each is a single number.

    Raises:
        Unlike: there is none.
    """
    try:
        roles = _roles(reading)
    except Unlike:
        if (pool := _along(reading)) is not None:
            return pool
        raise
    if roles is None:
        return None
    variant, lead, *rest = roles
    frame, named, weights, sizes = reading.frame, reading.named, reading.weights, reading.sizes(items=True)
    items, wide = map(reading.merged, rest)
    many = reading.merged(label for label in reading.total.out if weights.get(label) and sizes.get(label, 1) == 1)
    ends = [(many, items), (items, wide), (many, wide)]
    if variant == "map":
        ends = [(one, other) for other, one in ends]
    leads = [tuple(weights.get(label, ()) for label in lead), *[tuple(named[label] for label in lead)] * 2]
    targets = [(*(axes or ((),)), *end) for axes, end in zip(leads, ends, strict=True)]
    x = tuple(named[label] if size != 1 else () for label, size in sizes.items())
    scores_to, x_to = frame.steps(reading.scores, targets[0]), frame.steps(x, targets[1])
    y_to = frame.steps(targets[2], tuple(named[label] for label in reading.total.out))
    if scores_to is None or x_to is None or y_to is None:
        raise Unlike(frame.doubt or "the sizes of its axes are not known")
    return _Pool(variant, scores_to, x_to, y_to, tuple(tuple(frame.size(axis) for axis in axes) for axes in targets))


def _along(reading: _Reading) -> _Pool | None:
    """Everything as it lies, for weights that differ along more axes than the items; None where items have several."""
    frame, weights, sizes = reading.frame, reading.weights, reading.sizes(items=True)
    labels = reading.total.labels[1 - reading.side]
    places = [place for place, label in enumerate(labels) if label not in reading.total.out and sizes[label] != 1]
    shared = any(size != 1 and not weights.get(label) for label, size in sizes.items())
    if (
        not shared
        or len(places) != 1
        or any(axis and sizes.get(label, 1) == 1 for label, axis in weights.items())
        or frame.doubt
    ):
        return None
    (place,) = places
    x = tuple(reading.named[label] if sizes[label] != 1 else () for label in labels)
    scores, y = tuple(weights.get(label, ()) for label in labels), (*x[:place], *x[place + 1 :])
    scores_to = frame.steps(reading.scores, scores)
    y_to = frame.steps(y, tuple(reading.named[label] for label in reading.total.out))
    if scores_to is None or y_to is None:
        return None
    shapes = tuple(tuple(frame.size(axis) for axis in axes) for axes in (scores, x, y))
    return _Pool(f"along-{len(labels) - place}", scores_to, (), y_to, shapes)


# The canonical node


def _operands(scores: ir.Value, x: ir.Value, pool: _Pool, tape: Tape) -> list[ir.Value]:
    return [apply(tape, scores, pool.scores), apply(tape, x, pool.x)]


def _finished(x: ir.Value, pool: _Pool, tape: Tape, value: ir.Value) -> ir.Value:
    """The result as it was; the node's own is told its sizes, for the searches that come after."""
    value.type, value.shape = x.type, ir.Shape(pool.shapes[2])
    return apply(tape, value, pool.y)


def _facts(pool: _Pool, x: ir.Value, product: bool) -> Facts:
    batch, many, items, wide, *lead = _counts(pool)
    named = {"batch": batch, "queries": many, "items": items, "channels": wide}
    sizes: dict[str, int | str] = {name: "?" if size is None else size for name, size in named.items()}
    known = [size for size in (many, items, wide, *lead) if isinstance(size, int)]
    if len(known) < 3 + len(lead):
        return Facts(sizes)
    m, n, c, *others = known
    groups, width, shared = prod(others), itemsize(x), 1 if pool.variant in ("items", "map") else m
    ends, between = m * n + shared * n * c + m * c, 2 * m * n + (2 * m * n * c if product else 0)
    return Facts(
        sizes,
        flops=groups * (5 * m * n + 2 * m * n * c),
        bytes_decomposed=groups * width * (ends + between),
        bytes_fused=groups * width * ends,
    )


def _counts(pool: _Pool) -> tuple[Dim, ...]:
    """Batch, sums for each sample or group, items, numbers that share weights, and how many groups there are."""
    scores, x, _ = pool.shapes
    if pool.variant == "items":
        return x[0], *scores[-2:], x[-1], *x[1:-2]
    if pool.variant == "map":
        return x[0], *scores[:-3:-1], x[-2], *x[1:-2]
    place = len(x) - int(pool.variant.removeprefix("along-"))
    pairs = [pair for axis, pair in enumerate(zip(scores, x, strict=True)) if axis != place]
    batch, own = (pairs[0][1], pairs[1:]) if place else (1, pairs)
    apart = [size for weight, size in own if weight != 1]
    shared = [size for weight, size in own if weight == 1]
    return batch, _product(apart), x[place], _product(shared)


def _product(sizes: Sequence[Dim]) -> Dim:
    known = [size for size in sizes if isinstance(size, int)]
    return prod(known) if len(known) == len(sizes) else None
