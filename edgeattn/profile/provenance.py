"""Where an engine's layers come from: nodes of the graph it was built from, attention blocks, PyTorch modules.

A sidecar carries what that takes, so that an engine still tells on another machine: `record` makes it at build time.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, get_type_hints

from edgeattn.backends.base import RawLayer
from edgeattn.costs import node_flops
from edgeattn.errors import InputError, quote
from edgeattn.graph import Graph, module_of
from edgeattn.inspect import AttentionInfo
from edgeattn.lowering import ATTENTION

__all__ = ["Node", "Origin", "PlannedBlock", "Provenance", "origins", "read", "record"]

MAX_BYTES = 2**26  # of the nodes, unpacked


@dataclass(frozen=True)
class Node:
    """A node of the graph that a backend was given: `next` is the place of the first node that reads it.

    `attention` is the name of the block that it is part of, `flops` are of the graph's own batch, or of one sample
    where that is dynamic. -1 and the empty string say none.
    """

    name: str
    module: str
    attention: str
    next: int
    flops: int


@dataclass(frozen=True)
class PlannedBlock:
    """An attention block as the build planned it: `plan` says what runs it and `why` why nothing better does.

    Costs are of one sample, or of the graph's fixed batch; None where unknown.
    """

    name: str
    op: str
    plan: str
    why: str
    flops: int | None
    bytes_decomposed: int | None
    bytes_fused: int | None


Kept = TypeVar("Kept", Node, PlannedBlock)


@dataclass(frozen=True)
class Provenance:
    """What a sidecar knows: the nodes in order, the blocks, and whether the blocks' costs are of one sample."""

    nodes: tuple[Node, ...] = ()
    blocks: tuple[PlannedBlock, ...] = ()
    per_sample: bool = False


@dataclass(frozen=True)
class Origin:
    """What one layer computes."""

    nodes: tuple[str, ...] = ()
    attention: str = ""
    module: str = ""
    flops: int | None = None


def record(source: Graph, graph: Graph, attention: Sequence[AttentionInfo], backend: str) -> dict[str, Any]:
    """What a sidecar keeps: a mapping a block, to be read, and the fields of all nodes, packed.

    Args:
        source: the graph before anything was done to it; where its batch is dynamic, costs of blocks are of one sample.
        graph: as the backend was given it.
        attention: the blocks in it.
        backend: its name.
    """
    nodes = list(graph.model.graph)
    places = {node: place for place, node in enumerate(nodes)}
    blocks = {item.found.name for item in attention}
    rows = []
    for node, flops in zip(nodes, node_flops(graph, {}), strict=True):
        readers = [places[user] for value in node.outputs for user, _ in value.uses() if user in places]
        block = node.metadata_props.get(ATTENTION, "")
        costs = (min(readers, default=-1), -1 if flops is None else flops)
        rows.append((node.name, module_of(node), block if block in blocks else "", *costs))
    return {
        "per_sample": any(isinstance(spec.shape[0], str) for spec in source.inputs if spec.shape),
        "attention": [asdict(_planned(item, backend)) for item in attention],
        "nodes": _packed(rows),
    }


def _packed(rows: Sequence[object]) -> str:
    return base64.b64encode(zlib.compress(json.dumps(rows, separators=(",", ":")).encode())).decode()


def _unpacked(text: str) -> list[Any]:
    """Raises ValueError or zlib.error where nothing was packed, or more than any graph has."""
    inflated = zlib.decompressobj()
    rows = json.loads(inflated.decompress(base64.b64decode(text), MAX_BYTES))
    if not isinstance(rows, list):
        raise ValueError("no list of nodes")
    return rows


def _planned(item: AttentionInfo, backend: str) -> PlannedBlock:
    facts, plan = item.found.facts, item.plans[backend]
    costs = (facts.flops, facts.bytes_decomposed, facts.bytes_fused)
    flops, decomposed, fused = (None if cost is None else round(cost) for cost in costs)
    return PlannedBlock(item.found.name, item.found.op, plan.runs, plan.why, flops, decomposed, fused)


