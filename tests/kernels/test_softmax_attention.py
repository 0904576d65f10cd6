from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch

from edgeattn.kernels.launch import Launch
from edgeattn.kernels.softmax_attention import cost, launches, unsupported
from edgeattn.ops.softmax_attention import reference
from tests.kernels.interpreted import assert_as_good_as, interpret

DTYPES = ("float16", "bfloat16", "float32")
ORDERS = {"bhnd": (0, 1, 2, 3), "bnhd": (0, 2, 1, 3), "bhdn": (0, 1, 3, 2)}


def tensors(shapes: Sequence[Sequence[int]], dtype: str) -> list[torch.Tensor]:
    return [torch.randn(tuple(shape)).to(getattr(torch, dtype)) for shape in shapes]


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    return tensor.permute(ORDERS[layout]).contiguous()


def attended(
    variant: str,
    inputs: Sequence[torch.Tensor],
    *,
    layout: Sequence[str] = ("bhnd",) * 4,
    scale: float = 0.3,
    fill: float = 0.0,
    more: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The kernel's y in the canonical layout."""
    dtype = str(inputs[0].dtype).removeprefix("torch.")
    has = variant.split("-")
    shapes = [tuple(tensor.shape) for tensor in inputs]
    planned = launches(
        variant, shapes, dtype, 87, scale=scale, fill=fill, layout=layout, residual=bool(more),
        bias_dtype=str(inputs[3].dtype).removeprefix("torch.") if "bias" in has else "",
    )  # fmt: skip
    names = ["q", "k", "v", *(["bias"] if "bias" in has else []), *(["keep"] if "filled" in has else [])]
    named = dict(zip(names, inputs, strict=True))
    for name, axes in zip("qkv", layout, strict=False):
        named[name] = laid_out(named[name], axes)
    order = ORDERS[layout[3]]
    samples, heads, queries, _ = shapes[0]
    shape = (samples, heads, queries, shapes[2][3])
    y = interpret(planned, {**named, **(more or {})}, [shape[axis] for axis in order])
    return y.permute(order)  # each order is its own inverse


def check(variant: str, inputs: Sequence[torch.Tensor], **how: object) -> None:
    attributes = {name: how[name] for name in ("scale", "fill") if name in how}
    attributes = {"scale": 0.3, **attributes}
    formula = functools.partial(reference, variant, **attributes)
    assert_as_good_as(attended(variant, inputs, **how), formula, *inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1, 1, 1, 1), (2, 3, 7, 5, 3, 17), (1, 2, 131, 67, 8, 64), (1, 1, 17, 197, 40, 24), (1, 1, 3, 64, 256, 129)],
)
def test_any_sizes(dtype: str, sizes: tuple[int, ...]) -> None:
    samples, heads, queries, keys, d_qk, d_v = sizes
    shapes = [(samples, heads, queries, d_qk), (samples, heads, keys, d_qk), (samples, heads, keys, d_v)]
    check("", tensors(shapes, dtype))


