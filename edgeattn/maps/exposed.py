"""An engine built again with its attention maps as further outputs: from the very graph that its backend got."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from edgeattn.backends.base import Session
from edgeattn.build import plan_build
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.lowering import BODY, to_backend
from edgeattn.maps.rebuilt import Rebuilt
from edgeattn.maps.watch import Watch
from edgeattn.normalise import infer_types


def exposed(parts: Rebuilt, opened: Graph, watches: Sequence[Watch]) -> Session:
    """Open an engine whose outputs are its own and its maps, all in float32.

    Where a kernel has taken an attention's place, there is no map; then all are built with the plain operators instead.

    Args:
        parts: the engine.
        opened: its graph with the maps as outputs, as `watched` gives it.
        watches: what these are.

    Raises:
        BuildError: the backend refuses the graph.
    """
    names = _values(parts.graph, opened, watches)
    typed = parts.typed.copy()
    infer_types(typed.model)
    made = {value.name: value for node in typed.model.graph for value in node.outputs}
    if all(name in made for name in names.values()):
        for output, name in names.items():
            whole = made[name].dtype in (ir.DataType.INT32, ir.DataType.INT64)
            dtype = made[name].dtype if whole else ir.DataType.FLOAT
            node = ir.node("Cast", [made[name]], {"to": dtype}, name=f"{output}/exposed")
            value = node.outputs[0]
            value.name, value.shape, value.type = output, made[name].shape, ir.TensorType(dtype or ir.DataType.FLOAT)
            typed.model.graph.append(node)
            typed.model.graph.outputs.append(value)
        return parts.session(Graph(typed.model))
    plain = dict.fromkeys((watch.name for watch in watches), BODY) if parts.sidecar.backend == "onnxruntime" else {}
    config = dataclasses.replace(parts.config, forms=plain, attention="native")
    plan = plan_build(opened, config, parts.sidecar.backend, ranges=parts.ranges, samples=parts.samples)
    return parts.session(plan.typed, plan.config)


def _values(graph: Graph, opened: Graph, watches: Sequence[Watch]) -> dict[str, str]:
    """The values that are maps in a graph whose attentions are expanded, by the names of the outputs that they become.

    With and without outputs for them, bodies expand to the same nodes in the same order.
    """
    plain, watched = (
        [value for node in to_backend(fused, "openvino").model.graph for value in node.outputs]
        for fused in (fuse(graph)[0], opened)
    )
    outputs = {watch.output for watch in watches}
    same = len(plain) == len(watched)
    return {
        theirs.name or "": (own.name or "") if same else ""
        for own, theirs in zip(plain, watched, strict=False)
        if theirs.name in outputs
    } or dict.fromkeys(outputs, "")
