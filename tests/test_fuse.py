from __future__ import annotations

from edgeattn.fuse import fuse
from tests.graphs import gathered_gate, self_attention


def test_a_graph_without_attention_comes_back_as_it_is() -> None:
    graph = gathered_gate().graph
    fused, report = fuse(graph)
    assert fused is graph
    assert report.found == report.missed == ()


def test_fusing_leaves_the_given_graph_alone() -> None:
    graph = self_attention().graph
    before = graph.serialized
    fuse(graph)
    assert graph.proto().SerializeToString() == before


def test_fusing_twice_finds_the_same() -> None:
    once, first = fuse(self_attention().graph)
    twice, second = fuse(once)
    assert [item.op for item in first.found] == [item.op for item in second.found]
    assert once.op_counts() == twice.op_counts()
