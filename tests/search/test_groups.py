from __future__ import annotations

import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.fuse import fuse
from edgeattn.graph import SCOPES, Graph
from edgeattn.search.groups import groups
from tests.graphs import self_attention


def chain(modules: list[list[str]]) -> Graph:
    """Products one after the other, each in the modules given from the outermost in."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([4, 4]))
    nodes, last = [], x
    for number, around in enumerate(modules):
        node = ir.node("MatMul", [last, x], name=f"n{number}")
        node.metadata_props[SCOPES] = repr([*around, f"n{number}"])
        (last,) = node.outputs
        last.name = f"v{number}"
        nodes.append(node)
    return Graph(ir.Model(ir.Graph([x], [last], nodes=nodes, opset_imports={"": 20}), ir_version=10))


modules = st.lists(st.lists(st.sampled_from("abc"), max_size=3), min_size=1, max_size=40)


@given(modules, st.integers(1, 9))
def test_every_node_is_in_one_part_and_there_are_not_too_many(around: list[list[str]], most: int) -> None:
    paths = [[".".join(names[: depth + 1]) for depth in range(len(names))] for names in around]
    found = groups(chain(paths), most)
    assert sorted(name for part in found.values() for name in part) == sorted(f"n{i}" for i in range(len(around)))
    assert 1 <= len(found) <= most


def test_parts_are_modules_and_the_largest_are_divided_further() -> None:
    paths = [["stem"], *[["body", f"body.{block}"] for block in range(3) for _ in range(4)], ["head"]]
    assert list(groups(chain(paths), 3)) == ["stem", "body", "head"]
    assert list(groups(chain(paths), 5)) == ["stem", "body.0", "body.1", "body.2", "head"]
    assert list(groups(chain(paths), 4)) == ["stem", "body.0 to body.1", "body.2", "head"]


def test_a_module_that_runs_twice_is_one_part() -> None:
    found = groups(chain([["a"], ["b"], ["a"], ["b"]]), 2)
    assert found == {"a": ("n0", "n2"), "b": ("n1", "n3")}


def test_an_attention_stays_with_its_projections() -> None:
    fused, report = fuse(self_attention().graph)
    (found,) = groups(fused).values()
    assert report.found[0].name in found
    assert len(found) > 1


def test_the_names_of_the_older_exporter_tell_modules_too() -> None:
    graph = chain([[], [], [], []])
    for node, name in zip(graph.model.graph, ("/a/a.0/MatMul", "/a/a.1/MatMul", "/b/MatMul", "/MatMul"), strict=True):
        node.metadata_props.clear()
        node.name = name
    assert list(groups(graph, 3)) == ["a", "b", "/MatMul"]
