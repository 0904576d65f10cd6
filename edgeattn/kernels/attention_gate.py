"""AttentionGate's kernel: both projections, their sum, the gate and the product in one pass over a block of places.

    y = x * sigmoid(wp relu(wx x + wg g + b) + bp)

A program holds wx x + wg g of its places, all F rows of it, in float32; the products multiply in the inputs' type. Then
it reads its part of x again, from the caches, to weigh it. Bytes: x, g and y once. Written out, with the sum, the ReLU
and the sigmoid at the ends of the convolutions, 4 F planes more are moved, and x twice; with F = C / 2 and g as large
as x that is twice as much. Variant "same" only: what resamples the gate reads a neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.gating import coded, reciprocal, width_of, written
from edgeattn.kernels.launch import Cost, Launch, cdiv, product, too_large
from edgeattn.kernels.pooling import known, places_of, power, refusals
from edgeattn.kernels.products import multiply
from edgeattn.tensors import Dim, dtype_named

LARGEST = 256  # rows of the projections
PLACES = 64  # in a block


@triton.jit
def projected(
    x: tl.tensor,
    w: tl.tensor,
    total: tl.tensor,
    sample: tl.tensor,
    place: tl.tensor,
    channels: tl.tensor,
    rows: tl.tensor,
    places: tl.tensor,
    block_f: tl.constexpr,
    block_c: tl.constexpr,
) -> tl.tensor:
    """The rows of w x, added to a total."""
    f = tl.arange(0, block_f)
    inside = place < places
    for first in range(0, channels, block_c):
        c = first + tl.arange(0, block_c)
        seen = c < channels
        weights = tl.load(w + f[:, None] * channels + c[None, :], mask=(f < rows)[:, None] & seen[None, :], other=0.0)
        spot = (sample * channels + c)[:, None] * places + place[None, :]
        total = multiply(weights, tl.load(x + spot, mask=seen[:, None] & inside[None, :], other=0.0), total)
    return total


@triton.jit
def weigh(
    x: tl.tensor,
    g: tl.tensor,
    wx: tl.tensor,
    wg: tl.tensor,
    b: tl.tensor,
    wp: tl.tensor,
    bp: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    channels: tl.tensor,
    signals: tl.tensor,
    rows: tl.tensor,
    places: tl.tensor,
    block_f: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """One block of places."""
    blocks = tl.cdiv(places, block_p)
    sample = tl.program_id(0) // blocks
    place = tl.program_id(0) % blocks * block_p + tl.arange(0, block_p)
    f = tl.arange(0, block_f)
    total = tl.zeros((block_f, block_p), tl.float32)
    total = projected(g, wg, total, sample, place, signals, rows, places, block_f, block_c)
    total = projected(x, wx, total, sample, place, channels, rows, places, block_f, block_c)
    total = tl.maximum(total + tl.load(b + f, mask=f < rows, other=0.0).to(tl.float32)[:, None], 0.0)
    logits = tl.sum(total * tl.load(wp + f, mask=f < rows, other=0.0).to(tl.float32)[:, None], 0)
    weights = tl.sigmoid(logits + tl.load(bp).to(tl.float32))
    factor = reciprocal(y_scale)
    for first in range(0, channels, block_c):
        c = first + tl.arange(0, block_c)
        seen = (c < channels)[:, None] & (place < places)[None, :]
        spot = (sample * channels + c)[:, None] * places + place[None, :]
        tile = tl.load(x + spot, mask=seen, other=0.0).to(tl.float32) * weights[None, :]
        tl.store(y + spot, written(tile, y, factor), mask=seen, eviction_policy="evict_first")


def inputs(variant: str) -> tuple[str, ...]:
    """What the kernel calls the node's inputs, in order."""
    return ("x", "g", "wx", "wg", "b", "wp", "bp")


def unsupported(variant: str, shapes: Sequence[Sequence[Dim]], dtype: str, arch: int, **_: object) -> list[str]:
    """Why this gate has no kernel; `shapes` are those of x, g and the weights."""
    if variant != "same":
        return [f"a gate on a map of another size, variant {variant!r}"]
    reasons = [*refusals(shapes[0], dtype), *too_large(shapes[1:2])]
    if dtype_named(dtype).name == "bfloat16" and arch < 80:
        reasons.append(f"bfloat16 on sm_{arch}; it starts with sm_80")
    if isinstance(shapes[2][0], int) and shapes[2][0] > LARGEST:
        reasons.append(f"projections of {shapes[2][0]} channels; at most {LARGEST}")
    return reasons


def launches(
    variant: str, shapes: Sequence[Sequence[Dim]], dtype: str, arch: int, *, codes: bool = False
) -> list[Launch]:
    """The launch that computes y (B, C, H, W) from x, g and the weights."""
    (samples, channels, *_), signals, rows = shapes[0], shapes[1][1], shapes[2][0]
    places = places_of(shapes[0])
    slow = dtype == "float32" or arch < 80  # no tensor cores: smaller products, that stay in the registers
    block_p = power(known(places), 16, PLACES // 4 if slow else PLACES)
    block_f = power(rows, 16, LARGEST)
    launch = Launch(
        "attention_gate.weigh",
        dict.fromkeys((*inputs(variant), "y"), dtype),
        {"channels": str(channels), "signals": str(signals), "rows": str(rows), "places": places},
        {"block_f": block_f, "block_c": 16 if slow else 32, "block_p": block_p},
        product(cdiv(known(places), block_p), samples),
        warps=8 if block_f > 128 else 4,
        stages=1 if slow else 2,
    )
    return coded([launch], codes)


def cost(variant: str, shapes: Sequence[Sequence[int]], dtype: str, *, codes: bool = False, **_: object) -> Cost:
    """FLOPs of the projections, the gate and the product; bytes of x, g, y and the weights."""
    x, g, *weights = shapes
    places, rows = math.prod(x) // x[1], weights[0][0]
    flops = 2 * places * rows * (x[1] + g[1] + 1) + 2 * places * rows + math.prod(x)
    read = dtype_named(dtype).bits // 8 * (math.prod(x) + math.prod(g) + sum(map(math.prod, weights)))
    moved = read + math.prod(x) * width_of(dtype, codes)
    return Cost(flops, moved, moved)
