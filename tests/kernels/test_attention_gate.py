from __future__ import annotations

import functools

import pytest

from edgeattn.kernels.attention_gate import cost, inputs, launches, unsupported
from edgeattn.ops.attention_gate import reference
from tests.kernels.interpreted import assert_as_good_as, interpret, operands

DTYPES = ("float16", "bfloat16", "float32")


def sizes(shape: tuple[int, ...], signals: int, rows: int) -> list[tuple[int, ...]]:
    samples, channels, *plane = shape
    layers = [(rows, channels, 1, 1), (rows, signals, 1, 1), (rows,), (1, rows, 1, 1), (1,)]
    return [shape, (samples, signals, *plane), *layers]


def check(shape: tuple[int, ...], signals: int, rows: int, dtype: str) -> None:
    shapes = sizes(shape, signals, rows)
    tensors = operands(shapes, dtype)
    assert unsupported("same", shapes, dtype, 87) == []
    y = interpret(launches("same", shapes, dtype, 87), dict(zip(inputs("same"), tensors, strict=True)), shape)
    assert_as_good_as(y, functools.partial(reference, "same"), *tensors)


@pytest.mark.parametrize(
    ("shape", "signals", "rows"),
    [((1, 1, 1, 1), 1, 1), ((2, 17, 7, 5), 40, 9), ((1, 64, 13, 11), 3, 32), ((3, 5, 1, 3), 64, 200)],
)
def test_any_sizes(shape: tuple[int, ...], signals: int, rows: int) -> None:
    check(shape, signals, rows, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_type(dtype: str) -> None:
    check((2, 33, 7, 11), 40, 20, dtype)


def test_limits_are_said() -> None:
    assert unsupported("coarse", [], "float16", 87) == ["a gate on a map of another size, variant 'coarse'"]
    assert unsupported("same", sizes((1, 8, 4, 4), 8, 512), "bfloat16", 75) == [
        "bfloat16 on sm_75; it starts with sm_80",
        "projections of 512 channels; at most 256",
    ]


def test_cost_counts_each_map_once() -> None:
    weights = 32 * 64 + 32 * 16 + 32 + 32 + 1
    found = cost("same", sizes((2, 64, 8, 8), 16, 32), "float16")
    assert found.bytes == found.moved == 2 * (2 * 2 * 64 * 64 + 2 * 16 * 64 + weights)
