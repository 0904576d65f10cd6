"""SoftmaxAttention's kernel: the softmax runs along with the products, so that no scores are ever written.

A program holds a block of queries and goes over the keys once, block by block. It keeps the largest score m so far,
the sum l of exp(score - m), and the sum of exp(score - m) v; when m grows, the sums are scaled down. Scores, sums and
accumulators are float32, products multiply in the inputs' type: on tensor cores, but for float32, and for sm_75, for
which Triton makes no code that uses them.

    y = sum / l                      and, with a residual, gamma y + x in the same pass (SAGAN, non-local)

Any layout of q, k, v and y in which axes only change places is read and written as it is: "bhnd" (ONNX, heads before
tokens), "bnhd" (tokens first), "bhdn" (a map of channels, as convolutions make it). Bytes: q, k, v and y once, since
the keys of one head stay in the L2 cache while its queries pass.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867; Dao, "FlashAttention-2",
arXiv 2307.08691. What differs: sizes d_qk != d_v, any layout, keep masks that fill, and the residual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.launch import ALIGNED, Cost, Launch, cdiv, factor, product, too_large
from edgeattn.kernels.products import multiply
from edgeattn.kernels.tuned import Blocks, attention_blocks
from edgeattn.tensors import Dim, dtype_named

LARGEST_HEAD = 256
DTYPES = ("float16", "bfloat16", "float32")
LOG2_E = tl.constexpr(math.log2(math.e))
AXES = ("sample", "head", "token", "channel")
MASK_AXES = ("sample", "head", "query", "key")


@triton.jit
def _block(
    q: tl.tensor,
    k: tl.tensor,  # pointers to (d, block_n) and (block_n, e), to bias and keep of (block_m, 1)
    v: tl.tensor,
    bias: tl.tensor,
    keep: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    first: tl.tensor,  # key
    keys: tl.tensor,
    k_token: tl.tensor,
    v_token: tl.tensor,
    bias_key: tl.tensor,
    keep_key: tl.tensor,
    known_row: tl.tensor,
    known_d: tl.tensor,
    known_e: tl.tensor,
    scale: tl.constexpr,
    fill: tl.constexpr,
    even: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One block of keys."""
    key = first + tl.arange(0, block_n)
    known = key < keys
    if even:
        k_tile = tl.load(k + key[None, :] * k_token, mask=known_d[:, None], other=0.0)
        v_tile = tl.load(v + key[:, None] * v_token, mask=known_e[None, :], other=0.0)
    else:
        k_tile = tl.load(k + key[None, :] * k_token, mask=known_d[:, None] & known[None, :], other=0.0)
        v_tile = tl.load(v + key[:, None] * v_token, mask=known[:, None] & known_e[None, :], other=0.0)
    scores = multiply(q, k_tile, tl.zeros((block_m, block_n), tl.float32))
    if bias is None and keep is None:
        if not even:
            scores = tl.where(known[None, :], scores, -float("inf"))
        highest = tl.maximum(peak, tl.max(scores, 1) * (scale * LOG2_E))
        weights = tl.exp2(scores * (scale * LOG2_E) - highest[:, None])
        shrink = tl.exp2(peak - highest)
    else:
        scores = scores * scale
        seen = known_row[:, None] & known[None, :]
        if bias is not None:
            scores += tl.load(bias + key[None, :] * bias_key, mask=seen, other=0.0).to(tl.float32)
        if keep is not None:
            scores = tl.where(tl.load(keep + key[None, :] * keep_key, mask=seen, other=0) != 0, scores, fill)
        if not even:
            scores = tl.where(known[None, :], scores, -float("inf"))
        highest = tl.maximum(peak, tl.max(scores, 1))
        # A row that is masked so far has no number to subtract; and masks of the lowest number may not overflow.
        base = tl.where(highest == -float("inf"), 0.0, highest)
        weights = tl.exp2((scores - base[:, None]) * LOG2_E)
        shrink = tl.exp2((peak - base) * LOG2_E)
    total = total * shrink + tl.sum(weights, 1)
    sums = multiply(weights.to(v_tile.dtype), v_tile, sums * shrink[:, None])
    return highest, total, sums