@pytest.mark.parametrize("layout", [("bnhd",) * 4, ("bhdn",) * 4, ("bhdn", "bnhd", "bhnd", "bhdn")])
def test_any_layout(layout: Sequence[str]) -> None:
    check("", tensors([(2, 3, 19, 8), (2, 3, 35, 8), (2, 3, 35, 11)], "float16"), layout=layout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_of_a_map(dtype: str) -> None:
    q, k, v, x = tensors([(2, 1, 49, 5), (2, 1, 49, 5), (2, 1, 49, 40), (2, 1, 49, 40)], dtype)
    gamma = torch.tensor([0.7]).to(q.dtype)
    layout = ("bhdn",) * 4
    y = attended("", [q, k, v], layout=layout, scale=1.0, more={"x": laid_out(x, "bhdn"), "gamma": gamma})

    def formula(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor
    ) -> torch.Tensor:
        return gamma * reference("", q, k, v, scale=1.0) + x

    assert_as_good_as(y, formula, q, k, v, x, gamma)


@pytest.mark.parametrize("scale", [-1.5, 1.0])
def test_any_scale(scale: float) -> None:
    check("", tensors([(1, 2, 9, 8), (1, 2, 33, 8), (1, 2, 33, 8)], "float32"), scale=scale)


def test_heads_that_share_keys() -> None:
    check("", tensors([(2, 4, 9, 8), (2, 1, 33, 8), (2, 4, 33, 8)], "float32"))


@pytest.mark.parametrize("shape", [(2, 3, 9, 33), (3, 9, 33), (1, 1, 9, 33), (2, 1, 1, 33), (9, 1), (33,), (1,)])
def test_bias_of_any_shape(shape: tuple[int, ...]) -> None:
    check("bias", tensors([(2, 3, 9, 8), (2, 3, 33, 8), (2, 3, 33, 8), shape], "float16"))


def test_bias_of_a_wider_type() -> None:
    q, k, v = tensors([(1, 2, 9, 8), (1, 2, 33, 8), (1, 2, 33, 8)], "float16")
    check("bias-f32softmax", [q, k, v, 100 * torch.randn(9, 33)])


def masked(rows: int, keys: int) -> torch.Tensor:
    """Half of the keys hidden; of row 0 all, of row 1 the first 40."""
    keep = torch.rand(rows, keys) > 0.5
    keep[0], keep[1, :40], keep[1, 40:] = False, False, True
    return keep


def test_masks_of_minus_infinity() -> None:
    q, k, v = tensors([(1, 2, 9, 8), (1, 2, 50, 8), (1, 2, 50, 8)], "float32")
    bias = torch.zeros(9, 50).masked_fill(~masked(9, 50), -torch.inf)
    check("bias-guarded", [q, k, v, bias])
    y = attended("bias", [q, k, v, bias])
    assert y[:, :, 0].isnan().all()
    assert y[:, :, 1:].isfinite().all()


@pytest.mark.parametrize("lowest", [-1e9, torch.finfo(torch.float32).min])
def test_masks_of_low_numbers_leave_means_where_all_is_hidden(lowest: float) -> None:
    q, k, v = tensors([(1, 2, 9, 8), (1, 2, 50, 8), (1, 2, 50, 8)], "float32")
    keep = masked(9, 50)
    check("filled", [q, k, v, keep], fill=lowest)
    check("bias", [q, k, v, torch.zeros(9, 50).masked_fill(~keep, lowest)])


def test_bias_and_mask() -> None:
    q, k, v, bias = tensors([(2, 1, 9, 8), (2, 1, 50, 8), (2, 1, 50, 8), (9, 50)], "bfloat16")
    check("bias-filled-guarded", [q, k, v, bias, masked(9, 50)], fill=-100.0)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = tensors([(1, 1, 9, 8), (1, 1, 50, 8), (1, 1, 50, 8)], "float32")
    check("", [100 * q, 100 * k, v], scale=1.0)


def test_one_plan_serves_all_sizes() -> None:
    names = [("b", 2, "n", 8), ("b", 2, "m", 8), ("b", 2, "m", 8)]
    (planned,) = launches("", names, "float32", 87, scale=0.5)
    for samples, queries, keys in [(1, 1, 1), (3, 33, 65)]:
        q, k, v = tensors([(samples, 2, queries, 8), (samples, 2, keys, 8), (samples, 2, keys, 8)], "float32")
        y = interpret([planned], {"q": q, "k": k, "v": v}, q.shape, {"b": samples, "n": queries, "m": keys})
        assert_as_good_as(y, functools.partial(reference, "", scale=0.5), q, k, v)


def plan(*sizes: int | str, dtype: str = "float16", arch: int = 87) -> Launch:
    samples, heads, queries, keys, d_qk, d_v = sizes
    shapes = [(samples, heads, queries, d_qk), (samples, heads, keys, d_qk), (samples, heads, keys, d_v)]
    assert unsupported("", shapes, dtype, arch, scale=1.0) == []
    return launches("", shapes, dtype, arch, scale=1.0)[0]


def test_grid_covers_all_queries() -> None:
    launch = plan(2, 3, 1000, 7, 64, 64)
    rows = launch.constants["block_m"]
    assert isinstance(rows, int)
    assert int(launch.grid) == 2 * 3 * -(-1000 // rows)
    assert plan("b", 3, "n", 7, 64, 64).grid == f"3 * cdiv(n, {rows}) * b"


@pytest.mark.parametrize("arch", [80, 90])
def test_blocks_are_no_larger_than_there_is_work_for(arch: int) -> None:
    def rows(*sizes: int) -> tuple[object, int]:
        launch = plan(*sizes, arch=arch)
        return launch.constants["block_m"], launch.warps

    assert rows(1, 1, 1, 4096, 64, 64) == (16, 1)
    assert rows(1, 1, 20, 4096, 64, 64) == (32, 2)
    assert rows(1, 1, 4096, 4096, 64, 64) == (64, 4)
    assert rows(8, 8, 4096, 4096, 64, 64) == ((64, 4) if arch == 80 else (128, 8))


def test_limits_are_said() -> None:
    shapes = [(1, 4, 8, 300), (1, 2, 8, 300), (1, 4, 8, "c")]
    assert unsupported("", shapes, "float64", 87, scale=0.0, layout=("bhnd", "bhn")) == [
        "a scale of 0, which weighs all keys alike",
        "float64 inputs; it takes float16, bfloat16, float32",
        "a head size of q and k of 300; at most 256",
        "a head size of v that is dynamic: c",
        "2 key heads for 4 query heads; it takes one or as many",
        "the layout bhnd, bhn; each is an order of b, h, n and d",
    ]
    assert unsupported("", [(1, 1, 8, 8)] * 3, "bfloat16", 75, scale=1.0) == ["bfloat16 on sm_75; it starts with sm_80"]


def test_cost_counts_both_products_and_each_tensor_once() -> None:
    shapes = [(2, 3, 10, 8), (2, 3, 20, 8), (2, 3, 20, 64)]
    moved = 2 * 6 * (10 * 8 + 20 * 8 + 20 * 64 + 10 * 64)
    assert cost("", shapes, "float16") == (2 * 6 * 10 * 20 * (8 + 64), moved, moved)
    assert cost("", shapes, "float16", residual=True).bytes == moved + 2 * 6 * 10 * 64
    masks = [(10, 20), (10, 20)]
    assert cost("bias-filled", [*shapes, *masks], "float16", bias_dtype="float32").bytes == moved + (4 + 1) * 200
