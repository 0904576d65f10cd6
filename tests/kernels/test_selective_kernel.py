from __future__ import annotations

import functools

import pytest
import torch

from edgeattn.kernels.selective_kernel import cost, inputs, launches, unsupported
from edgeattn.ops.selective_kernel import reference
from tests.kernels.interpreted import assert_as_good_as, interpret, operands

DTYPES = ("float16", "bfloat16", "float32")


def sizes(branches: int, shape: tuple[int, ...], hidden: int) -> list[tuple[int, ...]]:
    channels = shape[1]
    return [*[shape] * branches, (hidden, channels), (hidden,), (branches * channels, hidden), (branches * channels,)]


def check(variant: str, shape: tuple[int, ...], dtype: str) -> None:
    branches = int(variant[0])
    shapes = sizes(branches, shape, 5)
    first, *rest = operands(shapes, dtype)
    tensors = [first, *(torch.randn_like(first) for _ in range(branches - 1)), *rest[branches - 1 :]]
    assert unsupported(variant, shapes, dtype, 87) == []
    y = interpret(launches(variant, shapes, dtype, 87), dict(zip(inputs(variant), tensors, strict=True)), shape)
    assert_as_good_as(y, functools.partial(reference, variant), *tensors)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 17, 7, 5), (1, 3, 67, 71), (1, 130, 2, 2)])
def test_any_sizes(shape: tuple[int, ...]) -> None:
    check("2-relu", shape, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_type(dtype: str) -> None:
    check("2-relu", (2, 17, 7, 5), dtype)


@pytest.mark.parametrize("variant", ["3-silu", "4-identity"])
def test_more_branches(variant: str) -> None:
    check(variant, (2, 9, 5, 3), "float32")


def test_too_many_branches_are_refused_and_those_that_are_one_tensor() -> None:
    stacked = [(1, 2, 8, 4, 4), *sizes(2, (1, 8, 4, 4), 4)[2:]]
    assert unsupported("stack-2-relu", stacked, "float16", 87) == ["branches that are one tensor"]
    assert unsupported("5-relu", sizes(5, (1, 8, 4, 4), 4), "float16", 87) == ["5 branches; at most 4"]


def test_cost_counts_the_branches_as_often_as_they_are_read() -> None:
    weights = 4 * 64 + 4 + 2 * 64 * 4 + 2 * 64
    found = cost("2-relu", sizes(2, (2, 64, 8, 8), 4), "float16")
    assert (found.bytes, found.moved) == (2 * (3 * 2 * 64 * 64 + weights), 2 * (5 * 2 * 64 * 64 + weights))
