"""Graphs that TensorRT-RTX builds, which needs no GPU, and the mark of a test that builds one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeattn.backends import tensorrt_rtx
from edgeattn.backends.base import BuildConfig
from edgeattn.engine import Engine
from edgeattn.graph import Graph
from edgeattn.tensors import resolve_profile
from tests.graphs import FLOAT, graph_of

needs_rtx = pytest.mark.skipif(bool(tensorrt_rtx.missing(running=False)), reason="; ".join(tensorrt_rtx.missing(False)))
FLOAT16 = TensorProto.FLOAT16


def gated_conv(dtype: int = FLOAT, channels: int = 8, batch: int | str = "batch", layers: int = 1) -> Graph:
    """Convolutions with a squeeze-and-excite gate after them, all in one dtype."""
    rng = np.random.default_rng(0)
    real = np.float16 if dtype == FLOAT16 else np.float32
    weights: dict[str, Any] = {"squeeze": rng.standard_normal((channels, channels, 1, 1)).astype(real)}
    nodes = []
    for index in range(layers):
        weights[f"w{index}"] = rng.standard_normal((channels, channels, 3, 3)).astype(real)
        nodes.append(
            helper.make_node("Conv", [f"t{index}", f"w{index}"], [f"t{index + 1}"], name=f"conv{index}", pads=[1] * 4)
        )
    nodes += [
        helper.make_node("GlobalAveragePool", [f"t{layers}"], ["pooled"], name="pool"),
        helper.make_node("Conv", ["pooled", "squeeze"], ["squeezed"], name="fc"),
        helper.make_node("Sigmoid", ["squeezed"], ["gate"], name="sigmoid"),
        helper.make_node("Mul", [f"t{layers}", "gate"], ["y"], name="scale"),
    ]
    shape = [batch, channels, 7, 5]
    return graph_of(nodes, [("t0", dtype, shape)], [("y", dtype, shape)], weights)


def build(graph: Graph, **settings: Any) -> Engine:
    return tensorrt_rtx.build(graph, BuildConfig(**{"profile": resolve_profile(graph.inputs), **settings}))
