from __future__ import annotations

import functools

import pytest

from edgeattn.kernels.cbam import cost, inputs, launches, unsupported
from edgeattn.ops.cbam import reference
from tests.kernels.interpreted import assert_as_good_as, interpret, operands

DTYPES = ("float16", "bfloat16", "float32")
WINDOW = {"pads": (3, 3, 3, 3), "kernel_shape": (7, 7)}


def sizes(shape: tuple[int, ...], hidden: int) -> list[tuple[int, ...]]:
    channels = shape[1]
    return [shape, (hidden, channels), (hidden,), (channels, hidden), (channels,), (1, 2, 7, 7), (1,)]


def check(act: str, shape: tuple[int, ...], dtype: str, hidden: int = 3) -> None:
    tensors = operands(sizes(shape, hidden), dtype)
    assert unsupported(act, sizes(shape, hidden), dtype, 87, **WINDOW) == []
    planned = launches(act, sizes(shape, hidden), dtype, 87, **WINDOW)
    y = interpret(planned, dict(zip(inputs(act), tensors, strict=True)), shape)
    assert_as_good_as(y, functools.partial(reference, act, **WINDOW), *tensors)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 17, 7, 5), (3, 64, 1, 3), (1, 3, 13, 11), (1, 300, 2, 2)])
def test_any_sizes(shape: tuple[int, ...]) -> None:
    check("relu", shape, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_type(dtype: str) -> None:
    check("relu", (2, 17, 7, 5), dtype)


@pytest.mark.parametrize("act", ["silu", "gelu", "hardswish", "identity"])
def test_any_activation(act: str) -> None:
    check(act, (2, 9, 5, 3), "float32", hidden=70)


def test_the_weighed_map_is_never_written() -> None:
    planned = launches("relu", sizes((2, 64, 56, 56), 4), "float16", 87, **WINDOW)
    written = sum(int(count) for launch in planned for count in launch.scratch.values())
    assert written < 2 * 64 * 56 * 56 / 16
    assert [launch.kernel for launch in planned if "x" in launch.pointers] == [
        "pooling.pool", "planes.collapse", "planes.weigh"
    ]  # fmt: skip


def test_cost_counts_the_map_as_often_as_it_is_read() -> None:
    shapes = sizes((2, 64, 8, 8), 4)
    weights = 2 * 64 * 4 + 4 + 64 + 98 + 1
    found = cost("relu", shapes, "float16")
    assert (found.bytes, found.moved) == (2 * (2 * 2 * 64 * 64 + weights), 2 * (4 * 2 * 64 * 64 + weights))
