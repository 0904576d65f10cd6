"""Graph -> the same graph with one more output for every map of an attention in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeattn.errors import InputError, one_line
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph, module_of, save_graph
from edgeattn.normalise import infer_types
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import DOMAIN
from edgeattn.ops.walk import dims

WATCHED = "edgeattn.maps"  # where a graph says which of its outputs are maps


@dataclass(frozen=True)
class Watch:
    """One output that was added: the map `kind` of the attention `name`, an `op`.

    `items` is how many a hard attention chooses from, 0 where that is not known before it runs.
    """

    op: str
    name: str
    kind: str
    module: str = ""  # the path of the PyTorch module that it is in
    items: int = 0

    @property
    def output(self) -> str:
        """The name of the output."""
        return f"{self.name}/{self.kind}"


def watched(graph: Graph) -> tuple[Graph, tuple[Watch, ...]]:
    """The fused graph with the maps of its attention as further outputs, and what they are.

    A map is a value of the op's body (`AttentionOp.maps`). The original outputs stay, and stay first.
    """
    fused, _ = fuse(graph)
    edited = fused.copy()
    maps = {op.name: op.maps for op in ALL_OPS}
    made: dict[ir.Function, list[str]] = {}
    found = []
    for node in edited.model.graph:
        if node.domain != DOMAIN:
            continue
        function = edited.model.functions[node.domain, node.op_type, node.overload]
        if function not in made:
            made[function] = _exposed(function, maps[node.op_type])
        before = len(node.outputs)
        node.resize_outputs(before + len(made[function]))
        for kind, value in zip(made[function], node.outputs[before:], strict=True):
            watch = Watch(node.op_type, node.name or "", kind, module_of(node), _items(node))
            value.name = watch.output
            edited.model.graph.outputs.append(value)
            found.append(watch)
    infer_types(edited.model)
    edited.model.metadata_props[WATCHED] = json.dumps([asdict(watch) for watch in found])
    return edited, tuple(found)


def expose(model: str | Path, output: str | Path) -> tuple[Watch, ...]:
    """Write the graph of an ONNX file with its maps as further outputs, for an engine that shows where it looks.

    Such an engine runs its attention with plain operators: a fused one makes no map.

    Raises:
        InputError: the file is refused, or holds no attention that has a map.
    """
    opened, watches = watched(load_graph(model))
    if not watches:
        raise InputError(f"{model} holds no attention that has a map; see edgeattn inspect")
    save_graph(opened, output)
    return watches


def watches_in(about: Mapping[str, Any]) -> tuple[Watch, ...]:
    """The maps among the outputs of a graph, by its metadata or by what an engine's sidecar says of it.

    Raises:
        InputError: what stands there is no list of maps.
    """
    try:
        return tuple(Watch(**fields) for fields in json.loads(about.get(WATCHED, "[]")))
    except (ValueError, TypeError) as err:
        raise InputError(f"what the graph says of its maps is damaged ({one_line(err)}); expose them again") from err


def _items(node: ir.Node) -> int:
    scores = dims(node.inputs[0]) if node.op_type == "HardAttention" else None
    return scores[1] if scores and isinstance(scores[1], int) else 0


def _exposed(function: ir.Function, kinds: tuple[str, ...]) -> list[str]:
    """Make outputs of a function's maps; returns those that it has."""
    inside = {value.name: value for node in function for value in node.outputs}
    present = [kind for kind in kinds if kind in inside]
    for kind in present:
        function.outputs.append(inside[kind])
    return present
