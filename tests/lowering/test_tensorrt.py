from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from edgeattn.backends import backend_named, tensorrt_rtx
from edgeattn.backends.base import BuildConfig
from edgeattn.backends.trt.capabilities import OLDEST, RELEASES, capabilities, plugin_route
from edgeattn.backends.trt.plugins import request_of, requests_in
from edgeattn.build import BuildPlan, plan_build, rebuild_command
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, save_graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import BODY, Plan, forms, plan, tensorrt, to_backend
from edgeattn.ops.base import DOMAIN
from edgeattn.precision.fp16 import lower
from edgeattn.tensors import random_feeds, resolve_profile
from edgeattn.tolerance import tolerance_for
from tests.graphs import FLOAT, GraphCase, graph_of, self_attention
from tests.plugins.offers import offer

OFFER = "; a plugin can run it: --attention plugin"
FUSED_KERNEL = b"__FMHA_UTILS__"  # in a TensorRT-RTX plan, of the source of its fused attention kernels


def canonical(
    *, heads: int = 4, key_heads: int = 4, d_qk: int = 64, d_v: int = 64, tokens: int = 37, dtype: int = FLOAT
) -> GraphCase:
    """softmax(q k^T / 2) v over (batch, heads, tokens, d), written plainly."""
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
    expected = Plan(BODY, why + OFFER) if why else Plan(tensorrt.FUSED)
    assert plan(node, "tensorrt", "float16", version) == plan(node, "tensorrt", "bfloat16", version) == expected
    told = f"fused attention needs float16 or bfloat16, this is float32{OFFER}"
    assert plan(node, "tensorrt", "float32", version).why == told


