"""Gates that write INT8 codes. Oracle: QuantizeLinear's formula on the reference in float64."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from edgeattn.kernels import kernel
from edgeattn.kernels.selective_kernel import launches
from edgeattn.ops import ALL_OPS
from tests.kernels.interpreted import assert_codes, interpret, operands

DTYPES = ("float16", "bfloat16", "float32")
SHAPES = [(1, 1, 1, 1), (2, 17, 7, 5), (3, 64, 1, 3), (1, 3, 67, 13), (1, 300, 2, 2)]
WINDOW = {"pads": (1, 1, 1, 1), "kernel_shape": (3, 3)}
Sizes = list[tuple[int, ...]]


def layers(channels: int, outputs: int) -> Sizes:
    return [(5, channels), (5,), (outputs, 5), (outputs,)]


def gates(shape: tuple[int, ...]) -> dict[str, tuple[str, str, Sizes, dict[str, Any]]]:
    """By name: op, variant, shapes of the inputs, attributes."""
    c, plane = shape[1], [(1, 2, 3, 3), (1,)]
    gate = [(9, c, 1, 1), (9, c, 1, 1), (9,), (1, 9, 1, 1), (1,)]
    return {
        "selective": ("SelectiveKernel", "3-relu", [shape] * 3 + layers(c, 3 * c), {}),
        "channel": ("ChannelGate", "avgmax-relu-sigmoid", [shape, *layers(c, c)], {}),
        "channel, of one layer": ("ChannelGate", "eca-sigmoid", [shape, (1, 1, 3)], {"pads": (1, 1)}),
        "channel, added": ("ChannelGate", "avg-relu-add", [shape, *layers(c, c)], {}),
        "spatial": ("SpatialGate", "sigmoid", [shape, *plane], WINDOW),
        "spatial, of one kernel": ("SpatialGate", "conv-sigmoid", [shape, (1, c, 1, 1), (1,)], {}),
        "both": ("CBAM", "relu", [shape, *layers(c, c), *plane], WINDOW),
        "of a signal": ("AttentionGate", "same", [shape, shape, *gate], {}),
    }


GATES = list(gates(SHAPES[0]))


def check(name: str, shape: tuple[int, ...], dtype: str) -> None:
    """At a scale that lets the largest values saturate."""
    op, variant, sizes, attributes = gates(shape)[name]
    maps = sum(size == shape for size in sizes)
    first, *rest = operands(sizes, dtype)
    tensors = [first, *(torch.randn_like(first) for _ in range(maps - 1)), *rest[maps - 1 :]]
    reference = functools.partial(next(known for known in ALL_OPS if known.name == op).reference, variant, **attributes)
    largest = reference(*(tensor.double() for tensor in tensors)).abs().max()
    scale = (largest / 160).to(first.dtype).reshape(1)
    planned = kernel(op).launches(variant, sizes, dtype, 87, codes=True, **attributes)
    given = dict(zip(kernel(op).inputs(variant), tensors, strict=True)) | {"y_scale": scale}
    assert_codes(interpret(planned, given, shape), float(scale), reference, *tensors)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_of_any_sizes(name: str, shape: tuple[int, ...]) -> None:
    check(name, shape, "float16")


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_any_type(name: str, dtype: str) -> None:
    check(name, (2, 17, 7, 5), dtype)


def test_halves_go_to_the_even_code_and_what_is_too_large_saturates() -> None:
    halves = torch.arange(-140, 140, dtype=torch.float32) / 2 + 0.5
    x = torch.cat([halves, torch.tensor([127.5, 128.5, 1e9, -127.5, -128.5, -1e9])]).reshape(1, 1, 2, -1)
    sizes = [tuple(x.shape)] * 2 + [(1, 1), (1,), (2, 1), (2,)]
    weights = {name: torch.zeros(size) for name, size in zip(("w1", "b1", "w2", "b2"), sizes[2:], strict=True)}
    given = {"x": x, "u1": x, **weights, "y_scale": torch.ones(1)}  # half of x and half of u1, both exact
    y = interpret(launches("2-relu", sizes, "float32", 87, codes=True), given, x.shape)
    assert torch.equal(y, x.round().clamp(-128, 127).to(torch.int8))


@pytest.mark.parametrize("name", GATES)
def test_codes_cost_a_byte_each(name: str) -> None:
    shape = (2, 64, 8, 8)
    op, variant, sizes, attributes = gates(shape)[name]
    wide, narrow = (kernel(op).cost(variant, sizes, "float16", codes=codes, **attributes) for codes in (False, True))
    assert wide.flops == narrow.flops
    assert (wide.bytes - narrow.bytes, wide.moved - narrow.moved) == (2 * 64 * 64, 2 * 64 * 64)
