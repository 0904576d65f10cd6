"""Runs a graph exactly as it is written, node by node: what an engine of it is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx

from edgeattn.graph import Graph

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Feeds


def run_as_written(graph: Graph, every: bool = False) -> Callable[[Feeds], dict[str, Array]]:
    """A function that runs the graph as it is written: onnxruntime without optimisations, or onnx's own evaluator.

    With `every`, it returns each node's results and not only the graph's outputs.
    """
    proto = graph.proto()
    if every:
        known = {value.name for value in proto.graph.output}
        names = [name for node in proto.graph.node for name in node.output if name and name not in known]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    names = [value.name for value in proto.graph.output]
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(proto)
        return lambda feeds: dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))
