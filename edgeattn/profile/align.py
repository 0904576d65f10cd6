"""Which layers of two engines compute the same, whatever their backends call them, and why one takes longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeattn.profile.findings import MOVING
from edgeattn.profile.report import Block, Interval, Layer, ProfileReport, grouped

__all__ = ["Difference", "differences"]


@dataclass(frozen=True)
class Difference:
    """Layers of an engine and of its baseline that compute the same, and what they take: sums of medians.

    `by` says how they were found to belong together: `block` and `nodes`, by the nodes of the graph; `module`, by that
    of PyTorch; `kind`, what neither is known of. `interval_ms` bounds the difference, engine minus baseline, by what is
    known of each median. `why` says in words what else is different.
    """

    name: str
    by: str
    layers: tuple[str, ...]
    baseline_layers: tuple[str, ...]
    median_ms: float
    baseline_ms: float
    interval_ms: Interval
    why: tuple[str, ...]

    @property
    def difference_ms(self) -> float:
        """What the engine takes longer; below zero where it is faster."""
        return self.median_ms - self.baseline_ms

    @property
    def clear(self) -> bool:
        """Whether there is a difference beyond the noise."""
        low, high = self.interval_ms
        return low > 0 or high < 0

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields."""
        return {**asdict(self), "difference_ms": self.difference_ms, "clear": self.clear}


Pair = tuple[list[Layer], list[Layer]]  # of the engine, and of its baseline


def differences(engine: ProfileReport, baseline: ProfileReport) -> tuple[Difference, ...]:
    """Every layer of both in one row with those that compute the same; the largest differences first."""
    joined, rest = _joined(engine.layers, baseline.layers, _nodes)
    found = [_difference(*_named(*pair), pair, engine, baseline) for pair in joined]
    joined, rest = _joined(*rest, lambda layer: [layer.module] if layer.module else [])
    found += [_difference(pair[0][0].module, "module", pair, engine, baseline) for pair in joined]
    for kind in dict.fromkeys(layer.kind for side in rest for layer in side):
        own, other = ([layer for layer in side if layer.kind == kind] for side in rest)
        found.append(_difference(kind, "kind", (own, other), engine, baseline))
    return tuple(sorted(found, key=lambda item: -abs(item.difference_ms)))


def _nodes(layer: Layer) -> list[str]:
    """What is known of what a layer computes. The inside of an attention has other nodes in each backend."""
    return [*(f"node {name}" for name in layer.nodes), *([f"block {layer.attention}"] if layer.attention else [])]


def _joined(
    own: Sequence[Layer], other: Sequence[Layer], keys: Callable[[Layer], Sequence[str]]
) -> tuple[list[Pair], Pair]:
    """Groups that are connected by keys in common, with layers of both; and the layers of all others."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for layer in (*own, *other):
        for key in keys(layer):
            parent[root(key)] = root(keys(layer)[0])
    groups: dict[str, Pair] = {}
    for side, layers in enumerate((own, other)):
        for layer in layers:
            if known := keys(layer):
                groups.setdefault(root(known[0]), ([], []))[side].append(layer)
    joined = [pair for pair in groups.values() if all(pair)]
    taken = {id(layer) for pair in joined for side in pair for layer in side}
    left, other_left = ([layer for layer in side if id(layer) not in taken] for side in (own, other))
    return joined, (left, other_left)


def _named(own: Sequence[Layer], other: Sequence[Layer]) -> tuple[str, str]:
    """What a group is called, and by what: its block, or the engine's slowest layer in it and where that is."""
    blocks = list(dict.fromkeys(layer.attention for layer in (*own, *other) if layer.attention))
    if blocks:
        return blocks[0] + _more(blocks), "block"
    slowest = max(own, key=lambda layer: layer.median_ms)
    return f"{slowest.name}{_more(own)}{f' ({slowest.module})' if slowest.module else ''}", "nodes"


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def _difference(name: str, by: str, pair: Pair, engine: ProfileReport, baseline: ProfileReport) -> Difference:
    own, other = pair
    low, high = _sum_interval(own)
    other_low, other_high = _sum_interval(other)
    median, other_median = (sum(layer.median_ms for layer in side) for side in pair)
    # Errors of the two are independent: they add up like the sides of a right angle.
    middle = median - other_median
    below = ((median - low) ** 2 + (other_high - other_median) ** 2) ** 0.5
    above = ((high - median) ** 2 + (other_median - other_low) ** 2) ** 0.5
    return Difference(
        name,
        by,
        tuple(layer.name for layer in own),
        tuple(layer.name for layer in other),
        median,
        other_median,
        (middle - below, middle + above),
        tuple(_reasons(own, other, engine, baseline)),
    )


def _sum_interval(layers: Sequence[Layer]) -> Interval:
    """Bounds of a sum: what disturbs one layer of a run disturbs its neighbours, so that their errors just add up."""
    return sum(layer.interval_ms[0] for layer in layers), sum(layer.interval_ms[1] for layer in layers)


def _reasons(
    own: Sequence[Layer], other: Sequence[Layer], engine: ProfileReport, baseline: ProfileReport
) -> Iterator[str]:
    """What of two groups is different: what runs them, precision, kernels, fusion, reformatting."""
    if not own or not other:
        yield "only in this engine" if own else "only in the baseline"
        return
    for block, other_block in _blocks(own, other, engine, baseline):
        if block.plan != other_block.plan:
            yield f"{block.name} is run by {block.plan}, in the baseline by {other_block.plan}"
    for what in ("precision", "kernel"):
        main, other_main = _mainly(own, what), _mainly(other, what)
        comparable = what == "precision" or engine.backend == baseline.backend
        if comparable and main and other_main and main != other_main:
            yield f"{what} {main} instead of {other_main}"
    moving, other_moving = _moving(own), _moving(other)
    if moving != other_moving:
        verb = "moves or converts" if moving == 1 else "move or convert"
        yield f"{_layers(moving)} that only {verb} values, in the baseline {other_moving or 'none'}"
    count, other_count = len(own) - moving, len(other) - other_moving
    if count != other_count:
        yield f"{_layers(count)} instead of {other_count}: {'less' if count > other_count else 'more'} is fused"


def _layers(count: int) -> str:
    return f"{count or 'no'} layer{'' if count == 1 else 's'}"


def _moving(layers: Sequence[Layer]) -> int:
    return sum(MOVING.search(layer.kind) is not None for layer in layers)


def _blocks(
    own: Sequence[Layer], other: Sequence[Layer], engine: ProfileReport, baseline: ProfileReport
) -> Iterator[tuple[Block, Block]]:
    known, before = ({block.name: block for block in report.blocks} for report in (engine, baseline))
    for name in dict.fromkeys(layer.attention for layer in (*own, *other)):
        if name in known and name in before:
            yield known[name], before[name]


def _mainly(layers: Sequence[Layer], what: str) -> str:
    """What most of the time goes to."""
    return next((group.name for group in grouped(layers, what)), "")
