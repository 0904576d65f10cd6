"""Where a graph can be cut: between two nodes, where all that crosses are values that the original has as well."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

import onnx_ir as ir

from edgeattn.graph import Graph, modules_around
from edgeattn.lowering import ATTENTION

FEWEST = 4  # nodes: shorter stretches are not cut before something in them fails
SIZES = ("Constant", "Shape", "Size")


@dataclass(frozen=True)
class Section:
    """The steps `first` to `last`, without it, of a layout: what they read of others, and what others read of them."""

    first: int
    last: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __len__(self) -> int:
        return self.last - self.first


class Layout:
    """A graph as steps in a row, its attentions expanded, and where between them it can be cut.

    Nodes that compute with sizes and constants only are no steps: whatever section needs them computes them itself.
    `cuts` are the numbers of steps before which it can be cut.
    """

    def __init__(self, graph: Graph, known: Collection[str]) -> None:
        self.steps: list[ir.Node] = []
        self._made: dict[str, int] = {}
        self._reads: list[frozenset[str]] = []
        self._last_read: dict[str, int] = {}
        self._lay(graph.model.graph)
        outputs = [value.name or "" for value in graph.model.graph.outputs]
        self._outputs = frozenset(outputs)
        for place, names in enumerate(self._reads):
            self._last_read.update(dict.fromkeys(names, place))
        self._last_read.update(dict.fromkeys(outputs, len(self.steps)))
        self.widths = self._crossing(known)
        self.cuts = sorted(self.widths)

    def _lay(self, graph: ir.Graph) -> None:
        roots: dict[str, frozenset[str]] = {}  # what a size or a constant comes from
        for node in graph:
            read: set[str] = set()
            idle = True
            for value in (*node.inputs, *_captured(node)):
                if value is None or value.is_initializer():
                    continue
                name = value.name or ""
                read |= roots.get(name, {name})
                idle = idle and name in roots
            if node.op_type in SIZES or (idle and node.inputs):
                roots.update(dict.fromkeys((value.name or "" for value in node.outputs), frozenset(read)))
                continue
            self._made.update(dict.fromkeys((value.name or "" for value in node.outputs), len(self.steps)))
            self.steps.append(node)
            self._reads.append(frozenset(read))

    def _crossing(self, known: Collection[str]) -> dict[int, int]:
        """How many values cross each cut that can be made."""
        opened: list[list[str]] = [[] for _ in range(len(self.steps) + 1)]
        closed: list[list[str]] = [[] for _ in range(len(self.steps) + 2)]
        for name, made in self._made.items():
            if (last := self._last_read.get(name, -1)) > made:
                opened[made + 1].append(name)
                closed[last + 1].append(name)
        crossing: set[str] = set()
        widths = {}
        for place in range(len(self.steps) + 1):
            crossing |= set(opened[place])
            crossing -= set(closed[place])
            if place in (0, len(self.steps)) or crossing <= set(known):
                widths[place] = len(crossing)
        return widths

    def section(self, first: int, last: int) -> Section:
        """The steps from one number to another, without the latter."""
        read = frozenset().union(*self._reads[first:last])
        inputs = sorted(name for name in read if not first <= self._made.get(name, -1) < last)
        outputs = [
            value.name or ""
            for node in self.steps[first:last]
            for value in node.outputs
            if value.name and self._last_read.get(value.name, -1) >= last
        ]
        return Section(first, last, tuple(inputs), tuple(outputs))

    def attentions(self) -> dict[str, tuple[int, int]]:
        """The first step of each attention, and the one after its last."""
        found: dict[str, tuple[int, int]] = {}
        for place, node in enumerate(self.steps):
            if name := node.metadata_props.get(ATTENTION):
                found[name] = (found.get(name, (place, 0))[0], place + 1)
        return found

    def sections(self, most: int) -> list[Section]:
        """All steps in at most `most` sections: each attention, and what lies between them, in pieces where it is long.

        A long piece is cut near its middle where the fewest values cross.
        """
        edges = {0, len(self.steps)}
        blocks = set()
        for first, last in self.attentions().values():
            low, high = self.cuts[bisect_right(self.cuts, first) - 1], self.cuts[bisect_left(self.cuts, last)]
            edges |= {low, high}
            blocks.add((low, high))
        while len(edges) <= most:
            ordered = sorted(edges)
            pairs = [pair for pair in pairwise(ordered) if pair not in blocks]
            middles = {pair: self.middle(*pair) for pair in pairs if pair[1] - pair[0] >= 2 * FEWEST}
            longest = max(
                (pair for pair, middle in middles.items() if middle),
                key=lambda pair: pair[1] - pair[0],
                default=None,
            )
            if longest is None:
                break
            edges.add(middles[longest] or 0)
        ordered = sorted(edges)
        stride = max(1, -(-(len(ordered) - 1) // most))
        kept = [*ordered[:-1:stride], ordered[-1]]
        return [self.section(*pair) for pair in pairwise(kept)]

    def middle(self, first: int, last: int) -> int | None:
        """Where to cut a stretch of steps: in its middle third, or else anywhere, with the fewest values crossing."""
        inside = self.cuts[bisect_right(self.cuts, first) : bisect_left(self.cuts, last)]
        third = (last - first) / 3
        central = [cut for cut in inside if first + third <= cut <= last - third] or inside
        return min(central, key=lambda cut: (self.widths[cut], abs(2 * cut - first - last)), default=None)

    def name(self, section: Section) -> str:
        """In words: the attention that a section is, or its first and last part and what module is around both."""
        nodes = self.steps[section.first : section.last]
        attentions = list(dict.fromkeys(filter(None, (node.metadata_props.get(ATTENTION) for node in nodes))))
        if len(attentions) == 1 and all(ATTENTION in node.metadata_props for node in nodes):
            return attentions[0]
        around = common_modules(nodes)
        ends = dict.fromkeys(_part(node, len(around)) for node in (nodes[0], nodes[-1]))
        told = not around or all(end.startswith(around[-1]) for end in ends)
        return " to ".join(ends) if told else f"{around[-1]}: {' to '.join(ends)}"


def common_modules(nodes: Sequence[ir.Node]) -> list[str]:
    """The modules that all of some nodes are in, from the outermost in."""
    levels = zip(*map(modules_around, nodes), strict=False)
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]


def _part(node: ir.Node, depth: int) -> str:
    """What a node belongs to among the parts of a module at some depth: an attention, another module, or itself."""
    return node.metadata_props.get(ATTENTION) or next(iter(modules_around(node)[depth:]), label(node))


def label(node: ir.Node) -> str:
    """A step's name: the attention's that it is in, or its own."""
    return node.metadata_props.get(ATTENTION) or node.name or node.op_type


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """What the bodies of control flow read from outside of them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _free(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield from _free(body)


def _free(body: ir.Graph) -> Iterator[ir.Value]:
    own = {*body.inputs, *body.initializers.values(), *(value for node in body for value in node.outputs)}
    for node in body:
        yield from (value for value in (*node.inputs, *_captured(node)) if value is not None and value not in own)
    yield from (value for value in body.outputs if value not in own)
