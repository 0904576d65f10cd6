from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.ops import ALL_OPS, softmax_attention
from edgeattn.ops.base import AttentionOp, Match, Miss, Tape
from edgeattn.tensors import random_feeds
from edgeattn.tolerance import tolerance_for
from tests.graphs import gathered_gate, self_attention
from tests.ops.exactness import fused_exactly, graph_of, weights_of


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


def test_attentions_right_behind_each_other_are_all_found() -> None:
    def gate(x: str, y: str) -> str:
        return f"""
            p{y} = ReduceMean(x{x}, axes)  h{y} = Conv(p{y}, down)  r{y} = Relu(h{y})  e{y} = Conv(r{y}, up)
            g{y} = Sigmoid(e{y})  x{y} = Mul(x{x}, g{y})"""

    weights = {**weights_of(0, down=(4, 8, 1, 1), up=(8, 4, 1, 1)), "axes": np.array([2, 3])}
    body = gate("0", "1") + gate("1", "2") + gate("2", "3")
    report = fused_exactly(graph_of("(float[2, 8, 5, 5] x0) => (float[2, 8, 5, 5] x3)", body, weights))
    assert [item.op for item in report.found] == ["ChannelGate"] * 3


FAULT = "the search for SoftmaxAttention failed (KeyError: 'broken'): report it"


def broken(part: str) -> AttentionOp:
    """Softmax attention whose search, operands, result or body raises, once it has begun."""

    def fail(*arguments: Any) -> Any:
        if part != "find":
            tape, value = arguments[0], next(iter(arguments[1:]), None)
            tape.op("Neg", [value if value is not None else operand])
        raise KeyError("broken")

    def find(graph: ir.Graph) -> Iterator[Match | Miss]:
        nonlocal operand
        for item in softmax_attention.OP.find(graph):
            if isinstance(item, Match) and part in ("inputs", "finish"):
                operand = item.anchor.inputs[0]
                item = dataclasses.replace(item, **{part: fail})  # noqa: PLW2901
            yield item
        if part == "find":
            fail()

    operand: ir.Value | None = None

    def function(variant: str) -> str:
        return fail(Tape()) if part == "function" else softmax_attention.OP.function(variant)

    return dataclasses.replace(softmax_attention.OP, find=find, function=function)


@pytest.mark.parametrize("part", ["find", "inputs", "finish", "function"])
def test_a_fault_in_one_op_leaves_the_graph_as_it_was(part: str) -> None:
    graph = self_attention().graph
    fused, report = fuse(graph, (broken(part), *ALL_OPS[1:]))
    assert fused is graph
    assert report.found == ()
    assert report.notes == (FAULT,)


@pytest.mark.parametrize("part", ["find", "inputs", "finish", "function"])
def test_a_fault_in_one_op_keeps_none_other_from_fusing(part: str) -> None:
    case = self_attention(batch=2)
    fused, report = fuse(case.graph, (broken(part), softmax_attention.OP))
    plain, _ = fuse(case.graph, (softmax_attention.OP,))
    assert [item.op for item in report.found] == ["SoftmaxAttention"]
    assert report.notes == (FAULT,)
    assert fused.op_counts() == plain.op_counts()
    feeds = random_feeds(case.graph.inputs, {"x": (2, 7, 8)}, seed=0)
    found, truth = run_as_written(Graph(fused.model))(feeds)["y"], case.compute(feeds)["y"]
    assert np.abs(found - truth).max() <= tolerance_for("float32").floor * np.abs(truth).max()
