"""SelectiveKernel's kernels: pool the sum of the branches, multiply the first layer, and mix the branches.

    pool     mean of u_0 + ... + u_M-1         reads all branches
    project  W1 mean + b1
    mix      y = sum_m a_m u_m                 reads all branches, writes y

The weights depend on all places, so 2 M reads and one write of a map are the fewest. Written out, the op moves about
6 M + 2: it writes the sum, and every product of a branch with its weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.gating import (
    SPAN,
    channel_logits,
    coded,
    project_launch,
    reciprocal,
    tile_of,
    width_of,
    written,
)
from edgeattn.kernels.launch import Cost, Launch, cdiv, product
from edgeattn.kernels.pooling import TILE, known, places_of, pool_launch, power, refusals
from edgeattn.tensors import Dim, dtype_named

BRANCHES = ("x", "u1", "u2", "u3")


@triton.jit
def mix(
    x: tl.tensor,
    u1: tl.tensor,
    u2: tl.tensor,
    u3: tl.tensor,
    z: tl.tensor,
    w2: tl.tensor,
    b2: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    samples: tl.tensor,
    channels: tl.tensor,
    hidden: tl.tensor,
    places: tl.tensor,
    act: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
    block_h: tl.constexpr,
    span: tl.constexpr,
) -> None:
    """The branches, each weighed by its channel's share of the softmax across them; u2 and u3 may be left out."""
    sample, c, piece = tile_of(channels, places, block_c, block_p * span)
    seen = c < channels
    a0 = channel_logits(z, None, None, w2, b2, sample, c, seen, samples, hidden, 1, act, 0.0, block_h)
    a1 = channel_logits(z, None, None, w2, b2, sample, c + channels, seen, samples, hidden, 1, act, 0.0, block_h)
    a2 = tl.full((block_c,), -float("inf"), tl.float32)
    a3 = a2
    if u2 is not None:
        a2 = channel_logits(
            z, None, None, w2, b2, sample, c + 2 * channels, seen, samples, hidden, 1, act, 0.0, block_h
        )
    if u3 is not None:
        a3 = channel_logits(
            z, None, None, w2, b2, sample, c + 3 * channels, seen, samples, hidden, 1, act, 0.0, block_h
        )
    highest = tl.maximum(tl.maximum(a0, a1), tl.maximum(a2, a3))
    a0, a1, a2, a3 = tl.exp(a0 - highest), tl.exp(a1 - highest), tl.exp(a2 - highest), tl.exp(a3 - highest)
    total = a0 + a1 + a2 + a3
    row = (sample * channels + c) * places
    factor = reciprocal(y_scale)
    for step in range(span):
        place = (piece * span + step) * block_p + tl.arange(0, block_p)
        inside = seen[:, None] & (place < places)[None, :]
        spot = row[:, None] + place[None, :]
        mixed = (
            tl.load(x + spot, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
            * (a0 / total)[:, None]
        )
        mixed += (
            tl.load(u1 + spot, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
            * (a1 / total)[:, None]
        )
        if u2 is not None:
            mixed += (
                tl.load(u2 + spot, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
                * (a2 / total)[:, None]
            )
        if u3 is not None:
            mixed += (
                tl.load(u3 + spot, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
                * (a3 / total)[:, None]
            )
        tl.store(y + spot, written(mixed, y, factor), mask=inside, eviction_policy="evict_first")


def _words(variant: str) -> tuple[int, str]:
    """(branches, activation) of a variant."""
    number, _, act = variant.partition("-")
    return int(number), act


def inputs(variant: str) -> tuple[str, ...]:
    """What the kernels call the node's inputs, in order."""
    return (*BRANCHES[: _words(variant)[0]], "w1", "b1", "w2", "b2")


def unsupported(variant: str, shapes: Sequence[Sequence[Dim]], dtype: str, arch: int, **_: object) -> list[str]:
    """Why this op has no kernel; `shapes` are those of the branches and the weights."""
    if variant.startswith("stack-"):
        return ["branches that are one tensor"]
    reasons, count = refusals(shapes[0], dtype), _words(variant)[0]
    return [*reasons, f"{count} branches; at most {len(BRANCHES)}"] if count > len(BRANCHES) else reasons


def launches(
    variant: str, shapes: Sequence[Sequence[Dim]], dtype: str, arch: int, *, codes: bool = False
) -> list[Launch]:
    """The launches that compute y (B, C, H, W) from the branches and the weights, called as `inputs` says."""
    count, act = _words(variant)
    shape, hidden, maps = shapes[0], shapes[count][0], BRANCHES[:count]
    samples, channels, places = shape[0], shape[1], places_of(shape)
    assert isinstance(channels, int)
    assert isinstance(hidden, int)
    pooling = pool_launch(shape, dtype, ("avg",), maps)
    block_p = power(known(places), 16, 512)
    block_c = min(power(channels, 1, 64), TILE // block_p)
    last = Launch(
        "selective_kernel.mix",
        {**dict.fromkeys(maps, dtype), "z": "float32", "w2": dtype, "b2": dtype, "y": dtype},
        {"samples": str(samples), "channels": str(channels), "hidden": str(hidden), "places": places},
        {
            **dict.fromkeys(BRANCHES[count:]),
            "act": act,
            "block_c": block_c,
            "block_p": block_p,
            "block_h": power(hidden, 16, 64),
            "span": SPAN,
        },
        product(cdiv(known(places), block_p * SPAN), cdiv(channels, block_c), samples),
        warps=4,
    )
    return coded([pooling, project_launch(pooling, shape, dtype, hidden), last], codes)


def cost(variant: str, shapes: Sequence[Sequence[int]], dtype: str, *, codes: bool = False) -> Cost:
    """FLOPs of sums, layers and mixture; the branches read twice by the kernels, y and the weights."""
    count, x = _words(variant)[0], math.prod(shapes[0])
    numbers = sum(math.prod(shape) for shape in shapes[count:])
    flops = (count + 2 * count - 1) * x + 2 * shapes[0][0] * numbers
    width = dtype_named(dtype).bits // 8
    y = x * width_of(dtype, codes)
    return Cost(flops, width * (count * x + numbers) + y, width * (2 * count * x + numbers) + y)
