from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn.fuse import fuse
from edgeattn.graph import load_graph, save_graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import plan, to_backend
from edgeattn.ops.base import DOMAIN
from edgeattn.tensors import random_feeds
from edgeattn.tolerance import tolerance_for
from tests.graphs import self_attention

LONG = 2048


@pytest.mark.parametrize("batch", ["batch", 2])
def test_long_attention_becomes_the_flash_kernel_and_computes_the_same(batch: int | str, tmp_path: Path) -> None:
    case = self_attention(batch=batch, tokens=LONG)
    lowered = to_backend(fuse(case.graph)[0], "onnxruntime")
    assert lowered.op_counts()["com.microsoft::MultiHeadAttention"] == 1
    assert "Softmax" not in lowered.op_counts()
    save_graph(lowered, tmp_path / "m.onnx")
    feeds = random_feeds(case.graph.inputs, {"x": (2, LONG, 8)}, seed=0)
    found, truth = run_as_written(load_graph(tmp_path / "m.onnx"))(feeds)["y"], case.compute(feeds)["y"]
    assert np.abs(found - truth).max() <= tolerance_for("float32").floor * np.abs(truth).max()


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"])
def test_no_canonical_node_is_left_for_a_backend(backend: str) -> None:
    fused = fuse(self_attention().graph)[0]
    assert fused.op_counts()[f"{DOMAIN}::SoftmaxAttention"]
    lowered = to_backend(fused, backend)
    assert not any(name.startswith(DOMAIN) for name in lowered.op_counts())
    assert not lowered.model.functions


@pytest.mark.parametrize(
    ("case", "backend", "precision", "runs", "why"),
    [
        (self_attention(tokens=7), "onnxruntime", "float32", "function body", "plain operators are as fast"),
        (self_attention(tokens=LONG), "onnxruntime", "float32", "com.microsoft.MultiHeadAttention", ""),
        (self_attention(tokens="n"), "onnxruntime", "float32", "function body", "needs fixed queries, keys"),
        (self_attention(), "openvino", "float32", "OpenVINO scaled dot product attention", ""),
        (self_attention(dim=16), "tensorrt", "float16", "TensorRT native fused MHA", ""),
        (self_attention(dim=16), "tensorrt", "float32", "function body", "needs float16 or bfloat16"),
        (self_attention(dim=8), "tensorrt", "float16", "function body", "head size 8 is not a multiple of 8 from 16"),
    ],
)
def test_a_plan_says_what_runs_and_why_nothing_better(
    case: object, backend: str, precision: str, runs: str, why: str
) -> None:
    (node,) = [node for node in fuse(case.graph)[0].model.graph if node.domain == DOMAIN]  # type: ignore[attr-defined]
    chosen = plan(node, backend, precision)
    assert chosen.runs == runs
    assert why in chosen.why
    assert bool(chosen.why) == bool(why)
