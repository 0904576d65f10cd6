from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeattn.backends import tensorrt_rtx
from edgeattn.backends.base import BuildConfig
from edgeattn.backends.trt.capabilities import OLDEST, RELEASES, capabilities, plugin_route
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import BODY, Plan, plan, tensorrt, to_backend
from edgeattn.ops.base import DOMAIN
from edgeattn.tensors import random_feeds, resolve_profile
from edgeattn.tolerance import tolerance_for
from tests.graphs import FLOAT, GraphCase, graph_of, self_attention

FUSED_KERNEL = b"__FMHA_UTILS__"  # in a TensorRT-RTX plan, of the source of its fused attention kernels


def canonical(
    *, heads: int = 4, key_heads: int = 4, d_qk: int = 64, d_v: int = 64, tokens: int = 37, dtype: int = FLOAT
) -> GraphCase:
    """softmax(q k^T / 2) v over (batch, heads, tokens, d), written plainly."""
    from onnx import helper

    nodes = [
        helper.make_node("Mul", ["q", "half"], ["scaled"], name="scale"),
        helper.make_node("Transpose", ["k"], ["turned"], name="turn", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "turned"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["weights"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"], name="mix"),
    ]
    shapes = {"q": [1, heads, tokens, d_qk], "k": [1, key_heads, tokens, d_qk], "v": [1, key_heads, tokens, d_v]}
    half = np.array(0.5, ir.DataType(dtype).numpy())
    inputs = [(name, dtype, shape) for name, shape in shapes.items()]
    graph = graph_of(nodes, inputs, [("y", dtype, [1, heads, tokens, d_v])], {"half": half})

    def compute(feeds: dict[str, Any]) -> dict[str, Any]:
        q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
        scores = np.exp(0.5 * q @ k.transpose(0, 1, 3, 2))
        return {"y": scores / scores.sum(axis=-1, keepdims=True) @ v}

    return GraphCase(graph, compute)


def node_of(graph: Graph) -> ir.Node:
    (node,) = [node for node in fuse(graph)[0].model.graph if node.domain == DOMAIN]
    return node


@pytest.mark.parametrize(
    ("sizes", "version", "why"),
    [
        ({}, "10.0.1", ""),
        ({"d_qk": 16, "d_v": 16}, "10.3.0", ""),
        ({"d_qk": 256, "d_v": 256}, "11.4.1", ""),
        ({"d_qk": 20, "d_v": 20}, "10.13.3", "head size 20 is not a multiple of 8"),
        ({"d_qk": 20, "d_v": 20}, "10.14.1", ""),
        ({"d_qk": 13, "d_v": 13}, "10.15.1", ""),
        ({"d_qk": 8, "d_v": 8}, "11.0", "head size 8 is not within 16 to 256"),
        ({"d_qk": 257, "d_v": 257}, "11.0", "head size 257 is not within 16 to 256"),
        ({"d_qk": 8, "d_v": 64}, "11.0", "head size 8 of query and key differs from 64 of value"),
        ({"key_heads": 1}, "10.3.0", ""),
    ],
)
def test_a_version_fuses_what_its_guide_says(sizes: dict[str, int], version: str, why: str) -> None:
    node = node_of(canonical(**sizes).graph)
    expected = Plan(BODY, why) if why else Plan(tensorrt.FUSED)
    assert plan(node, "tensorrt", "float16", version) == plan(node, "tensorrt", "bfloat16", version) == expected
    assert (
        plan(node, "tensorrt", "float32", version).why == "fused attention needs float16 or bfloat16, this is float32"
    )


def test_a_plan_for_all_versions_says_from_which_on_it_holds() -> None:
    node = node_of(canonical(d_qk=20, d_v=20).graph)
    assert plan(node, "tensorrt", "float16") == Plan(
        f"{tensorrt.FUSED} (>= 10.14)", f"before, {BODY}: head size 20 is not a multiple of 8"
    )
    assert plan(node, "tensorrt-rtx", "float16") == Plan(tensorrt.FUSED)
    assert plan(node_of(canonical().graph), "tensorrt", "float16") == Plan(tensorrt.FUSED)


def test_a_plugin_is_planned_for_where_an_op_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_of(canonical(d_qk=8).graph)
    monkeypatch.setattr(tensorrt, "PLUGINS", frozenset({"SoftmaxAttention"}))
    kinds = {
        version: plan(node, "tensorrt", "float16", version).runs
        for version in ("10.3.0", "10.9.0", "10.13.3", "10.14.1", "10.15.1", "11.4.1")
    }
    assert kinds == {
        "10.3.0": "library plugin",
        "10.9.0": "embedded plugin",
        "10.13.3": "embedded plugin",
        "10.14.1": "library plugin",
        "10.15.1": "embedded plugin",
        "11.4.1": "embedded plugin",
    }
    assert plan(node, "tensorrt-rtx", "float16").runs == BODY
    assert plan(node_of(canonical().graph), "tensorrt", "float16").runs == tensorrt.FUSED


@pytest.mark.parametrize(
    ("version", "kind", "embeds", "keeps_function"),
    [
        ("10.3.0", "library", False, False),
        ("10.13.3", "embedded", True, False),
        ("10.14.1", "library", False, False),
        ("10.16.2", "embedded", True, True),
        ("11.4.1", "embedded", True, True),
    ],
)
def test_what_a_parser_needs_to_find_a_plugin(version: str, kind: str, embeds: bool, keeps_function: bool) -> None:
    route = plugin_route(capabilities(version, "tensorrt"))
    assert route is not None
    assert (route.kind, route.keeps_function) == (kind, keeps_function)
    assert route.attributes == {"plugin_namespace": DOMAIN, "plugin_version": "1", **({"aot": 1} if embeds else {})}


def test_tensorrt_rtx_has_no_way_to_a_plugin() -> None:
    assert plugin_route(capabilities("1.7.1.116", "tensorrt-rtx")) is None


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_releases_are_those_at_which_something_changes(flavour: str) -> None:
    every = [f"{major}.{minor}" for major in (1, 10, 11) for minor in range(20)]
    known = [name for name in every if tuple(map(int, name.split("."))) >= OLDEST[flavour]]
    rows = {name: capabilities(name, flavour) for name in known}
    assert (known[0], *[new for old, new in pairwise(known) if rows[old] != rows[new]]) == RELEASES[flavour]


@pytest.mark.parametrize("heads", [2, 5])
def test_heads_that_share_a_key_get_their_own_and_compute_the_same(heads: int) -> None:
    case = canonical(heads=heads, key_heads=1, d_qk=16, d_v=16, tokens=7)
    lowered = to_backend(fuse(case.graph)[0], "tensorrt-rtx")
    assert lowered.op_counts()["Expand"] == 2
    feeds = random_feeds(case.graph.inputs, {spec.name: spec.shape for spec in case.graph.inputs}, seed=0)
    found, truth = run_as_written(lowered)(feeds)["y"], case.compute(feeds)["y"]
    assert np.abs(found - truth).max() <= tolerance_for("float32").floor * np.abs(truth).max()


def test_heads_with_keys_of_their_own_are_left_alone() -> None:
    assert "Expand" not in to_backend(fuse(self_attention().graph)[0], "tensorrt").op_counts()


@pytest.mark.parametrize(
    "sizes",
    [{}, {"key_heads": 1}, {"d_qk": 20, "d_v": 20}, {"d_qk": 8, "d_v": 8}, {"d_qk": 264, "d_v": 264}, {"d_qk": 32}],
    ids=str,
)
def test_tensorrt_rtx_fuses_what_is_planned(sizes: dict[str, int]) -> None:
    if reasons := tensorrt_rtx.missing(running=False):
        pytest.skip("; ".join(reasons))
    fused = fuse(canonical(**sizes, dtype=ir.DataType.FLOAT16.value).graph)[0]
    (node,) = [node for node in fused.model.graph if node.domain == DOMAIN]
    config = BuildConfig(precision="float16", profile=resolve_profile(fused.inputs, {}, {}, {}))
    engine = tensorrt_rtx.build(to_backend(fused, "tensorrt-rtx"), config)
    assert (FUSED_KERNEL in engine.plan) == (plan(node, "tensorrt-rtx", "float16").runs == tensorrt.FUSED)
