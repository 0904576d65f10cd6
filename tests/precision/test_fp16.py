"""Oracles: the same graph in float32, and ONNX's reference evaluator, which rounds to the low dtype at every node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edgeattn.graph import Graph
from edgeattn.precision.fp16 import lower
from edgeattn.tolerance import tolerance_for
from tests.precision.lowered import (
    BOTH,
    MODELS,
    assert_close,
    by_op,
    checked,
    distance,
    exported,
    graphs,
    normal,
    reference,
    rtx_products,
    run,
)


@pytest.mark.parametrize("name", MODELS)
def test_exported_models_are_valid_and_close_in_float16(name: str) -> None:
    source, feeds = exported(name)
    lowered = checked(source)
    limit = tolerance_for("float16").limit(None)
    for output, truth in run(source, feeds).items():
        assert distance(run(lowered.graph, feeds)[output], truth) <= limit
        assert distance(reference(lowered.graph, feeds)[output], truth) <= limit
    products = [node for node in lowered.graph.nodes() if node.op_type in ("Conv", "MatMul", "Gemm")]
    assert {node.outputs[0].dtype for node in products} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize("name", ["cbam", "vit", "masked by the smallest float32"])
def test_exported_models_are_valid_and_close_in_bfloat16(name: str) -> None:
    source, feeds = exported(name)
    lowered = checked(source, "bfloat16")
    assert lowered.graph.opset >= 22
    for output, truth in run(source, feeds).items():
        assert distance(reference(lowered.graph, feeds)[output], truth) <= tolerance_for("bfloat16").limit(None)


@pytest.mark.parametrize("name", ["cbam", "vit", "nonlocal", "unet"])
def test_a_network_without_islands_has_a_cast_at_each_end_and_none_between(name: str) -> None:
    source, _ = exported(name)
    lowered = checked(source)
    assert lowered.notes == ()
    assert lowered.graph.op_counts()["Cast"] - source.op_counts()["Cast"] == len(source.inputs) + len(source.outputs)
    assert checked(source, keep_io_types=False).graph.op_counts() == source.op_counts()


def test_original_nodes_keep_their_names() -> None:
    source, _ = exported("vit")
    for dtype in BOTH:
        after = {node.name: node.op_type for node in checked(source, dtype).graph.nodes()}
        assert {
            node.name: node.op_type for node in source.nodes() if node.op_type != "Constant"
        }.items() <= after.items()


def test_weights_shrink_to_half() -> None:
    source, _ = exported("cbam")
    assert checked(source).graph.weight_bytes()["float16"] * 2 == source.weight_bytes()["float32"]


@pytest.mark.parametrize(("opset", "dynamic"), [(None, False), (23, True)], ids=["static", "dynamic opset 23"])
def test_masked_attention_is_right_for_fully_masked_rows(opset: int | None, dynamic: bool) -> None:
    source, feeds = exported("masked", dynamic, opset)
    lowered = checked(source)
    found = assert_close(lowered, source, feeds)
    assert all(np.isfinite(value).all() for value in found.values())
    assert by_op(lowered)["Softmax"] == {"float32"}
    assert by_op(lowered)["MatMul"] == {"float16"}
    assert len(lowered.notes) == 1
    assert "-1e+09 exceeds float16" in lowered.notes[0]


def test_the_same_mask_needs_no_island_in_bfloat16() -> None:
    source, _ = exported("masked")
    assert checked(source, "bfloat16").notes == ()


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float16") for name in MODELS), ("vit", "bfloat16")])
def test_tensorrt_rtx_builds_the_graph_as_a_strongly_typed_network(name: str, dtype: str) -> None:
    products = rtx_products(lower(exported(name)[0], dtype).graph)
    assert products == {dtype}


@settings(max_examples=40, deadline=None)
@given(graphs(frail=True), st.sampled_from(BOTH), st.booleans())
def test_any_graph_stays_valid(source: Graph, dtype: str, keep_io_types: bool) -> None:
    lowered = checked(source, dtype, keep_io_types)
    if dtype == "float16":
        onnxruntime.InferenceSession(lowered.graph.serialized, providers=["CPUExecutionProvider"])


@settings(max_examples=100, deadline=None)
@given(graphs(frail=False), st.integers(0, 3))
def test_no_constant_makes_float16_infinite_where_float32_is_finite(source: Graph, seed: int) -> None:
    """Where the lowered nodes' own results are within 1e4, whatever is infinite has escaped from an island."""
    lowered = lower(source, "float16")
    feeds = {"x": np.tanh(normal(3, 3, seed=seed)), "u": np.tanh(normal(3, 3, seed=seed + 9))}
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(source.proto()).run(None, feeds, intermediate=True)
        truth = {name: value for name, value in found.items() if name}
    outputs = [node.outputs[0] for node in lowered.graph.nodes() if node.op_type != "Cast"]
    low = [(value.name or "").removesuffix("_float16") for value in outputs if value.dtype == ir.DataType.FLOAT16]
    if all(np.isfinite(value).all() for value in truth.values()) and all(abs(truth[name]).max() < 1e4 for name in low):
        assert all(np.isfinite(value).all() for value in reference(lowered.graph, feeds).values())
