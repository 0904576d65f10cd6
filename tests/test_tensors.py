"""Shapes, ranges, sizes and feeds: what is read, what is refused, and what it says."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import EdgeAttnError, InputError, UsageError
from edgeattn.tensors import (
    DTYPES,
    ShapeRange,
    TensorSpec,
    are_usual,
    check_feeds,
    corners,
    dtype_named,
    format_shape,
    format_size,
    numpy_dtype,
    parse_shape,
    parse_shapes,
    parse_size,
    resolve_profile,
    usual_feeds,
)

DIMS = st.lists(st.integers(1, 10**6), min_size=1, max_size=6)
NAMES = st.text("abcxyz0123456789_./-", min_size=1, max_size=12).filter(lambda name: name.strip() == name)
IMAGE = TensorSpec("x", "float32", ("batch", 3, 224, 224))
TOKENS = TensorSpec("tokens", "int64", ("batch", "length"))
FIXED = TensorSpec("mask", "bool", (1, 7))


# Dtypes


@pytest.mark.parametrize("row", DTYPES, ids=lambda row: row.name)
def test_dtype_table_agrees_with_numpy_and_onnx(row: object) -> None:
    dtype = numpy_dtype(row.name)  # type: ignore[attr-defined]
    assert dtype == onnx.helper.tensor_dtype_to_np_dtype(row.onnx)  # type: ignore[attr-defined]
    assert dtype.itemsize * 8 == row.bits  # type: ignore[attr-defined]
    assert dtype_named(row.short) is dtype_named(row.name)  # type: ignore[attr-defined]


def test_unknown_dtype_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="known: float32"):
        dtype_named("half")


# Text


@given(DIMS, st.sampled_from(["{0}", "[{0}]", "({0})", " {0} "]), st.sampled_from([",", ", ", "x"]))
def test_every_spelling_of_a_shape_is_read(dims: list[int], frame: str, between: str) -> None:
    assert parse_shape(frame.format(between.join(map(str, dims)))) == tuple(dims)


@given(DIMS)
def test_shape_reads_back_what_was_formatted(dims: list[int]) -> None:
    assert parse_shape(format_shape(dims)) == tuple(dims)


@given(st.dictionaries(NAMES, DIMS, min_size=1, max_size=4), st.sampled_from(["x", ","]))
def test_shapes_of_several_inputs_are_read(shapes: dict[str, list[int]], between: str) -> None:
    frame = "{}" if between == "x" else "[{}]"
    text = ",".join(f"{name}:{frame.format(between.join(map(str, dims)))}" for name, dims in shapes.items())
    assert parse_shapes(text) == {name: tuple(dims) for name, dims in shapes.items()}


@pytest.mark.parametrize(
    "text",
    ["", "x", "1x", "x1", "0", "1x0", "-1x3", "1x-3", "1.5", "1x3,1x4", "1;3", "axb", "1 3", "9" * 5000, "٣x4", "1xx3"],
)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a shape"):
        parse_shape(text)


@pytest.mark.parametrize("text", ["x:1x3,x:2x3", "x:1x3, x:2x3", ":1x3", "x:", "x:1,y", "x:1x3,,y:1"])
def test_what_are_no_shapes_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_shapes(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_shape, parse_shapes, parse_size):
        with contextlib.suppress(UsageError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("512 MiB", 2**29), ("1.5GB", 1_500_000_000), ("0B", 0), ("3kib", 3072), (" 1KB ", 1000)],
)
def test_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2", "2.GiB", "-1GiB", "GiB", "2 TiB", "1e3MB", "9" * 400 + "GiB", "٢GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@given(st.integers(0, 2**40))
def test_formatted_size_is_near(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06)


# Ranges


@pytest.mark.parametrize(
    ("low", "mid", "high"), [((2,), (1,), (3,)), ((1,), (4,), (3,)), ((0,), (1,), (1,)), ((1,), (1, 1), (1,))]
)
def test_range_that_is_none_is_refused(low: tuple[int, ...], mid: tuple[int, ...], high: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="min <= opt <= max"):
        ShapeRange(low, mid, high)


def test_range_beyond_any_memory_is_refused() -> None:
    ShapeRange((1,), (1,), (2**31 - 1,))
    with pytest.raises(UsageError, match="2147483647 elements"):
        ShapeRange((1, 1), (1, 1), (2**16, 2**15))


def test_dynamic_batch_needs_no_asking() -> None:
    profile = resolve_profile([IMAGE, FIXED])
    assert str(profile["x"]) == "1x3x224x224 .. 1x3x224x224 .. 8x3x224x224"
    assert profile["mask"].is_static


def test_missing_bounds_equal_the_optimum() -> None:
    asked = resolve_profile([TOKENS], opt_shapes={"": (2, 16)}, max_shapes={"tokens": (4, 64)})
    assert asked == {"tokens": ShapeRange((2, 16), (2, 16), (4, 64))}
    assert resolve_profile([TOKENS], min_shapes={"tokens": (2, 16)}) == {
        "tokens": ShapeRange((2, 16), (2, 16), (2, 16))
    }


@pytest.mark.parametrize(
    ("inputs", "shapes", "reason"),
    [
        ([TOKENS], {}, "give --opt-shapes"),
        ([IMAGE], {"y": (1, 3, 224, 224)}, "no input 'y'; its inputs: x"),
        ([IMAGE, TOKENS], {"": (1, 2)}, "write NAME:SHAPE"),
        ([IMAGE], {"x": (1, 4, 224, 224)}, "does not admit 1x4x224x224"),
        ([IMAGE], {"x": (1, 3, 224)}, "does not admit"),
        ([TensorSpec("u", "float32", None)], {}, "unknown rank"),
    ],
)
def test_shape_that_the_graph_does_not_admit_is_refused(
    inputs: list[TensorSpec], shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        resolve_profile(inputs, opt_shapes=shapes)


@given(st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=3).map(sorted), max_size=4), st.booleans())
def test_corners_are_inside_the_range_and_reach_its_ends(bounds: list[list[int]], two: bool) -> None:
    spread = ShapeRange(*(tuple(bound[end] for bound in bounds) for end in range(3)))
    profile = {"x": spread, **({"fixed": ShapeRange((3,), (3,), (3,))} if two else {})}
    found = list(corners(profile))
    assert all(spread.contains(shapes["x"]) for shapes in found)
    shapes = [shapes["x"] for shapes in found]
    assert {spread.min, spread.opt, spread.max} <= set(shapes)
    assert len(set(shapes)) == len(shapes)
    for batch in (1, 2):
        if bounds and bounds[0][0] < bounds[0][2] and bounds[0][0] <= batch <= bounds[0][2]:
            assert any(shape[0] == batch for shape in shapes)


# Feeds


PROFILE = {"tokens": ShapeRange((1, 4), (2, 8), (4, 16))}


@pytest.mark.parametrize(
    ("feeds", "reason"),
    [
        ({}, "missing input 'tokens'; got none"),
        ({"tokens": np.zeros((1, 4), np.int64), "y": 0}, "unknown input 'y'; expected tokens"),
        ({"tokens": np.zeros((1, 4), np.int32)}, "expected int64, got int32"),
        ({"tokens": np.zeros((1, 4), ">i8")}, "expected int64, got >i8"),
        ({"tokens": np.zeros((1, 17), np.int64)}, "expected shape 1x4 .. 2x8 .. 4x16, got 1x17"),
        ({"tokens": np.zeros(4, np.int64)}, "got 4"),
        ({"tokens": [[1, 2], [3]]}, "input 'tokens' is no array"),
        ({"tokens": torch.ones(1, 4, requires_grad=True)}, "input 'tokens' is no array"),
        ({"tokens": None}, "got object"),
    ],
    ids=["none", "unknown", "dtype", "byte-order", "shape", "rank", "ragged", "gradient", "none-value"],
)
def test_feeds_that_do_not_fit_are_refused(feeds: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        check_feeds([TOKENS], PROFILE, feeds)  # type: ignore[arg-type]
    assert reason in str(caught.value)


def test_feeds_come_back_contiguous_and_equal() -> None:
    feed = np.arange(64).reshape(8, 8)[::2, ::2].T
    (checked,) = check_feeds([TOKENS], PROFILE, {"tokens": feed}).values()
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, feed)


@pytest.mark.parametrize(
    ("feeds", "usual"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, True),
        ({"x": np.zeros((1, 3), np.float32)}, False),  # in range, though
        ({"x": np.zeros((2, 3))}, False),
        ({"x": np.zeros((3, 2), np.float32).T}, False),
        ({"x": [[0.0] * 3] * 2}, False),
        ({"x": torch.zeros(2, 3)}, False),
        ({"x": np.zeros((2, 3), np.float32), "y": np.zeros(1)}, False),
        ({"y": np.zeros((2, 3), np.float32)}, False),
        ({}, False),
    ],
)
def test_only_what_needs_no_check_is_usual(feeds: dict[str, Any], usual: bool) -> None:
    inputs = (TensorSpec("x", "float32", ("n", 3)),)
    assert are_usual(feeds, usual_feeds(inputs, {"x": ShapeRange((1, 3), (2, 3), (8, 3))})) == usual
    assert not are_usual(feeds, usual_feeds(inputs, {}))


def test_feeds_that_fit_are_not_copied() -> None:
    feed = np.zeros((2, 8), np.int64)
    assert np.shares_memory(check_feeds([TOKENS], PROFILE, {"tokens": feed})["tokens"], feed)


def test_a_long_long_becomes_the_int64_that_every_runtime_knows() -> None:
    feed = np.zeros((2, 8), np.longlong)  # what ONNX Runtime returns
    assert check_feeds([TOKENS], PROFILE, {"tokens": feed})["tokens"].dtype.num == np.dtype(np.int64).num


def test_scalar_stays_a_scalar() -> None:
    feeds = check_feeds([TensorSpec("s", "float32", ())], {}, {"s": np.float32(3)})  # type: ignore[dict-item]
    assert feeds["s"].shape == ()


def test_without_a_range_the_graph_decides() -> None:
    check_feeds([TOKENS], {}, {"tokens": np.zeros((9, 99), np.int64)})
    with pytest.raises(EdgeAttnError, match="expected shape batchxlength, got 9"):
        check_feeds([TOKENS], {}, {"tokens": np.zeros(9, np.int64)})
