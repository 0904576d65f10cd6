from __future__ import annotations

import base64
import itertools
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgeattn.backends.base import BuildConfig, RawLayer
from edgeattn.build import build_engine
from edgeattn.errors import InputError
from edgeattn.fuse import fuse
from edgeattn.graph import module_of
from edgeattn.inspect import attention_in, inspect_file
from edgeattn.lowering import ATTENTION, to_backend
from edgeattn.ops.base import DOMAIN
from edgeattn.profile import provenance
from edgeattn.profile.provenance import Node, Provenance, origins, read, record
from tests.graphs import FLOAT, graph_of, self_attention

WORDS, COSTS = ("name", "op", "plan", "why"), ("flops", "bytes_decomposed", "bytes_fused")


def chain(*names: str, attention: dict[str, str] | None = None, flops: dict[str, int] | None = None) -> list[Node]:
    """Nodes each of which is read by the next."""
    block, work = attention or {}, flops or {}
    last = len(names) - 1
    return [
        Node(name, f"net.{name}", block.get(name, ""), place + 1 if place < last else -1, work.get(name, 0))
        for place, name in enumerate(names)
    ]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"])
def test_nodes_of_an_expanded_attention_are_named_after_it(backend: str) -> None:
    fused, report = fuse(self_attention().graph)
    (found,) = report.found
    lowered = to_backend(fused, backend)
    own = [node for node in lowered.model.graph if node.metadata_props.get(ATTENTION) == found.name]
    assert own
    assert all(node.name == found.name or str(node.name).startswith(f"{found.name}/") for node in own)
    names = [node.name for node in lowered.model.graph]
    assert len(set(names)) == len(names)
    assert {"query", "key", "value"} <= set(names)


def test_what_a_sidecar_keeps_comes_back() -> None:
    source = self_attention(batch="batch").graph
    fused, report = fuse(source)
    lowered = to_backend(fused, "openvino")
    kept = json.loads(json.dumps(record(source, lowered, attention_in(fused, report.found, "float32"), "openvino")))
    nodes = read(kept, "m.engine").nodes
    assert [(node.name, node.module) for node in nodes] == [
        (node.name, module_of(node)) for node in lowered.model.graph
    ]
    assert [node.attention for node in nodes] == [
        node.metadata_props.get(ATTENTION, "") for node in lowered.model.graph
    ]
    places = {node.name: place for place, node in enumerate(nodes)}
    readers = {value: node.name for node in reversed(list(lowered.model.graph)) for value in node.inputs}
    for node, own in zip(nodes, lowered.model.graph, strict=True):
        assert node.next == places.get(readers.get(own.outputs[0]) or "", -1)
    found = read(kept, "m.engine")
    (block,) = found.blocks
    assert (block.op, block.name) == ("SoftmaxAttention", report.found[0].name)
    assert block.flops == report.found[0].facts.flops
    assert found.per_sample
    assert not any(node.domain == DOMAIN for node in lowered.model.graph)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
def test_any_name_survives(names: list[str]) -> None:
    values = ["x", *(f"v{place}" for place in range(len(names) - 1)), "y"]
    made = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(values)]
    graph = graph_of(made, [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    for node, name in zip(graph.model.graph, names, strict=True):
        node.name = name
    kept = json.loads(json.dumps(record(graph, graph, (), "openvino")))
    assert [node.name for node in read(kept, "m.engine").nodes] == names


def test_an_older_sidecar_has_no_nodes() -> None:
    assert read({}, "m.engine") == Provenance()


def packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode())).decode()


@pytest.mark.parametrize(
    "damaged",
    [
        {"nodes": ["0 0 0"]},
        {"nodes": "no base64"},
        {"nodes": base64.b64encode(b"not compressed").decode()},
        {"nodes": packed("[")},
        {"nodes": packed("[" * 10_000)},
        {"nodes": packed("{}")},
        {"nodes": packed("[7]")},
        {"nodes": packed('[["relu", "", "", -1]]')},
        {"nodes": packed('[["relu", "", "", -1, "0"]]')},
        {"nodes": packed('[["relu", 3, "", -1, 0]]')},
        {"nodes": packed(f'[["relu", "", "", -1, {10**400}]]')},
        {"attention": [{}]},
        {"attention": [dict.fromkeys(COSTS, 1.5) | dict.fromkeys(WORDS, "a")]},
        {"attention": [dict.fromkeys(COSTS) | dict.fromkeys(WORDS, 7)]},
    ],
    ids=lambda damaged: str(damaged)[:40],
)
def test_a_damaged_record_is_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"m\.engine is damaged"):
        read(damaged, "m.engine")