def read(kept: Mapping[str, Any], engine: str) -> Provenance:
    """Read what `record` wrote; an older sidecar has neither nodes nor blocks.

    Raises:
        InputError: the sidecar is damaged.
    """
    try:
        blocks = _checked([PlannedBlock(**item) for item in kept.get("attention", [])])
        nodes = _checked([Node(*row) for row in _unpacked(kept["nodes"])] if "nodes" in kept else [])
    except (AttributeError, RecursionError, TypeError, ValueError, zlib.error) as err:
        raise InputError(f"the provenance in the sidecar of {engine} is damaged ({err}); build it again") from err
    return Provenance(nodes, blocks, bool(kept.get("per_sample")))


def _checked(items: Sequence[Kept]) -> tuple[Kept, ...]:
    """Values whose fields are of the types that they say."""
    for name, kind in get_type_hints(type(items[0])).items() if items else ():
        for item in items:
            value = getattr(item, name)
            if not isinstance(value, kind) or (isinstance(value, int) and abs(value) >= 2**63):
                raise TypeError(f"{name} of {quote(item)}")
    return tuple(items)


def origins(layers: Sequence[RawLayer], nodes: Sequence[Node]) -> tuple[Origin, ...]:
    """Say of each layer what it computes.

    A backend names a fused layer after its last node, so a node that no layer names is part of the one that computes
    what it is for. A layer that the backend added itself, for a layout, belongs to the layer that reads it.
    """
    owned = _owned(layers, nodes)
    shared = Counter(place for own in owned for place in own)
    readers = _readers(layers)
    found: list[Origin] = []
    for place, own in enumerate(owned):
        alone = own and all(shared[node] == 1 for node in own)
        found.append(_origin([nodes[node] for node in own or _borrowed(place, owned, readers)], bool(alone)))
    return tuple(found)


def _owned(layers: Sequence[RawLayer], nodes: Sequence[Node]) -> list[list[int]]:
    """The places of each layer's nodes."""
    places = {node.name: place for place, node in enumerate(nodes)}
    owned = [[places[name] for name in layer.origins if name in places] for layer in layers]
    owner = {node: layer for layer, own in enumerate(owned) for node in own}
    for place in reversed(range(len(nodes))):
        if place not in owner and nodes[place].next > place and (layer := owner.get(nodes[place].next)) is not None:
            owner[place] = layer
            owned[layer].append(place)
    return [sorted(set(own)) for own in owned]


def _readers(layers: Sequence[RawLayer]) -> dict[int, int]:
    """The first layer that reads each, where the backend tells; else the next."""
    readers = {place: place + 1 for place in range(len(layers) - 1)}
    known: dict[int, int] = {}
    for place, layer in enumerate(layers):
        for source in layer.reads:
            known.setdefault(source, place)
    return {**readers, **{source: place for source, place in known.items() if place > source}}


def _borrowed(place: int, owned: Sequence[Sequence[int]], readers: Mapping[int, int]) -> Sequence[int]:
    """The nodes of the layer that a layer without any is for."""
    while place in readers:
        place = readers[place]
        if owned[place]:
            return owned[place]
    return next((own for own in reversed(owned) if own), ())


def _origin(nodes: Sequence[Node], alone: bool) -> Origin:
    """Sum up nodes; of several modules, the one around them all, and of several blocks the one that most work is in."""
    if not nodes:
        return Origin()
    weights = _weights(nodes)
    work: Counter[str] = Counter()
    for node, weight in zip(nodes, weights, strict=True):
        work[node.attention] += weight
    block, most = work.most_common(1)[0]
    known = alone and all(node.flops >= 0 for node in nodes)
    return Origin(
        nodes=tuple(node.name for node in nodes),
        attention=block if 2 * most >= sum(weights) else "",
        module=_around([node.module for node in nodes if node.module]) or nodes[weights.index(max(weights))].module,
        flops=sum(node.flops for node in nodes) if known else None,
    )


def _weights(nodes: Sequence[Node]) -> list[int]:
    """How much work each node is: by FLOPs, of products of unknown size by number, and where there are none, alike."""
    if all(node.flops == 0 for node in nodes):
        return [1] * len(nodes)
    if any(node.flops < 0 for node in nodes):
        return [int(node.flops != 0) for node in nodes]
    return [node.flops for node in nodes]


def _around(modules: Sequence[str]) -> str:
    """The longest path that all modules are in."""
    paths = [module.split(".") for module in modules]
    same = 0
    while paths and all(len(path) > same and path[same] == paths[0][same] for path in paths):
        same += 1
    return ".".join(paths[0][:same]) if paths else ""