@triton.jit
def attend(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    bias: tl.tensor,
    keep: tl.tensor,
    x: tl.tensor,
    gamma: tl.tensor,
    y: tl.tensor,
    heads: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    q_sample: tl.tensor,
    q_head: tl.tensor,
    q_token: tl.tensor,
    q_channel: tl.tensor,
    k_sample: tl.tensor,
    k_head: tl.tensor,
    k_token: tl.tensor,
    k_channel: tl.tensor,
    v_sample: tl.tensor,
    v_head: tl.tensor,
    v_token: tl.tensor,
    v_channel: tl.tensor,
    y_sample: tl.tensor,
    y_head: tl.tensor,
    y_token: tl.tensor,
    y_channel: tl.tensor,
    bias_sample: tl.tensor,
    bias_head: tl.tensor,
    bias_query: tl.tensor,
    bias_key: tl.tensor,
    keep_sample: tl.tensor,
    keep_head: tl.tensor,
    keep_query: tl.tensor,
    keep_key: tl.tensor,
    d_qk: tl.constexpr,
    d_v: tl.constexpr,
    scale: tl.constexpr,
    fill: tl.constexpr,
    guarded: tl.constexpr,
    even: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_d: tl.constexpr,
    block_e: tl.constexpr,
) -> None:
    """One block of queries of one head: `pid = (sample, head, block)`."""
    blocks = tl.cdiv(queries, block_m)
    pair = tl.program_id(0) // blocks
    sample, head = pair // heads, pair % heads
    row = tl.program_id(0) % blocks * block_m + tl.arange(0, block_m)
    d, e = tl.arange(0, block_d), tl.arange(0, block_e)
    known_row, known_d, known_e = row < queries, d < d_qk, e < d_v

    q += sample * q_sample + head * q_head
    q_tile = tl.load(
        q + row[:, None] * q_token + d[None, :] * q_channel, mask=known_row[:, None] & known_d[None, :], other=0.0
    )
    if scale < 0:  # then the highest score is the highest product only of -q
        q_tile = -q_tile
    factor: tl.constexpr = scale if scale > 0 else -scale
    k += sample * k_sample + head * k_head + d[:, None] * k_channel
    v += sample * v_sample + head * v_head + e[None, :] * v_channel
    if bias is not None:
        bias += sample * bias_sample + head * bias_head + row[:, None] * bias_query
    if keep is not None:
        keep += sample * keep_sample + head * keep_head + row[:, None] * keep_query

    peak = tl.full((block_m,), -float("inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    sums = tl.zeros((block_m, block_e), tl.float32)
    for first in range(0, keys, block_n):
        peak, total, sums = _block(
            q_tile, k, v, bias, keep, peak, total, sums, first, keys, k_token, v_token, bias_key, keep_key,
            known_row, known_d, known_e, factor, fill, even, block_m, block_n,
        )  # fmt: skip

    means = sums / total[:, None]
    if guarded:
        means = tl.where(total[:, None] > 0, means, 0.0)
    place = sample * y_sample + head * y_head + row[:, None] * y_token + e[None, :] * y_channel
    known = known_row[:, None] & known_e[None, :]
    if x is not None:
        means = means * tl.load(gamma).to(tl.float32) + tl.load(x + place, mask=known, other=0.0).to(tl.float32)
    tl.store(y + place, means.to(y.dtype.element_ty), mask=known)


def inputs(variant: str, residual: bool = False) -> tuple[str, ...]:
    """What the kernel calls the node's inputs, in order; with a residual, two more."""
    words = {"bias": "bias", "filled": "keep"}
    masks = (words[word] for word in variant.split("-") if word in words)
    return ("q", "k", "v", *masks, *(("x", "gamma") if residual else ()))


def unsupported(
    variant: str,
    shapes: Sequence[Sequence[Dim]],
    dtype: str,
    arch: int,
    *,
    scale: float,
    layout: Sequence[str] = (),
    **_: object,
) -> list[str]:
    """Why this attention has no kernel.

    Args:
        variant: of the canonical node.
        shapes: of q, k, v, then bias and keep where the variant has them, in the canonical layout.
        dtype: of q, k and v.
        arch: compute capability, 87 for sm_87.
        scale: of the scores.
        layout: of q, k, v and y.
    """
    reasons = too_large(shapes) + ([] if scale else ["a scale of 0, which weighs all keys alike"])
    if dtype_named(dtype).name not in DTYPES:
        reasons.append(f"{dtype} inputs; it takes {', '.join(DTYPES)}")
    if dtype_named(dtype).name == "bfloat16" and arch < 80:
        reasons.append(f"bfloat16 on sm_{arch}; it starts with sm_80")
    q, k, v = shapes[:3]
    for name, size in (("q and k", q[3]), ("v", v[3])):
        if not isinstance(size, int):
            reasons.append(f"a head size of {name} that is dynamic: {size}")
        elif not 1 <= size <= LARGEST_HEAD:
            reasons.append(f"a head size of {name} of {size}; at most {LARGEST_HEAD}")
    for name, shape in (("key", k), ("value", v)):
        if shape[1] not in (1, q[1]):
            reasons.append(f"{shape[1]} {name} heads for {q[1]} query heads; it takes one or as many")
    if any(sorted(axes) != sorted("bhnd") for axes in layout):
        reasons.append(f"the layout {', '.join(layout)}; each is an order of b, h, n and d")
    return reasons


def launches(
    variant: str,
    shapes: Sequence[Sequence[Dim]],
    dtype: str,
    arch: int,
    *,
    scale: float,
    fill: float = 0.0,
    layout: Sequence[str] = ("bhnd",) * 4,
    residual: bool = False,
    bias_dtype: str = "",
    blocks: Blocks | None = None,
) -> list[Launch]:
    """The launch that computes y from q, k, v, bias and keep, and from x and gamma (1) if there is a `residual`.

    Args:
        variant: of the canonical node.
        shapes: of q, k, v, then bias and keep where the variant has them, in the canonical layout.
        dtype: of q, k, v, x, gamma and y.
        arch: compute capability, 87 for sm_87.
        scale: of the scores.
        fill: what replaces a score that `keep` is false for.
        layout: how q, k, v and y lie in memory; x lies as y does.
        residual: y = gamma y + x.
        bias_dtype: where it is another than dtype.
        blocks: others than those of the table.
    """
    has, (q, k, v, *masks) = variant.split("-"), shapes
    q_layout, k_layout, v_layout, y_layout = layout
    (samples, heads, queries, d_qk), keys, d_v = q, k[2], v[3]
    assert isinstance(d_qk, int)
    assert isinstance(d_v, int)
    block = blocks or attention_blocks(arch, dtype, max(d_qk, d_v), queries, product(samples, heads))
    names = inputs(variant)[3:]
    integers = {"heads": str(heads), "queries": str(queries), "keys": str(keys)}
    for name, shape, axes in (
        ("q", q, q_layout),
        ("k", k, k_layout),
        ("v", v, v_layout),
        ("y", (samples, heads, queries, d_v), y_layout),
    ):
        steps = _strides(shape, axes)
        integers |= {f"{name}_{word}": steps[axis] for word, axis in zip(AXES, "bhnd", strict=True)}
    for name, shape in zip(names, masks, strict=True):
        steps = _strides([1] * (4 - len(shape)) + list(shape), "bhnd")
        integers |= {f"{name}_{word}": steps[axis] for word, axis in zip(MASK_AXES, "bhnd", strict=True)}
    types = dict.fromkeys(("q", "k", "v", "y", *(("x", "gamma") if residual else ())), dtype)
    types |= {name: {"bias": bias_dtype or dtype, "keep": "bool"}[name] for name in names}
    absent = {name for name in ("bias", "keep", "x", "gamma") if name not in types}
    constants: dict[str, int | float | str | bool | None] = dict.fromkeys(absent)
    constants |= {f"{name}_{word}": 0 for name in absent & {"bias", "keep"} for word in MASK_AXES}
    return [
        Launch(
            "softmax_attention.attend",
            types,
            integers,
            constants
            | {
                "d_qk": d_qk,
                "d_v": d_v,
                "scale": scale,
                "fill": fill,
                "guarded": "guarded" in has,
                "even": factor(str(keys)) % block.n == 0,
                "block_m": block.m,
                "block_n": block.n,
                "block_d": _padded(d_qk),
                "block_e": _padded(d_v),
            },
            product(cdiv(queries, block.m), samples, heads),
            block.warps,
            block.stages,
        )
    ]


def _padded(size: int) -> int:
    """The block that holds a head: a power of two, and what tensor cores multiply at least."""
    return max(ALIGNED, int(triton.next_power_of_2(size)))


def _strides(shape: Sequence[Dim], axes: str) -> dict[str, str]:
    """Elements from one index to the next along b, h, n and d, stored in the order of `axes`; 0 along a size of 1."""
    sizes = dict(zip("bhnd", shape, strict=True))
    return {
        axis: "0" if sizes[axis] == 1 else product(*(sizes[inner] for inner in axes[place + 1 :]))
        for place, axis in enumerate(axes)
    }


def cost(
    variant: str,
    shapes: Sequence[Sequence[int]],
    dtype: str,
    *,
    residual: bool = False,
    bias_dtype: str = "",
    **_: object,
) -> Cost:
    """FLOPs of the two products, and the bytes of all inputs and y."""
    (samples, heads, queries, d_qk), k, v = shapes[:3]
    outputs = samples * heads * queries * v[3]
    types = {"bias": bias_dtype or dtype, "keep": "bool"}
    widths = [dtype_named(types.get(name, dtype)).bits // 8 for name in inputs(variant)]
    read = sum(width * math.prod(shape) for width, shape in zip(widths, shapes, strict=True))
    moved = read + widths[0] * outputs * (2 if residual else 1)
    return Cost(2 * samples * heads * queries * k[2] * (d_qk + v[3]), moved, moved)
