"""Which axis of a tensor is which, through transposes and reshapes, and the steps from one layout to another.

A search follows tensors of one product through whatever views lie between. `Frame` names the indivisible parts of
their axes by numbers ("leaves"), each with its size, so an axis is the tuple of leaves it was merged from: () for a
size of one that only broadcasts. A view moves, splits and merges leaves and never changes what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from edgeattn.ops.base import Tape
from edgeattn.ops.walk import axes_of, constant, dims, ints, made_by, users

Dim = int | str | None
Axes = tuple[tuple[int, ...], ...]
Step = tuple[str, tuple[int, ...]]  # an operator and its perm, axes or shape

VIEWS = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout")


def same(one: Dim, other: Dim) -> bool:
    """Whether two sizes are known to be equal."""
    return one is not None and one == other


class Frame:
    """The leaves of one search; splitting one splits it everywhere."""

    def __init__(self) -> None:
        self._sizes: list[Dim] = []
        self._parts: dict[int, tuple[int, ...]] = {}
        self.doubt = ""  # which sizes are only equal if none is one: then tensors are transposed, never reshaped

    def __len__(self) -> int:
        return len(self._sizes)

    def copy(self) -> Frame:
        """One to try something with."""
        other = Frame()
        other._sizes, other._parts, other.doubt = list(self._sizes), dict(self._parts), self.doubt
        return other

    def leaf(self, size: Dim) -> tuple[int, ...]:
        """A new axis, whole."""
        self._sizes.append(size)
        return (len(self._sizes) - 1,)

    def split(self, leaf: int, sizes: Sequence[Dim]) -> tuple[int, ...]:
        """Split a leaf into new ones of these sizes, outermost first."""
        self._parts[leaf] = tuple(part for size in sizes for part in self.leaf(size))
        return self._parts[leaf]

    def resolve(self, axis: Sequence[int]) -> tuple[int, ...]:
        """An axis in terms of leaves that are not split."""
        parts = (self.resolve(self._parts[leaf]) if leaf in self._parts else (leaf,) for leaf in axis)
        return tuple(leaf for part in parts for leaf in part)

    def resolved(self, axes: Axes) -> Axes:
        """Every axis in terms of leaves that are not split."""
        return tuple(self.resolve(axis) for axis in axes)

    def size(self, axis: Sequence[int]) -> Dim:
        """The size of an axis: a number, a name if it is one leaf that has one, else None."""
        sizes = [self._sizes[leaf] if leaf >= 0 else 1 for leaf in self.resolve(axis)]
        if all(isinstance(size, int) for size in sizes):
            return prod(size for size in sizes if isinstance(size, int))
        named = [size for size in sizes if size != 1]
        return named[0] if len(named) == 1 else None

    def through(self, node: ir.Node, axes: Axes, *, back: bool) -> Axes | None:
        """The axes of a view's input from those of its output (`back`), or the other way round; None if unclear."""
        source, result = dims(node.inputs[0]), dims(node.outputs[0])
        if source is None or result is None or len(axes) != len(result if back else source):
            return None
        if node.op_type not in ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            return axes if _changes_nothing(node) else None
        if node.op_type == "Transpose":
            perm = ints(node, "perm") or tuple(reversed(range(len(source))))
            return tuple(axes[perm.index(axis)] for axis in range(len(perm))) if back else permuted(axes, perm)
        if node.op_type in ("Squeeze", "Unsqueeze"):
            ones = axes_of(node, max(len(source), len(result)))
            if ones is not None and len(ones) == abs(len(source) - len(result)):
                if (node.op_type == "Squeeze") == back:
                    rest = iter(axes)
                    return tuple(() if axis in ones else next(rest) for axis in range(len(axes) + len(ones)))
                return tuple(axis for place, axis in enumerate(axes) if place not in ones)
        return self._reshaped(axes, result, source) if back else self._reshaped(axes, source, result)

    def _reshaped(self, axes: Axes, before: Sequence[Dim], after: Sequence[Dim]) -> Axes | None:
        groups = regrouped(before, after)
        if groups is None:
            return None
        out: list[tuple[int, ...]] = [()] * len(after)
        for olds, news in groups:
            leaves = self.resolve([leaf for old in olds for leaf in axes[old]])
            if len(leaves) not in (1, len(news)):
                news = [new for new in news if after[new] != 1]  # noqa: PLW2901
            if len(news) == 1:
                out[news[0]] = leaves
            elif news and not self._dealt(leaves, [after[new] for new in news], out, news):
                return None
        return tuple(out)

    def _dealt(
        self, leaves: tuple[int, ...], sizes: list[Dim], out: list[tuple[int, ...]], places: Sequence[int]
    ) -> bool:
        """Distribute the leaves of merged axes over several new ones, splitting those that are several."""
        if len(leaves) == 1:
            leaves = self.split(leaves[0], sizes)
        else:
            leaves = self._cut(leaves, sizes) if len(leaves) < len(sizes) else leaves
            if len(leaves) != len(sizes) or not all(
                same(self._sizes[leaf], size) for leaf, size in zip(leaves[1:], sizes[1:], strict=True)
            ):
                return False
        for leaf, place in zip(leaves, places, strict=True):
            out[place] = (leaf,)
        return True

    def _cut(self, leaves: tuple[int, ...], sizes: Sequence[Dim]) -> tuple[int, ...]:
        """As many leaves as sizes, each split that several sizes make up; the same leaves where that is not certain."""
        wholes, rest = (
            [size for size in row if isinstance(size, int)] for row in ([self._sizes[leaf] for leaf in leaves], sizes)
        )
        parts: list[list[int]] = []
        for whole in wholes if len(wholes) == len(leaves) and len(rest) == len(sizes) else ():
            part: list[int] = []
            while rest and (not part or prod(part) < whole):
                part.append(rest.pop(0))
            if prod(part) != whole:
                return leaves
            parts.append(part)
        if rest or not parts:
            return leaves
        pairs = zip(leaves, parts, strict=True)
        return tuple(new for leaf, part in pairs for new in (self.split(leaf, part) if len(part) > 1 else (leaf,)))

    def steps(self, source: Axes, target: Axes) -> tuple[Step, ...] | None:
        """The nodes that bring a tensor from one layout to another with the same leaves; None if sizes are missing."""
        source, target = _paired(self.resolved(source), self.resolved(target))
        order = [leaf for axis in target for leaf in axis]
        if sorted(order) != sorted(leaf for axis in source for leaf in axis):
            return None
        units = tuple(unit for axis in source for unit in _runs(axis, target))
        wanted = tuple(sorted(units, key=lambda unit: order.index(unit[0])))
        turn = tuple(units.index(unit) for unit in wanted)
        made = (self._regroup(source, units), ("Transpose", turn), self._regroup(wanted, target))
        if any(step is None for step in made):
            return None
        still = (("Identity", ()), ("Transpose", tuple(range(len(turn)))))
        return tuple(step for step in made if step is not None and step not in still)

    def _regroup(self, source: Axes, target: Axes) -> Step | None:
        """One node that merges or splits neighbours; the order of the leaves stays."""
        if source == target:
            return "Identity", ()
        if tuple(axis for axis in source if axis) == tuple(axis for axis in target if axis):
            if len(source) < len(target) and all(source):
                return "Unsqueeze", tuple(place for place, axis in enumerate(target) if not axis)
            if len(source) > len(target) and all(target):
                return "Squeeze", tuple(place for place, axis in enumerate(source) if not axis)
        shape = [self.size(axis) for axis in target]
        known = [size if isinstance(size, int) else None for size in shape]
        if known.count(None) > 1:
            for place, (old, new) in enumerate(zip(source, target, strict=False)):
                if known[place] is None and old == new:
                    known[place] = 0
        if known.count(None) > 1 or self.doubt:
            return None
        return "Reshape", tuple(-1 if size is None else size for size in known)


