from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgeattn.sizes import computed, parted, times
from tests.graphs import Array

NAMED = np.array(["batch", 3, "2*width"], object)


def of(kind: str, *inputs: Any, shape: tuple[int | str, ...] | None = None, **attributes: Any) -> Any:
    """What is known of a node's result, as a list."""
    arrays: list[Array | None] = [np.asarray(item) for item in inputs]
    values = [ir.Value(type=ir.TensorType(ir.DataType.INT64)) for _ in range(max(len(arrays), 1))]
    node = ir.Node("", kind, values, ir.convenience.convert_attributes(attributes))
    node.outputs[0].type = ir.TensorType(ir.DataType.BOOL if kind == "Equal" else ir.DataType.INT64)
    found = computed(node, arrays or [None], shape)
    return None if found is None else found.tolist()


def test_names_go_through_the_lists_that_shapes_are() -> None:
    assert of("Shape", shape=("batch", 3, "2*width")) == NAMED.tolist()
    assert of("Shape", shape=("batch", 3, 4), start=1) == [3, 4]
    assert of("Gather", NAMED, 0) == "batch"
    assert of("Slice", NAMED, [1], [2**62]) == [3, "2*width"]
    assert of("Slice", [1, 2, 3], [-1], [-(2**62)], [0], [-1]) == [3, 2, 1]
    assert of("Concat", NAMED[:1], np.array([4]), axis=0) == ["batch", 4]
    assert of("Unsqueeze", np.array("batch", object), [0]) == ["batch"]
    assert of("Cast", NAMED, to=ir.DataType.FLOAT) is None


def test_names_are_multiplied_and_parted() -> None:
    assert of("Mul", NAMED, [2]) == ["2*batch", 6, "4*width"]
    assert of("Div", NAMED, [2]) == [None, None, "width"]
    assert of("Mod", NAMED, [2]) == [None, None, 0]
    assert of("Add", NAMED, [0]) == NAMED.tolist()
    assert of("Mul", NAMED, [-1]) == [None, -3, None]


def test_no_size_is_negative_so_a_name_is_not_minus_one() -> None:
    assert of("Equal", NAMED, [-1, 3, 4]) == [False, True, None]
    assert of("Where", np.array([False, True, None], object), [7, 8, 9], NAMED) == ["batch", 8, None]


@given(count=st.integers(1, 9), more=st.integers(1, 9))
def test_what_is_multiplied_is_parted_again(count: int, more: int) -> None:
    assert parted(times(count, times(more, "batch")), count) == times(more, "batch")
    assert parted(times(count, more), count) == more
    assert parted("batch", 1 + count) is None


BINARY = ["Add", "Sub", "Mul", "Div", "Mod", "Equal", "Max", "Min"]


@pytest.mark.filterwarnings("ignore:divide by zero")
@given(
    kind=st.sampled_from(BINARY),
    one=st.lists(st.integers(-9, 9), min_size=3, max_size=3),
    other=st.lists(st.integers(-9, 9).filter(bool), min_size=1, max_size=1),
)
def test_numbers_are_what_onnx_says(kind: str, one: list[int], other: list[int]) -> None:
    node = helper.make_node(kind, ["a", "b"], ["y"])
    inputs = [helper.make_tensor_value_info(name, 7, None) for name in "ab"]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("y", 9 if kind == "Equal" else 7, None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (truth,) = ReferenceEvaluator(model).run(None, {"a": np.array(one), "b": np.array(other)})
    assert of(kind, one, other) in (None, np.asarray(truth).tolist())
