from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.normalise import drop_identities, inlined, named, settle_shapes, upgraded
from tests.ops.exactness import graph_of


def settled(body: str, outputs: str = "float[a, b, c] y", **weights: np.ndarray) -> dict[str, list[int | str | None]]:
    """The shapes of all values of a graph of x (batch, 6, width)."""
    text = f'<ir_version: 8, opset_import: ["": 18]> g (float[batch, 6, width] x) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    model = ir.from_proto(proto)
    settle_shapes(model)
    values = [value for node in model.graph for value in node.outputs]
    return {str(value.name): [named(dim) for dim in value.shape or ()] for value in values}


@pytest.mark.parametrize(
    ("target", "expected"),
    [([0, -1, 3], None), ([0, 1, -1], None), ([0, 2, 3, -1], ["batch", 2, 3, "width"]), ([0, -1], None)],
)
def test_the_one_unknown_size_of_a_reshape_follows_from_the_others(
    target: list[int], expected: list[int | str] | None
) -> None:
    declared = ", ".join("abcd"[: len(target)])
    found = settled("y = Reshape (x, target)", f"float[{declared}] y", target=np.array(target))["y"]
    if expected is not None:
        assert found == expected
    else:  # a multiple of the width, which has no name of its own
        assert "width" not in found


def test_a_size_solved_late_is_known_to_what_reads_it() -> None:
    body = """
        mean = ReduceMean <keepdims = 0> (x, last)
        row = Reshape (mean, target)
        mixed = Conv <pads = [1, 1]> (row, w)
        y = Reshape (mixed, back)"""
    weights = {"last": np.array([2]), "target": np.array([0, 1, -1]), "back": np.array([0, -1, 1])}
    shapes = settled(body, w=np.ones((1, 1, 3), np.float32), **weights)
    assert shapes["mixed"] == ["batch", 1, 6]
    assert shapes["y"] == ["batch", 6, 1]


@pytest.mark.parametrize(
    ("window", "same"),
    [
        ("pads = [1, 1]", True),
        ("pads = [2, 0]", True),
        ("pads = [2, 2], dilations = [2]", True),
        ("pads = [1, 1], strides = [2]", False),
        ("pads = [1, 0]", False),
        ("pads = [1, 1], dilations = [2]", False),
    ],
)
def test_a_window_keeps_a_size_only_if_it_pads_for_itself(window: str, same: bool) -> None:
    found = settled(f"y = Conv <{window}> (x, w)", w=np.ones((4, 6, 3), np.float32))["y"]
    assert found[:2] == ["batch", 4]
    assert (found[2] == "width") is same


def test_a_name_that_only_outputs_declare_says_nothing() -> None:
    body = "y = Conv <strides = [2]> (x, w)\nz = Conv <strides = [3]> (x, w)\nu = Relu (y)"
    shapes = settled(body, "float[b, c, n] u, float[b, c, n] z", w=np.ones((4, 6, 3), np.float32))
    assert shapes["u"][2] != shapes["z"][2]
    assert shapes["u"] == shapes["y"]


def test_a_branch_keeps_the_identity_that_makes_its_output() -> None:
    branches = (
        "then_branch = a () => (float[2] t) { t = Identity(n) }, else_branch = b () => (float[2] e) { e = Abs(n) }"
    )
    body = f"n = Neg(x) z = If (c) <{branches}> same = Identity(z) y = Relu(same)"
    model = graph_of("(float[2] x, bool c) => (float[2] y)", body, {}).model
    drop_identities(model)
    assert [node.op_type for node in model.graph] == ["Neg", "If", "Relu"]
    runs = run_as_written(Graph(inlined(model)))  # a copy, which a branch without a node of its own cannot have
    for chosen, expected in ((True, [3, 0]), (False, [3, 4])):
        (y,) = runs({"x": np.array([-3, 4], np.float32), "c": np.array(chosen)}).values()
        assert y.tolist() == expected


def test_a_target_computed_from_sizes_is_followed() -> None:
    body = """
        all = Shape (x)
        batch = Gather <axis = 0> (all, first)
        rows = Gather <axis = 0> (all, second)
        half = Div (rows, two)
        target = Concat <axis = 0> (batch, half, two, minus)
        apart = Reshape (x, target)
        y = Transpose <perm = [0, 2, 1, 3]> (apart)"""
    numbers = {"first": 0, "second": 1, "two": 2, "minus": -1}
    shapes = settled(body, "float[a, b, c, d] y", **{name: np.array([number]) for name, number in numbers.items()})
    assert shapes["y"] == ["batch", 2, 3, "width"]
    assert "half" not in shapes  # it is an initializer now


def test_what_was_inferred_before_its_inputs_were_known_is_inferred_again() -> None:
    body = """
        all = Shape (x)
        rows = Slice (all, one, two)
        odd = Mod (rows, five)
        target = Concat <axis = 0> (zero, minus, odd)
        u = Reshape (x, target)
        v = Concat <axis = 1> (u, u)
        y = Add (v, v)"""
    numbers = {"zero": 0, "one": 1, "two": 2, "five": 5, "minus": -1}
    weights = {name: np.array([number]) for name, number in numbers.items()}
    shapes = settled(body, **weights)
    assert [shapes[name][::2] for name in "uvy"] == [["batch", 1]] * 3
    assert shapes["y"][1] is not None


@pytest.mark.parametrize(("size", "expected"), [(6, ["batch", "width"]), (5, ["batch", 6, "width"])])
def test_an_if_whose_condition_follows_from_sizes_becomes_its_branch(size: int, expected: list[int | str]) -> None:
    then = "a () => (float[m, n] t) { t = ReduceSum <keepdims = 0> (x, axis) }"
    other = "b () => (float[l, m, n] e) { e = Neg (x) }"
    body = f"""
        all = Shape (x)
        rows = Gather (all, one)
        known = Equal (rows, size)
        chosen = If (known) <then_branch = {then}, else_branch = {other}>
        y = Relu (chosen)"""
    weights = {"one": np.array(1), "size": np.array(size), "axis": np.array([1])}
    shapes = settled(body, f"float[{', '.join('abc'[: len(expected)])}] y", **weights)
    assert shapes["y"] == expected
    assert "chosen" not in shapes


def test_nodes_keep_their_metadata_in_another_opset() -> None:
    body = "h = Exp (x)  y = ReduceMax <axes = [1], keepdims = 0> (h)"
    text = f'<ir_version: 8, opset_import: ["": 13]> g (float[2, 3] x) => (float[2] y) {{ {body} }}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    for place, node in enumerate(model.graph):
        node.metadata_props["where"] = str(place)
    converted = upgraded(model, 18)
    assert converted.opset_imports[""] == 18
    kept = {node.op_type: node.metadata_props.get("where") for node in converted.graph if node.op_type != "Constant"}
    assert kept == {"Exp": "0", "ReduceMax": "1"}
