from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeattn.bisect.bench import part
from edgeattn.bisect.cuts import FEWEST, Layout
from edgeattn.calibrate import observed_graph
from edgeattn.graph import SCOPES, Graph
from edgeattn.interpreter import run_as_written
from tests.graphs import FLOAT, INT64, graph_of, self_attention
from tests.precision.lowered import graphs


def names(graph: Graph) -> set[str]:
    return {value.name for node in graph.model.graph for value in node.outputs}


@given(graph=graphs(frail=False), most=st.integers(1, 9))
@settings(max_examples=60)
def test_sections_fed_the_originals_values_give_them_again(graph: Graph, most: int) -> None:
    graph = observed_graph(graph)
    feeds = {name: np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32) for name in ("x", "u")}
    values = {**feeds, **run_as_written(graph, every=True)(feeds)}
    assume(all(np.isfinite(array).all() for array in values.values()))
    layout = Layout(graph, names(graph))
    sections = layout.sections(most)
    assert len(sections) <= max(1, most)
    ends = [(section.first, section.last) for section in sections]
    assume(layout.steps)  # else all of it is constant
    assert ends[0][0] == 0
    assert ends[-1][1] == len(layout.steps)
    assert all(one[1] == two[0] for one, two in pairwise(ends))
    for section in sections:
        if section.outputs:  # a part that nobody reads has none
            piece = part(graph, section.inputs, section.outputs)
            assert piece is not None
            found = run_as_written(piece)({name: values[name] for name in section.inputs})
            assert list(found) == list(section.outputs)
            for name, array in found.items():
                np.testing.assert_array_equal(array, values[name])


def test_an_attention_is_a_section_of_its_own() -> None:
    graph = observed_graph(self_attention().graph)
    layout = Layout(graph, names(graph))
    named = [layout.name(section) for section in layout.sections(9)]
    (attention,) = layout.attentions()
    assert attention in named
    first, last = layout.attentions()[attention]
    assert layout.section(first, last).outputs == ("y",) or len(layout.section(first, last).outputs) == 1


def test_a_section_over_several_modules_is_named_by_them() -> None:
    nodes = [helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"], name=f"relu{n}") for n in range(4)]
    graph = graph_of(nodes, [("v0", FLOAT, [2])], [("v4", FLOAT, [2])])
    for node, scopes in zip(graph.model.graph, (["", "a", "a.0"], ["", "a", "a.1"], ["", "b"], [""]), strict=True):
        node.metadata_props[SCOPES] = str([*scopes, node.name])
    layout = Layout(graph, names(graph))
    named = [layout.name(layout.section(*ends)) for ends in ((0, 1), (0, 2), (1, 3), (2, 4))]
    assert named == ["a.0: relu0", "a.0 to a.1", "a to b", "b to relu3"]


def test_it_is_cut_only_where_all_that_crosses_is_known() -> None:
    nodes = [helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"], name=f"relu{n}") for n in range(8)]
    graph = graph_of(nodes, [("v0", FLOAT, [2])], [("v8", FLOAT, [2])])
    assert Layout(graph, {"v3", "v4", "v8"}).cuts == [0, 3, 4, 8]
    assert Layout(graph, ()).cuts == [0, 8]


def test_sizes_are_computed_where_they_are_needed() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Shape", ["x"], ["sizes"], name="shape"),
        helper.make_node("Neg", ["a"], ["b"], name="b"),
        helper.make_node("Reshape", ["b", "sizes"], ["y"], name="reshape"),
    ]
    graph = graph_of(nodes, [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])])
    layout = Layout(graph, names(graph))
    assert [node.name for node in layout.steps] == ["a", "b", "reshape"]
    last = layout.section(2, 3)
    assert (last.inputs, last.outputs) == (("b", "x"), ("y",))
    piece = part(graph, last.inputs, last.outputs)
    assert piece is not None
    assert [node.op_type for node in piece.model.graph] == ["Shape", "Reshape"]


def test_what_a_branch_reads_from_outside_is_an_input_of_its_section() -> None:
    def branch(name: str) -> object:
        nodes = [helper.make_node("Add", ["a", "x"], [name], name=f"{name}_add")]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, FLOAT, None)])

    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="a"),
        helper.make_node("Cast", ["n"], ["c"], name="c", to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["b"], name="if", then_branch=branch("t"), else_branch=branch("e")),
        helper.make_node("Neg", ["b"], ["y"], name="neg"),
    ]
    graph = observed_graph(graph_of(nodes, [("x", FLOAT, [2]), ("n", INT64, [])], [("y", FLOAT, [2])]))
    layout = Layout(graph, names(graph))
    assert layout.section(2, 3).inputs == ("a", "c", "x")
    piece = part(graph, ("a", "c", "x"), ("b",))
    assert piece is not None
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(run_as_written(piece)({"a": x, "c": np.array(True), "x": 2 * x})["b"], 3 * x)


@pytest.mark.parametrize("length", [1, 2 * FEWEST - 1, 2 * FEWEST, 40])
def test_a_long_row_is_cut_into_as_many_pieces_as_asked_and_a_short_one_not(length: int) -> None:
    nodes = [helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"], name=f"relu{n}") for n in range(length)]
    graph = graph_of(nodes, [("v0", FLOAT, [2])], [(f"v{length}", FLOAT, [2])])
    sections = Layout(graph, names(graph)).sections(4)
    assert len(sections) == {1: 1, 2 * FEWEST - 1: 1, 2 * FEWEST: 2, 40: 4}[length]
