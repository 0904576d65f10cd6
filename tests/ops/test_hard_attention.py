from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.fuse import FusionReport, fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.ops.hard_attention import OP
from tests.graphs import Array
from tests.ops.exactness import assert_close, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])

CHOICES = {
    "topk": "v, i = TopK <axis = 1> (s, count)",
    "last axis": "v, i = TopK <axis = -1, sorted = 1, largest = 1> (s, count)",
    "lowest": "v, i = TopK <axis = 1, largest = 0> (s, count)",
    "unsorted": "v, i = TopK <axis = 1, sorted = 0> (s, count)",
    "argmax": "i = ArgMax <axis = 1> (s)",
    "last of equals": "i = ArgMax <axis = 1, select_last_index = 1> (s)",
    "of samples": "u, j = TopK <axis = 0> (s, batch)\ni = Slice (j, zero, count, one)",
    "shifted": "v, j = TopK <axis = 1> (s, count)\nw = Add (j, one)\ni = Mod (w, n)",
}
GATHERS = {
    "elements": "e = Unsqueeze (i, last)\nf = Expand (e, whole)\ny = GatherElements <axis = 1> (x, f)",
    "tiled": "e = Unsqueeze (i, last)\nf = Tile (e, often)\ny = GatherElements <axis = 1> (x, f)",
    "batched": "e = Unsqueeze (i, last)\ny = GatherND <batch_dims = 1> (x, e)",
    "pairs": "e = Unsqueeze (i, last)\nf = Concat <axis = 2> (rows, e)\ny = GatherND (x, f)",
    "pairs of one sample": "e = Unsqueeze (i, last)\nf = Concat <axis = 2> (zeros, e)\ny = GatherND (x, f)",
    "flat": "r = Reshape (x, flat)\nf = Add (i, first)\ny = Gather (r, f)",
    "flat, wrong stride": "r = Reshape (x, flat)\nf = Add (i, wrong)\ny = Gather (r, f)",
}


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(small, st.sampled_from([3, 4]), small),
    choice=st.sampled_from(sorted(CHOICES)),
    gather=st.sampled_from(sorted(GATHERS)),
)
def test_a_choice_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], choice: str, gather: str
) -> None:
    (B, N, k), C = sizes, 5
    k = 1 if "arg" in choice or "equals" in choice else k
    if choice == "of samples":
        N = max(N, k)
    weights: dict[str, Array] = {
        "count": np.array([k]), "zero": np.array([0]), "one": np.array([1]), "last": np.array([-1]),
        "whole": np.array([B, k, C]), "often": np.array([1, 1, C]), "flat": np.array([B * N, C]), "n": np.array(N),
        "rows": np.broadcast_to(np.arange(B)[:, None, None], (B, k, 1)).copy(),
        "zeros": np.zeros((B, k, 1), np.int64), "batch": np.array([B]),
        "first": np.arange(B)[:, None] * N, "wrong": np.arange(B)[:, None] * (N - 1),
    }  # fmt: skip
    signature = f"(float[{B}, {N}] s, float[{B}, {N}, {C}] x) => (float[{B}, {k}, {C}] y)"
    report = fused_exactly(graph_of(signature, CHOICES[choice] + "\n" + GATHERS[gather], weights))
    exact = choice in ("topk", "last axis", "argmax")
    if exact and gather in ("elements", "tiled", "batched", "pairs", "flat"):
        assert [item.op for item in report.found] == ["HardAttention"], report
    if not exact or (B > 1 and gather in ("pairs of one sample", "flat, wrong stride")):
        assert not report.found
    assert len(report.found) + len(report.missed) == (choice != "of samples")


def fused(choice: str, gather: str, scores: str, weights: dict[str, Array]) -> tuple[Graph, FusionReport]:
    signature = f"({scores} s, float[2, 4, 5] x) => (float[2, k, 5] y)"
    return fuse(graph_of(signature, f"{choice}\n{gather}", weights))


@pytest.mark.parametrize(("choice", "count", "variant"), [("topk", 3, ""), ("argmax", 1, "argmax")])
def test_the_body_is_the_reference_and_takes_the_first_of_equal_scores(choice: str, count: int, variant: str) -> None:
    weights: dict[str, Array] = {"count": np.array([count]), "last": np.array([-1])}
    graph, report = fused(CHOICES[choice], GATHERS["batched"], "float[2, 4]", weights)
    assert [item.variant for item in report.found] == [variant]
    scores = np.array([[1, 2, 2, 0], [0, 0, 0, 0]], np.float32)
    items = weights_of(0, x=(2, 4, 5))["x"]
    (found,) = run_as_written(graph)({"s": scores, "x": items}).values()
    tensors = (torch.from_numpy(array).double() for array in (scores, items))
    assert_close(found, OP.reference(variant, *tensors, k=[count]).numpy())
    order = [[1, 2, 0], [0, 1, 2]]
    assert np.array_equal(found, np.stack([items[b, order[b][:count]] for b in range(2)]))


@pytest.mark.parametrize(
    ("scores", "body", "reason"),
    [
        ("int64[2, 4]", "i = ArgMax <axis = 1> (s)", "expected floating-point"),
        ("float[2, 3]", "v, i = TopK <axis = 1> (s, count)", "expected one score for each item"),
        ("float[2, 2, 4]", "v, j = TopK (s, count)\ni = Reshape (j, pair)", "expected scores"),
    ],
)
def test_what_chooses_otherwise_is_missed(scores: str, body: str, reason: str) -> None:
    weights: dict[str, Array] = {"count": np.array([1]), "last": np.array([-1]), "pair": np.array([2, 2])}
    _, report = fused(body, GATHERS["batched"], scores, weights)
    assert not report.found
    assert reason in report.missed[0].reason or "not known to be the choice" in report.missed[0].reason


def test_a_crop_from_a_computed_place_is_missed_and_one_by_sizes_is_none() -> None:
    weights: dict[str, Array] = {"one": np.array([1]), "two": np.array([2]), "half": np.array([0.5], np.float32)}
    crop = """
        i = ArgMax <axis = 1, keepdims = 0> (s)
        j = Add (i, two)
        y = Slice (x, i, j, one)"""
    (missed,) = fuse(graph_of("(float[1, 4] s, float[1, 6, 5] x) => (float[1, k, 5] y)", crop, weights))[1].missed
    assert "crops from a place that is computed" in missed.reason
    by_size = """
        n = Shape <start = 0, end = 1> (s)
        f = Cast <to = 1> (n)
        h = Mul (f, half)
        i = Cast <to = 7> (h)
        j = Add (i, two)
        y = Slice (x, i, j, one)"""
    assert not fuse(graph_of("(float[b, 4] s, float[1, 6, 5] x) => (float[1, k, 5] y)", by_size, weights))[1].missed


def test_a_choice_of_boxes_too_is_a_detectors() -> None:
    body = """
        v, i = TopK <axis = 1> (s, count)
        e = Unsqueeze (i, last)
        y = GatherND <batch_dims = 1> (x, e)
        z = GatherND <batch_dims = 1> (boxes, e)"""
    weights: dict[str, Array] = {"count": np.array([2]), "last": np.array([-1])}
    inputs = "float[1, 4] s, float[1, 4, 5] x, float[1, 4, 4] boxes"
    report = fused_exactly(graph_of(f"({inputs}) => (float[1, 2, 5] y, float[1, 2, 4] z)", body, weights))
    assert not report.found
    assert ["detector" in item.reason for item in report.missed] == [True]