def regrouped(before: Sequence[Dim], after: Sequence[Dim]) -> list[tuple[list[int], list[int]]] | None:
    """Which axes of a reshape hold the same elements: groups of old and new places; None if the sizes disagree.

    Sizes are compared from the last axis on; everything left of one that is not known falls into one group,
    except for what is equal from the first axis on.
    """
    groups: list[tuple[list[int], list[int]]] = []
    old, new = list(range(len(before))), list(range(len(after)))
    while old or new:
        one_old, one_new = bool(old) and before[old[-1]] == 1, bool(new) and after[new[-1]] == 1
        if old and new and (same(before[old[-1]], after[new[-1]])):
            groups.append(([old.pop()], [new.pop()]))
        elif one_old or one_new:
            groups.append(([old.pop()], []) if one_old else ([], [new.pop()]))
        elif not old or not new:
            return None
        else:
            groups.append(_product_group(before, after, old, new))
    return groups


def _product_group(
    before: Sequence[Dim], after: Sequence[Dim], old: list[int], new: list[int]
) -> tuple[list[int], list[int]]:
    """Take axes from the right until both products agree, or all that differ."""
    olds, news = [old.pop()], [new.pop()]
    while old or new:
        left, right = [before[axis] for axis in olds], [after[axis] for axis in news]
        if all(isinstance(size, int) for size in (*left, *right)):
            one, other = prod(int(size or 0) for size in left), prod(int(size or 0) for size in right)
            if one == other:
                break
            if one < other and old:
                olds.insert(0, old.pop())
                continue
            if one > other and new:
                news.insert(0, new.pop())
                continue
        kept = 0
        while kept < min(len(old), len(new)) and same(before[old[kept]], after[new[kept]]):
            kept += 1
        olds[:0], news[:0] = old[kept:], new[kept:]
        del old[kept:], new[kept:]
        break
    return olds, news


