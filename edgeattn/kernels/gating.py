"""What the gates share after pooling: the first layer, the weights of the channels, and how the result is written.

Sums and layers are float32, whatever the type of the weights. The result has the type of the map, or is INT8 codes like
QuantizeLinear's: clamp(round(y * (1 / y_scale)), -128, 127), with a float32 reciprocal for a division, halves to even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import triton
import triton.language as tl

from edgeattn.kernels.launch import Launch, cdiv, product
from edgeattn.kernels.pooling import POOLED, attended, pooled, power
from edgeattn.tensors import Dim, dtype_named

RESIDUAL = "+1"  # as in edgeattn.ops.activations, which needs onnx; kernels are checked where only PyTorch is
SPAN = 4  # tiles that a program weighs, once it has computed the weights of their channels


@triton.jit
def activated(z: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """An activation, in float32."""
    if kind == "relu":
        z = tl.maximum(z, 0.0)
    elif kind == "silu":
        z = z * tl.sigmoid(z)
    elif kind == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif kind == "hardswish":
        z = z * gated(z, "hardsigmoid", False)
    return z


@triton.jit
def gated(z: tl.tensor, kind: tl.constexpr, residual: tl.constexpr) -> tl.tensor:
    """A gate, in float32; a residual one is 1 + gate."""
    if kind == "sigmoid":
        z = tl.sigmoid(z)
    elif kind == "tanh":
        z = 2.0 * tl.sigmoid(2.0 * z) - 1.0
    else:
        z = tl.minimum(tl.maximum(z * (1.0 / 6.0) + 0.5, 0.0), 1.0)
    if residual:
        z += 1.0
    return z


@triton.jit
def tile_of(
    channels: tl.tensor, places: tl.tensor, block_c: tl.constexpr, run: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """What a program weighs: a sample, a block of its channels, and which run of places.

    The first programs take the last tiles, since what was pooled last is in the cache.
    """
    pieces = tl.cdiv(places, run)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    blocks = tl.cdiv(channels, block_c)
    c = program // pieces % blocks * block_c + tl.arange(0, block_c)
    return program // pieces // blocks, c, program % pieces


@triton.jit
def project(
    sums: tl.tensor,
    peaks: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    w1: tl.tensor,
    b1: tl.tensor,
    z: tl.tensor,
    samples: tl.tensor,
    channels: tl.tensor,
    hidden: tl.tensor,
    places: tl.tensor,
    chunks: tl.tensor,
    block_r: tl.constexpr,
    block_c: tl.constexpr,
) -> None:
    """W1 pool(x) + b1 for each pooling, sample and row of W1: z (pools, samples, hidden)."""
    blocks = tl.cdiv(hidden, block_r)
    sample = tl.program_id(0) // blocks
    r = tl.program_id(0) % blocks * block_r + tl.arange(0, block_r)
    known_r = r < hidden
    of_mean = tl.zeros((block_r, block_c), tl.float32)
    of_peak = tl.zeros((block_r, block_c), tl.float32)
    for first in range(0, channels, block_c):
        c = first + tl.arange(0, block_c)
        known = c < channels
        weights = tl.load(
            w1 + r[:, None] * channels + c[None, :], mask=known_r[:, None] & known[None, :], other=0.0
        ).to(tl.float32)
        row = sample * channels + c
        if tops is not None:
            of_mean += weights * attended(sums, tops, totals, row, sample, known, chunks)[None, :]
        elif sums is not None:
            of_mean += weights * pooled(sums, peaks, row, known, places, chunks, False)[None, :]
        if peaks is not None:
            of_peak += weights * pooled(sums, peaks, row, known, places, chunks, True)[None, :]
    bias = tl.load(b1 + r, mask=known_r, other=0.0).to(tl.float32)
    place = z + sample * hidden + r
    if sums is not None:
        tl.store(place, tl.sum(of_mean, 1) + bias, mask=known_r)
        place += samples * hidden
    if peaks is not None:
        tl.store(place, tl.sum(of_peak, 1) + bias, mask=known_r)


@triton.jit
def channel_logits(
    z: tl.tensor,
    g: tl.tensor,
    h: tl.tensor,
    w2: tl.tensor,
    b2: tl.tensor,
    sample: tl.tensor,
    c: tl.tensor,  # rows of W2
    known_c: tl.tensor,
    samples: tl.tensor,
    hidden: tl.tensor,
    pools: tl.constexpr,
    act: tl.constexpr,
    epsilon: tl.constexpr,
    block_h: tl.constexpr,
) -> tl.tensor:
    """W2 act(norm(z)) + b2, added over the poolings; the normalisation, by g and h, may be left out."""
    total = tl.zeros(c.shape, tl.float32)
    for index in tl.static_range(pools):
        row = z + (index * samples + sample) * hidden
        mean = 0.0
        spread = 1.0
        if g is not None:
            squares = 0.0
            for first in range(0, hidden, block_h):
                r = first + tl.arange(0, block_h)
                mean += tl.sum(tl.load(row + r, mask=r < hidden, other=0.0), 0)
            mean = mean / hidden
            for first in range(0, hidden, block_h):
                r = first + tl.arange(0, block_h)
                off = tl.where(r < hidden, tl.load(row + r, mask=r < hidden, other=0.0) - mean, 0.0)
                squares += tl.sum(off * off, 0)
            spread = 1.0 / tl.sqrt(squares / hidden + epsilon)
        for first in range(0, hidden, block_h):
            r = first + tl.arange(0, block_h)
            known = r < hidden
            value = tl.load(row + r, mask=known, other=0.0)
            if g is not None:
                scale = tl.load(g + r, mask=known, other=0.0).to(tl.float32)
                value = (value - mean) * spread * scale + tl.load(h + r, mask=known, other=0.0).to(tl.float32)
            weights = tl.load(w2 + c[:, None] * hidden + r[None, :], mask=known_c[:, None] & known[None, :], other=0.0)
            total += tl.sum(weights.to(tl.float32) * activated(value, act)[None, :], 1)
        total += tl.load(b2 + c, mask=known_c, other=0.0).to(tl.float32)
    return total


@triton.jit
def reciprocal(y_scale: tl.tensor) -> tl.tensor:
    """What a result is multiplied by to be rounded to codes; 1 where it is none."""
    factor = 1.0
    if y_scale is not None:
        factor = 1.0 / tl.load(y_scale).to(tl.float32)
    return factor


@triton.jit
def written(value: tl.tensor, y: tl.tensor, factor: tl.tensor) -> tl.tensor:
    """A float32 result as y holds it: in its type, or as INT8 codes."""
    if y.dtype.element_ty == tl.int8:
        value = tl.minimum(tl.maximum(value * factor, -128.0), 127.0)
        # Beside 1.5 * 2^23 a float32 has no digits behind the point: rint, which Triton's interpreter does not know.
        value = value + 12582912.0 - 12582912.0
    return value.to(y.dtype.element_ty)


def coded(steps: Sequence[Launch], codes: bool) -> list[Launch]:
    """Launches whose last one writes y as INT8 codes, by the tensor `y_scale` (1), if `codes`; else as it is."""
    *first, last = steps
    if not codes:
        return [*first, replace(last, constants={**last.constants, "y_scale": None})]
    return [*first, replace(last, pointers={**last.pointers, "y": "int8", "y_scale": last.pointers["y"]})]


def width_of(dtype: str, codes: bool) -> int:
    """Bytes of an element of y."""
    return 1 if codes else dtype_named(dtype).bits // 8


def project_launch(pooling: Launch, shape: Sequence[Dim], dtype: str, hidden: int) -> Launch:
    """`sums` and `peaks` to the scratch tensor `z`, by w1 and b1; `tops` and `totals` go with `sums`."""
    samples, channels = shape[0], shape[1]
    given = [name for name in POOLED if name in pooling.pointers]
    block_r = power(hidden, 1, 8)
    return Launch(
        "gating.project",
        {**dict.fromkeys(given, "float32"), "w1": dtype, "b1": dtype, "z": "float32"},
        {
            "samples": str(samples),
            "channels": str(channels),
            "hidden": str(hidden),
            "places": pooling.integers["places"],
            "chunks": pooling.integers["chunks"],
        },
        {
            "block_r": block_r,
            "block_c": power(channels, 16, 256),
            **{name: None for name in POOLED if name not in given},
        },
        product(cdiv(hidden, block_r), samples),
        warps=4,
        scratch={"z": product(2 if "peaks" in given and "sums" in given else 1, samples, hidden)},
    )
