"""What runs each attention: the plan per backend, and the graph edits that carry it out, one room a backend.

A canonical node always has its function body as the way out. Where a backend has something measured or documented to
be better, its plan says so, and `to_backend` puts that in the node's place.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.errors import UsageError
from edgeattn.fuse import Names
from edgeattn.graph import Graph
from edgeattn.lowering import onnxruntime, openvino, tensorrt
from edgeattn.lowering.body import BODY, Plan, settle_constants
from edgeattn.lowering.onnxruntime import FLASH
from edgeattn.lowering.tensorrt import PLUGIN
from edgeattn.ops.base import DOMAIN

__all__ = ["ATTENTION", "BODY", "FLASH", "PLUGIN", "Plan", "forms", "plan", "to_backend"]

ATTENTION = "edgeattn.attention"  # under this key, the nodes of an expanded attention keep its name


def plan(node: ir.Node, backend: str, precision: str = "float32", version: str = "") -> Plan:
    """Say what runs a canonical node in a backend: a pure function of its arguments.

    Args:
        node: a node of domain `edgeattn` in a fused graph, its shapes inferred.
        backend: a name in `edgeattn.backends.BACKENDS`.
        precision: the dtype that the graph will be typed in.
        version: of TensorRT or TensorRT-RTX; where it is empty, the plan says from which version on it holds.
    """
    if backend == "onnxruntime":
        return onnxruntime.plan(node)
    if backend == "openvino":
        return openvino.plan(node)
    return tensorrt.plan(node, precision, backend, version)


def forms(node: ir.Node, backend: str) -> tuple[str, ...]:
    """Every form in which a backend can be given a canonical node, the planned one first: what a search may try."""
    planned = plan(node, backend).runs
    if backend == "tensorrt" and tensorrt.has_plugin(node):
        return (planned, PLUGIN)
    if backend != "onnxruntime" or onnxruntime.no_flash(node):
        return (planned,)
    return (FLASH, BODY) if planned == FLASH else (BODY, FLASH)


def to_backend(graph: Graph, backend: str, chosen: Mapping[str, str] | None = None) -> Graph:
    """Give every canonical node its backend's best form, and expand the rest into their bodies.

    The result holds no node of domain `edgeattn`, but those that become TensorRT's plugins. A graph without any comes
    back as it is.

    Args:
        graph: a fused graph, its shapes inferred.
        backend: a name in `edgeattn.backends.BACKENDS`.
        chosen: by node name, the form to give it instead of the planned one: one of its `forms`.

    Raises:
        UsageError: a name or a form that is not there to choose.
    """
    nodes = {node.name: node for node in graph.model.graph if node.domain == DOMAIN}
    for name, form in (chosen or {}).items():
        known = forms(nodes[name], backend) if name in nodes else ()
        if form not in known:
            raise UsageError(f"{backend} has no form {form!r} for {name!r}; known: {', '.join(known) or 'none'}")
    if not nodes:
        return graph
    edited = graph.copy()
    for node in [node for node in edited.model.graph if node.domain == DOMAIN]:
        form = (chosen or {}).get(node.name or "", plan(node, backend).runs)
        if form == FLASH:
            onnxruntime.to_flash(edited.model, node)
        elif form == PLUGIN:
            tensorrt.to_plugin(edited.model, node)
        elif backend.startswith("tensorrt"):
            tensorrt.repeat_shared_heads(edited.model, node)
        node.metadata_props[ATTENTION] = node.name or ""
    common.RemoveUnusedFunctionsPass()(edited.model)  # type: ignore[no-untyped-call]
    common.InlinePass()(edited.model)
    for node in edited.model.graph:
        if node.domain == DOMAIN:
            node.overload = ""
    _name_bodies(edited.model.graph)
    settle_constants(edited.model)
    common.RemoveUnusedOpsetsPass()(edited.model)
    return edited


def _name_bodies(graph: ir.Graph) -> None:
    """Name the nodes of expanded attentions after them, so that a profile of whatever backend shows whose they are."""
    names = Names(node.name for node in graph)
    for node in graph:
        attention = node.metadata_props.get(ATTENTION)
        if attention and node.domain != DOMAIN and node.name != attention:
            node.name = names.free(f"{attention}/{node.op_type}")