def test_a_plan_for_all_versions_says_from_which_on_it_holds() -> None:
    node = node_of(canonical(d_qk=20, d_v=20).graph)
    assert plan(node, "tensorrt", "float16") == Plan(
        f"{tensorrt.FUSED} (>= 10.14)", f"before, {BODY}: head size 20 is not a multiple of 8{OFFER}"
    )
    assert plan(node, "tensorrt-rtx", "float16") == Plan(tensorrt.FUSED)
    assert plan(node_of(canonical().graph), "tensorrt", "float16") == Plan(tensorrt.FUSED)


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


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin library that has what the canonical graph of head sizes 8 and 64 asks for, in float16."""
    offer(tmp_path, monkeypatch, requests_in(canonical(d_qk=8).graph, ["float16"]))


@pytest.mark.usefixtures("offered")
def test_a_plugin_is_chosen_where_it_is_asked_for_or_nothing_else_fuses() -> None:
    odd, plain = fuse(canonical(d_qk=8).graph)[0], fuse(canonical().graph)[0]
    names = {node_of(canonical(d_qk=8).graph).name: tensorrt.PLUGIN}
    assert tensorrt.choose(odd, "native", "float16") == ({}, ())
    assert tensorrt.choose(odd, "plugin", "float16") == tensorrt.choose(odd, "auto", "float16") == (names, ())
    assert tensorrt.choose(plain, "auto", "float16")[0] == {}
    (note,) = tensorrt.choose(odd, "plugin", "float32")[1]
    assert "stays a function: " in note
    assert "has no kernel for SoftmaxAttention(1x4x37x8, 1x4x37x8, 1x4x37x64) float32" in note


def test_without_a_library_every_attention_stays_a_function_and_says_how_to_change_that() -> None:
    forms, (note,) = tensorrt.choose(fuse(canonical(d_qk=8).graph)[0], "plugin", "float16")
    assert forms == {}
    assert "set EDGEATTN_PLUGIN_LIBRARY to the library that has it; edgeattn plugins build makes one" in note


@pytest.mark.usefixtures("offered")
def test_a_plugins_node_keeps_its_attributes_and_loses_its_body() -> None:
    fused = fuse(canonical(d_qk=8).graph)[0]
    lowered = to_backend(fused, "tensorrt", tensorrt.choose(fused, "plugin", "float16")[0])
    (node,) = lowered.model.graph
    assert (node.domain, node.op_type, node.overload) == (DOMAIN, "SoftmaxAttention", "")
    assert {name: item.value for name, item in node.attributes.items()} == {
        "scale": 0.5, "variant": "", "plugin_namespace": "edgeattn", "plugin_version": "1"
    }  # fmt: skip
    assert not lowered.model.functions
    assert DOMAIN in lowered.model.opset_imports
    assert forms(node_of(canonical(d_qk=8).graph), "tensorrt") == (BODY, tensorrt.PLUGIN)


@pytest.mark.usefixtures("offered")
def test_one_attention_may_be_a_plugin_beside_another_of_its_kind_that_is_not() -> None:
    case = canonical(d_qk=8)
    nodes = [
        helper.make_node(node.op_type, [f"{name}{suffix}" if name != "half" else name for name in inputs],
                         [f"{name}{suffix}" for name in outputs], name=f"{node.name}{suffix}",
                         **{name: item.value for name, item in node.attributes.items()})
        for suffix in "ab"
        for node in case.graph.model.graph
        for inputs, outputs in [([v.name for v in node.inputs if v], [v.name for v in node.outputs])]
    ]  # fmt: skip
    ports = [(f"{spec.name}{suffix}", FLOAT, list(spec.shape or ())) for suffix in "ab" for spec in case.graph.inputs]
    results = [(f"y{suffix}", FLOAT, [1, 4, 37, 64]) for suffix in "ab"]
    fused, _ = fuse(graph_of(nodes, ports, results, {"half": np.array(0.5, np.float32)}))
    first, second = [node for node in fused.model.graph if node.domain == DOMAIN]
    lowered = to_backend(fused, "tensorrt", {first.name or "": tensorrt.PLUGIN})
    assert [node.name for node in lowered.model.graph if node.domain == DOMAIN] == [first.name]
    assert lowered.op_counts()["Softmax"] == 1
    assert second.name not in [node.name for node in lowered.model.graph]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_plugins_node_is_lowered_like_any_operator(dtype: str) -> None:
    fused = fuse(canonical(d_qk=8).graph)[0]
    lowered = lower(to_backend(fused, "tensorrt", tensorrt.choose(fused, "plugin", "float16")[0]), dtype)
    (node,) = [node for node in lowered.graph.model.graph if node.domain == DOMAIN]
    assert request_of(node).dtypes == (dtype,) * 3
    assert lowered.notes == ()
    assert lowered.graph.op_counts()["Cast"] == 4
    assert node.outputs[0].dtype == node.inputs[0].dtype  # type: ignore[union-attr]


@pytest.mark.usefixtures("offered")
def test_a_build_asks_for_plugins_as_it_is_told_and_says_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_named("tensorrt")
    monkeypatch.setattr(backend, "missing", lambda running=True: [])
    monkeypatch.setattr(backend, "unsupported", lambda graph: [])
    save_graph(canonical(d_qk=8).graph, tmp_path / "m.onnx")

    def planned(**settings: str) -> BuildPlan:
        return plan_build(tmp_path / "m.onnx", BuildConfig(keep_io_types=False, **settings), "tensorrt")  # type: ignore[arg-type]

    plugin = planned(precision="float16")
    assert [node.op_type for node in plugin.typed.model.graph if node.domain == DOMAIN] == ["SoftmaxAttention"]
    assert plugin.attention[0].plans["tensorrt"].runs == tensorrt.PLUGIN
    native = planned(precision="float16", attention="native")
    assert not any(node.domain == DOMAIN for node in native.typed.model.graph)
    assert rebuild_command(native, tmp_path / "m.engine", []).count("--attention native") == 1
    (note,) = (note for note in planned(attention="plugin").notes if "stays a function" in note)
    assert "float32" in note