def permuted(axes: Sequence[tuple[int, ...]], perm: Sequence[int]) -> Axes:
    """Axes in another order."""
    return tuple(axes[axis] for axis in perm)


def apply(tape: Tape, value: ir.Value, steps: Sequence[Step]) -> ir.Value:
    """Put the nodes on a tape; a transpose or reshape right before them is taken into them."""
    for kind, numbers in steps:
        node = made_by(value, kind)
        if kind == "Transpose":
            if node is not None and (perm := ints(node, "perm")) is not None and node.inputs[0] is not None:
                value, numbers = node.inputs[0], tuple(perm[axis] for axis in numbers)  # noqa: PLW2901
            if numbers != tuple(range(len(numbers))):
                value = _shaped(tape.op(kind, [value], perm=numbers), value, kind, numbers)
            continue
        if kind == "Reshape" and node is not None and 0 not in numbers and node.inputs[0] is not None:
            value = node.inputs[0]
        value = _shaped(tape.op(kind, [value, tape.constant(np.array(numbers, np.int64))]), value, kind, numbers)
    return value


def _shaped(value: ir.Value, source: ir.Value, kind: str, numbers: tuple[int, ...]) -> ir.Value:
    """A view with its type and sizes, for the searches that come after."""
    before = dims(source)
    if before is None:
        return value
    if kind == "Transpose":
        after = [before[axis] for axis in numbers]
    elif kind == "Squeeze":
        after = [size for axis, size in enumerate(before) if axis not in numbers]
    elif kind == "Unsqueeze":
        rest = iter(before)
        after = [1 if axis in numbers else next(rest) for axis in range(len(before) + len(numbers))]
    else:
        after = [before[axis] if size == 0 else size for axis, size in enumerate(numbers)]
        known = all(isinstance(size, int) for size in (*before, *after))
        whole, others = (
            prod(size for size in sizes if isinstance(size, int) and size != -1) for sizes in (before, after)
        )
        after = [size if size != -1 else whole // others if known and others else None for size in after]
    value.type, value.shape = source.type, ir.Shape(after)
    return value


def _changes_nothing(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return node.inputs[0] is not None and node.inputs[0].dtype == node.outputs[0].dtype is not None
    if node.op_type == "Dropout":
        training = constant(node.inputs[2]) if len(node.inputs) > 2 else np.array(False)
        return training is not None and not training.any() and not (len(node.outputs) > 1 and users(node.outputs[1]))
    return node.op_type == "Identity"


def _runs(axis: tuple[int, ...], target: Axes) -> Iterator[tuple[int, ...]]:
    """Cut an axis where its leaves part in the target; a broadcasting one stays out."""
    run: tuple[int, ...] = ()
    for leaf in axis:
        if run and any((*run[-1:], leaf) == other[i : i + 2] for other in target for i in range(len(other))):
            run += (leaf,)
        else:
            if run:
                yield run
            run = (leaf,)
    if run:
        yield run


def _paired(source: Axes, target: Axes) -> tuple[Axes, Axes]:
    """Let axes of size one in both, which have no leaf, count as the same ones: they need not go and come back."""
    count = min(source.count(()), target.count(()))

    def named(axes: Axes) -> Axes:
        free = iter([(-1 - number,) for number in range(count)])
        return tuple(axis or next(free, ()) for axis in axes)

    return named(source), named(target)
