"""The parts of a network that a search gives a precision of their own: its stages and its attention blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir

from edgeattn.graph import Graph, modules_around
from edgeattn.ops.base import DOMAIN

MOST = 12
BLOCK = 6  # nodes: an attention and its projections stay together
COMPUTING = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")


@dataclass(frozen=True)
class _Part:
    """Some nodes that follow each other: of each the modules around it, from the outermost in, and its own name."""

    name: str
    leaves: tuple[tuple[str, ...], ...]


def groups(fused: Graph, most: int = MOST) -> dict[str, tuple[str, ...]]:
    """Divide what computes in a fused graph into at most `most` parts: by its modules, in pieces where it tells none.

    The largest part is divided into its children again and again; neighbours share a part where there are too many.

    Returns:
        The names of nodes (convolutions, products, attentions) by the name of their part, in the order of the graph.
    """
    computing = [node for node in fused.model.graph if node.domain == DOMAIN or node.op_type in COMPUTING]
    attentions = {node.name for node in computing if node.domain == DOMAIN}
    parts = [_Part("all", tuple(map(_leaf, computing)))]
    while True:
        room = most - len(parts) + 1
        divided = {part: [part] if _is_block(part, attentions) else _children(part, room) for part in parts}
        largest = max(
            (part for part in parts if len(divided[part]) > 1), key=lambda part: len(part.leaves), default=None
        )
        if largest is None:
            break
        parts = list(chain.from_iterable(divided[part] if part is largest else [part] for part in parts))
    return {part.name: tuple(leaf[-1] for leaf in part.leaves) for part in parts if part.leaves}


def _leaf(node: ir.Node) -> tuple[str, ...]:
    name = node.name or ""
    scopes = name.strip("/").split("/")[:-1]  # as the TorchScript exporter names them
    around = modules_around(node) or [".".join(scopes[: depth + 1]) for depth in range(len(scopes))]
    return (*around, name)


def _is_block(part: _Part, attentions: Collection[str | None]) -> bool:
    return len(part.leaves) <= BLOCK and any(leaf[-1] in attentions for leaf in part.leaves)


def _children(part: _Part, most: int) -> list[_Part]:
    """A part by the first module in which its nodes differ, neighbours joined to at most `most` of like size."""
    levels = [len(set(names)) > 1 for names in zip(*part.leaves, strict=False)]
    if most < 2 or True not in levels:
        return [part]
    depth = levels.index(True)
    children: dict[str, list[tuple[str, ...]]] = {}
    for leaf in part.leaves:
        children.setdefault(leaf[depth], []).append(leaf)
    return list(_joined([_Part(name, tuple(leaves)) for name, leaves in children.items()], most))


def _joined(parts: Sequence[_Part], most: int) -> Iterator[_Part]:
    """Neighbours together where there are more than `most`, each part about as large as the next."""
    left, room = sum(len(part.leaves) for part in parts), most
    joined: list[_Part] = []
    for place, part in enumerate(parts):
        joined.append(part)
        size = sum(len(item.leaves) for item in joined)
        if size >= left / room or len(parts) - place <= room:
            name = part.name if len(joined) == 1 else f"{joined[0].name} to {part.name}"
            yield _Part(name, tuple(chain.from_iterable(item.leaves for item in joined)))
            left, room, joined = left - size, room - 1, []
