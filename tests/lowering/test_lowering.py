from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import UsageError
from edgeattn.fuse import fuse
from edgeattn.graph import load_graph, save_graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import BODY, FLASH, forms, plan, to_backend
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
        (self_attention(tokens="n"), "onnxruntime", "float32", "function body", "their number is dynamic"),
        (self_attention(), "openvino", "float32", "OpenVINO scaled dot product attention", ""),
        (self_attention(dim=16), "tensorrt", "float16", "TensorRT native fused MHA", ""),
        (self_attention(dim=16), "tensorrt", "float32", "function body", "needs float16 or bfloat16"),
        (self_attention(dim=8), "tensorrt", "float16", "function body", "head size 8 is not within 16 to 256"),
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


def test_a_form_may_be_chosen_instead_of_the_planned_one() -> None:
    fused = fuse(self_attention().graph)[0]
    (node,) = [node for node in fused.model.graph if node.domain == DOMAIN]
    name = str(node.name)
    assert forms(node, "onnxruntime") == (BODY, FLASH)
    assert to_backend(fused, "onnxruntime", {name: FLASH}).op_counts()[FLASH.replace(".Multi", "::Multi")] == 1
    assert to_backend(fused, "onnxruntime", {name: BODY}).op_counts()["Softmax"] == 1
    assert len(forms(node, "openvino")) == 1
    with pytest.raises(UsageError, match=f"openvino has no form '{FLASH}' for '{name}'; known: OpenVINO"):
        to_backend(fused, "openvino", {name: FLASH})
    with pytest.raises(UsageError, match="for 'absent'; known: none"):
        to_backend(fused, "onnxruntime", {"absent": FLASH})


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_scale_of_a_body_is_a_constant_of_the_right_dtype(backend: str) -> None:
    lowered = to_backend(fuse(self_attention().graph)[0], backend)
    assert "CastLike" not in lowered.op_counts()
    (scale,) = [node for node in lowered.nodes() if node.op_type == "Mul"]
    (constant,) = [value.const_value.numpy() for value in scale.inputs if value is not None and value.const_value]
    assert constant == np.float32(8**-0.5)
    assert constant.dtype == np.float32


def test_onnxruntime_folds_the_scale_into_the_product(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    lowered = to_backend(fuse(self_attention(batch=1).graph)[0], "onnxruntime")
    ort.InferenceSession(lowered.serialized, options, ["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "FusedMatMul" in kinds
    assert "Mul" not in kinds
