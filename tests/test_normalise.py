from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from edgeattn.normalise import named, settle_shapes


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
