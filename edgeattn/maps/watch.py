"""Graph -> the same graph with one more output for every map of an attention in it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgeattn.fuse import fuse
from edgeattn.graph import Graph, module_of
from edgeattn.normalise import infer_types
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import DOMAIN
from edgeattn.ops.walk import dims


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
    return edited, tuple(found)


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
