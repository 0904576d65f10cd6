from __future__ import annotations

import functools

import pytest
import torch

from edgeattn.kernels.channel_gate import cost, inputs, launches, unsupported
from edgeattn.ops.channel_gate import reference
from tests.kernels.interpreted import assert_as_good_as, interpret, operands

DTYPES = ("float16", "bfloat16", "float32")


def tensors_of(variant: str, shape: tuple[int, ...], dtype: str, hidden: int, taps: int = 3) -> list[torch.Tensor]:
    channels = shape[1]
    hidden = channels if "ese" in variant else hidden
    sizes = {
        "x": shape, "w": (1, 1, taps), "b": (1,), "w1": (hidden, channels), "b1": (hidden,), "g": (hidden,),
        "h": (hidden,), "s": (1, channels), "w2": (channels, hidden), "b2": (channels,),
    }  # fmt: skip
    return operands([sizes[name] for name in inputs(variant)], dtype)


def check(variant: str, shape: tuple[int, ...], dtype: str, hidden: int = 5, **attributes: object) -> None:
    tensors = tensors_of(variant, shape, dtype, hidden)
    shapes = [tuple(tensor.shape) for tensor in tensors]
    assert unsupported(variant, shapes, dtype, 87) == []
    planned = launches(variant, shapes, dtype, 87, **attributes)
    y = interpret(planned, dict(zip(inputs(variant), tensors, strict=True)), shape)
    assert_as_good_as(y, functools.partial(reference, variant, **attributes), *tensors)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 17, 7, 5), (3, 64, 1, 3), (1, 3, 67, 71), (1, 300, 2, 2)])
def test_any_sizes(shape: tuple[int, ...]) -> None:
    check("avg-relu-sigmoid", shape, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_type(dtype: str) -> None:
    check("avg-relu-sigmoid", (2, 17, 7, 5), dtype)


@pytest.mark.parametrize("pool", ["max", "avgmax"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_pooling(pool: str, dtype: str) -> None:
    check(f"{pool}-relu-sigmoid", (2, 9, 71, 67), dtype)


@pytest.mark.parametrize("act", ["silu", "gelu", "hardswish", "identity"])
def test_any_activation(act: str) -> None:
    check(f"avg-{act}-sigmoid", (2, 9, 5, 3), "float32")


@pytest.mark.parametrize("gate", ["hardsigmoid", "tanh", "add", "sigmoid+1", "tanh+1"])
def test_any_gate(gate: str) -> None:
    check(f"avg-relu-{gate}", (2, 9, 5, 3), "float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalised_layers(dtype: str) -> None:
    check("avg-ln-relu-add", (2, 40, 5, 3), dtype, hidden=97, epsilon=1e-5)


@pytest.mark.parametrize("variant", ["attn-relu-sigmoid", "attn-ln-relu-add", "attn-ese-add"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 17, 7, 5), (2, 40, 13, 29)])
def test_pooling_by_attention(shape: tuple[int, ...], variant: str) -> None:
    check(variant, shape, "float32", **({"epsilon": 1e-5} if "ln" in variant else {}))


@pytest.mark.parametrize("variant", ["ese-hardsigmoid", "eca-sigmoid", "eca-bias-sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_of_one_layer(variant: str, dtype: str) -> None:
    check(variant, (2, 70, 5, 3), dtype, **({"pads": (2, 0)} if "eca" in variant else {}))


def test_one_plan_serves_all_sizes() -> None:
    shapes = [("n", 17, "h", "w"), (5, 17), (5,), (17, 5), (17,)]
    planned = launches("avgmax-relu-sigmoid", shapes, "float32", 87)
    for shape in [(1, 17, 1, 1), (3, 17, 71, 67)]:
        tensors = tensors_of("avgmax-relu-sigmoid", shape, "float32", 5)
        dims = {"n": shape[0], "h": shape[2], "w": shape[3]}
        y = interpret(planned, dict(zip(inputs("avgmax-relu-sigmoid"), tensors, strict=True)), shape, dims)
        assert_as_good_as(y, functools.partial(reference, "avgmax-relu-sigmoid"), *tensors)


def test_limits_are_said() -> None:
    assert unsupported("avg-relu-add", [(4096, 64, 128, 64)], "float16", 87) == [
        "a tensor 4096x64x128x64; at most 2147483647 elements"
    ]
    assert unsupported("avg-relu-add", [(1, "c", 8, 8)], "int8", 87) == [
        "int8 inputs; it takes float16, bfloat16, float32",
        "a number of channels that is dynamic: c",
    ]


def test_cost_counts_the_map_as_often_as_it_is_read() -> None:
    shapes = [(2, 64, 8, 8), (4, 64), (4,), (64, 4), (64,)]
    weights = 2 * 4 * 64 + 4 + 64
    found = cost("avg-relu-sigmoid", shapes, "float16")
    assert (found.bytes, found.moved) == (2 * (2 * 2 * 64 * 64 + weights), 2 * (3 * 2 * 64 * 64 + weights))
