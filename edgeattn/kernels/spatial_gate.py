"""SpatialGate's kernels: planes of mean and maximum, and the map weighed by their convolution, as in `planes`.

"conv-GATE", which weighs a place by its own channels, takes one kernel: a program sums up the channels of its places,
and reads them again, from the caches, to weigh them. Bytes: the map read once for that, else twice, and y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.gating import RESIDUAL, coded, gated, reciprocal, width_of, written
from edgeattn.kernels.launch import Cost, Launch, cdiv, product
from edgeattn.kernels.planes import PLACES, plane_launches
from edgeattn.kernels.pooling import TILE, known, places_of, power, refusals
from edgeattn.tensors import Dim, dtype_named


@triton.jit
def weigh(
    x: tl.tensor,
    w: tl.tensor,
    b: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    channels: tl.tensor,
    places: tl.tensor,
    gate: tl.constexpr,
    residual: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """One block of places, x * gate(sum over c of w x + b)."""
    blocks = tl.cdiv(places, block_p)
    place = tl.program_id(0) % blocks * block_p + tl.arange(0, block_p)
    first = tl.program_id(0) // blocks * channels
    inside = place < places
    logits = tl.zeros((block_c, block_p), tl.float32)
    for start in range(0, channels, block_c):
        c = start + tl.arange(0, block_c)
        seen = (c < channels)[:, None] & inside[None, :]
        tile = tl.load(x + (first + c)[:, None] * places + place[None, :], mask=seen, other=0.0).to(tl.float32)
        logits += tile * tl.load(w + c, mask=c < channels, other=0.0).to(tl.float32)[:, None]
    weights = gated(tl.sum(logits, 0) + tl.load(b).to(tl.float32), gate, residual)
    factor = reciprocal(y_scale)
    for start in range(0, channels, block_c):
        c = start + tl.arange(0, block_c)
        seen = (c < channels)[:, None] & inside[None, :]
        at = (first + c)[:, None] * places + place[None, :]
        tile = tl.load(x + at, mask=seen, other=0.0).to(tl.float32)
        tl.store(y + at, written(tile * weights[None, :], y, factor), mask=seen)


def inputs(variant: str) -> tuple[str, ...]:
    """What the kernels call the node's inputs, in order."""
    return ("x", "w", "b")


def unsupported(variant: str, shapes: Sequence[Sequence[Dim]], dtype: str, arch: int, **_: object) -> list[str]:
    """Why this gate has no kernel; `shapes` are those of x, w and b."""
    return refusals(shapes[0], dtype)


def launches(
    variant: str,
    shapes: Sequence[Sequence[Dim]],
    dtype: str,
    arch: int,
    *,
    pads: Sequence[int] = (0, 0, 0, 0),
    kernel_shape: Sequence[int] = (1, 1),
    codes: bool = False,
) -> list[Launch]:
    """The launches that compute y (B, C, H, W) from x, w and b."""
    shape, kind = shapes[0], variant.removeprefix("conv-")
    gate = kind.removesuffix(RESIDUAL), kind.endswith(RESIDUAL)
    if kind == variant:
        return plane_launches(shape, dtype, kernel_shape, pads, gate, channel=False, codes=codes)
    samples, channels, places = shape[0], shape[1], places_of(shape)
    block_p = power(known(places), 16, PLACES)
    launch = Launch(
        "spatial_gate.weigh",
        {"x": dtype, "w": dtype, "b": dtype, "y": dtype},
        {"channels": str(channels), "places": places},
        {"gate": gate[0], "residual": gate[1], "block_c": TILE // block_p, "block_p": block_p},
        product(cdiv(known(places), block_p), samples),
        warps=4,
    )
    return coded([launch], codes)


def cost(variant: str, shapes: Sequence[Sequence[int]], dtype: str, *, codes: bool = False, **_: object) -> Cost:
    """FLOPs of collapsing, convolution and product; the map read as often as the kernels do, y and the weights."""
    x, w, b = shapes
    count, places = math.prod(x), x[0] * x[2] * x[3]
    convolution = 2 * places * math.prod(w)
    flops = convolution + count + (0 if variant.startswith("conv-") else 2 * count)
    width, numbers = dtype_named(dtype).bits // 8, math.prod(w) + math.prod(b)
    reads = 1 if variant.startswith("conv-") else 2
    y = count * width_of(dtype, codes)
    return Cost(flops, width * (count + numbers) + y, width * (reads * count + numbers) + y)
