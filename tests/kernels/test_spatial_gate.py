from __future__ import annotations

import functools

import pytest

from edgeattn.kernels.spatial_gate import cost, inputs, launches, unsupported
from edgeattn.ops.spatial_gate import reference
from tests.kernels.interpreted import assert_as_good_as, interpret, operands

DTYPES = ("float16", "bfloat16", "float32")
SHAPES = [(1, 1, 1, 1), (2, 17, 7, 5), (3, 64, 1, 3), (1, 3, 13, 11), (1, 300, 2, 2)]


def window(rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """A convolution that keeps the size: padded by what is left over below and to the right."""
    top, left = (rows - 1) // 2, (columns - 1) // 2
    return {"pads": (top, left, rows - 1 - top, columns - 1 - left), "kernel_shape": (rows, columns)}


def check(variant: str, shape: tuple[int, ...], dtype: str, rows: int = 7, columns: int = 7) -> None:
    plain = variant.startswith("conv-")
    sizes = [shape, (1, shape[1], 1, 1) if plain else (1, 2, rows, columns), (1,)]
    tensors = operands(sizes, dtype)
    attributes = {} if plain else window(rows, columns)
    assert unsupported(variant, sizes, dtype, 87, **attributes) == []
    planned = launches(variant, sizes, dtype, 87, **attributes)
    y = interpret(planned, dict(zip(inputs(variant), tensors, strict=True)), shape)
    assert_as_good_as(y, functools.partial(reference, variant, **attributes), *tensors)


@pytest.mark.parametrize("variant", ["sigmoid", "conv-sigmoid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_sizes(shape: tuple[int, ...], variant: str) -> None:
    check(variant, shape, "float32")


@pytest.mark.parametrize("variant", ["sigmoid", "conv-sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_type(dtype: str, variant: str) -> None:
    check(variant, (2, 17, 7, 5), dtype)


@pytest.mark.parametrize("gate", ["hardsigmoid", "tanh", "sigmoid+1"])
@pytest.mark.parametrize("kind", ["", "conv-"])
def test_any_gate(kind: str, gate: str) -> None:
    check(f"{kind}{gate}", (2, 9, 5, 3), "float32")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 3), (2, 4), (5, 1)])
def test_any_window(rows: int, columns: int) -> None:
    check("sigmoid", (2, 9, 5, 3), "float32", rows, columns)


def test_one_plan_serves_all_sizes() -> None:
    planned = launches("sigmoid", [("n", 17, "h", "w"), (1, 2, 3, 3), (1,)], "float32", 87, **window(3, 3))
    for shape in [(1, 17, 1, 1), (3, 17, 23, 11)]:
        tensors = operands([shape, (1, 2, 3, 3), (1,)], "float32")
        dims = {"n": shape[0], "h": shape[2], "w": shape[3]}
        y = interpret(planned, dict(zip("xwb", tensors, strict=True)), shape, dims)
        assert_as_good_as(y, functools.partial(reference, "sigmoid", **window(3, 3)), *tensors)


def test_few_places_split_the_channels() -> None:
    collapse, weigh = launches("sigmoid", [(1, 512, 7, 7), (1, 2, 7, 7), (1,)], "float16", 87, **window(7, 7))
    assert collapse.constants["span"] == weigh.constants["span"] == 128
    assert (collapse.grid, collapse.scratch["sums"]) == ("4", str(4 * 49))
    (large, _) = launches("sigmoid", [(32, 512, 56, 56), (1, 2, 7, 7), (1,)], "float16", 87, **window(7, 7))
    assert (large.constants["span"], large.grid) == (512, str(25 * 32))


def test_cost_counts_the_map_as_often_as_it_is_read() -> None:
    found = cost("sigmoid", [(2, 64, 8, 8), (1, 2, 7, 7), (1,)], "float16")
    assert (found.bytes, found.moved) == (2 * (2 * 2 * 64 * 64 + 98 + 1), 2 * (3 * 2 * 64 * 64 + 98 + 1))
    found = cost("conv-sigmoid", [(2, 64, 8, 8), (1, 64, 1, 1), (1,)], "float16")
    assert found.bytes == found.moved == 2 * (2 * 2 * 64 * 64 + 64 + 1)