def test_a_record_that_unpacks_to_more_than_any_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "MAX_BYTES", 1000)
    fits, too_long = ({"nodes": packed(f'[["{"a" * size}", "", "", -1, 0]]')} for size in (900, 1000))
    assert len(read(fits, "m.engine").nodes) == 1
    with pytest.raises(InputError, match=r"m\.engine is damaged"):
        read(too_long, "m.engine")


def test_a_record_grows_by_a_few_bytes_a_node() -> None:
    made = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"encoder/{i // 9}/node_{i}") for i in range(3000)]
    graph = graph_of(made, [("v0", FLOAT, [2])], [("v3000", FLOAT, [2])])
    assert len(json.dumps(record(graph, graph, (), "openvino"))) < 12 * 3000


def test_a_fused_layer_computes_the_nodes_before_the_one_it_is_named_after() -> None:
    nodes = chain("conv", "bias", "relu", "pool", flops={"conv": 90})
    fused, pool = origins(
        [RawLayer("relu", "Conv", origins=("relu",)), RawLayer("p", "Pool", origins=("pool",))], nodes
    )
    assert fused.nodes == ("conv", "bias", "relu")
    assert pool.nodes == ("pool",)
    assert (fused.flops, pool.flops) == (90, 0)
    assert fused.module == "net"


def test_a_layer_that_the_backend_added_belongs_to_its_reader() -> None:
    nodes = chain("conv", "gate", attention={"gate": "a"})
    layers = [
        RawLayer("conv", "Conv", origins=("conv",)),
        RawLayer("to blocks", "Reorder", reads=(0,)),
        RawLayer("elsewhere", "Reorder"),
        RawLayer("gate", "Mul", origins=("gate",), reads=(1,)),
        RawLayer("back", "Reorder", reads=(3,)),
    ]
    found = origins(layers, nodes)
    assert [origin.attention for origin in found] == ["", "a", "a", "a", "a"]
    assert found[1].nodes == ("gate",)
    assert found[1].flops is None


@pytest.mark.parametrize(
    ("flops", "attention"),
    [
        ({}, ""),  # two of five nodes
        ({"scores": 8}, "a"),  # the only product
        ({"scores": -1, "mix": -1}, "a"),  # products of unknown size
        ({"conv": 90, "scores": 8}, ""),
        ({"conv": 6, "scores": 8}, "a"),
    ],
)
def test_a_layer_belongs_to_the_block_that_most_of_its_work_is_in(flops: dict[str, int], attention: str) -> None:
    nodes = chain("conv", "scores", "mix", "move", "out", attention={"scores": "a", "mix": "a"}, flops=flops)
    (found,) = origins([RawLayer("all", "Subgraph", origins=("out",))], nodes)
    assert found.attention == attention
    assert found.nodes == ("conv", "scores", "mix", "move", "out")


def test_layers_that_share_a_node_do_not_know_their_flops() -> None:
    nodes = chain("norm", flops={"norm": 5})
    found = origins([RawLayer("mean", "MVN", origins=("norm",)), RawLayer("scale", "Mul", origins=("norm",))], nodes)
    assert [origin.flops for origin in found] == [None, None]


@given(st.integers(1, 30), st.data())
def test_every_node_that_leads_to_a_layer_is_in_one(count: int, data: st.DataObject) -> None:
    readers = [data.draw(st.integers(place + 1, count)) for place in range(count)]
    nodes = [Node(str(place), "", "", -1 if next >= count else next, 0) for place, next in enumerate(readers)]
    named = data.draw(st.sets(st.integers(0, count - 1)))
    found = origins([RawLayer(str(place), "", origins=(str(place),)) for place in sorted(named)], nodes)
    own = {name for origin in found for name in origin.nodes}

    def leads(place: int) -> bool:
        return place in named or (nodes[place].next >= 0 and leads(nodes[place].next))

    assert own == {str(place) for place in range(count) if leads(place)}
    assert sum(len(origin.nodes) for origin in found) == len(own)


def test_what_is_printed_of_an_engine_leaves_it_out(tmp_path: Path) -> None:
    report = build_engine(self_attention().graph, tmp_path / "m.engine", BuildConfig(), "onnxruntime", check=False)
    info = inspect_file(tmp_path / "m.engine")
    assert "provenance" not in json.dumps([report.to_json(), info.to_json()])
    assert json.loads((tmp_path / "m.engine.json").read_text())["provenance"]["nodes"]
