"""ChannelGate's kernels: pool the map, multiply the first layer, and weigh the map by what the second one makes of it.

    pool     x -> sums, maxima of rows           reads the map
    project  W1 pool(x) + b1                     a few kilobytes; not for eca
    scale    y = x * gate(W2 act(...) + b2)      reads the map, writes y

Since every weight depends on the whole of its channel, no kernel can do with fewer than two reads and one write, unless
the map stays in the L2 cache between them. The second read goes through it backwards, and so begins with what the first
one left there; what is read for the last time, or written, is the first to leave. A program of `scale` computes the
second layer for its own channels, which costs less than one launch more.

"attn-..." has `pool_by_attention` instead of `pool`, which goes over the map once too: a program computes the scores of
its places, and reads their channels again while they are in its caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.gating import (
    RESIDUAL,
    SPAN,
    channel_logits,
    coded,
    gated,
    project_launch,
    reciprocal,
    tile_of,
    width_of,
    written,
)
from edgeattn.kernels.launch import Cost, Launch, cdiv, product
from edgeattn.kernels.pooling import TILE, attention_pool_launch, known, places_of, pool_launch, pooled, power, refusals
from edgeattn.tensors import Dim, dtype_named

POOLS = {"avg": ("avg",), "max": ("max",), "avgmax": ("avg", "max"), "attn": ("attn",)}


@triton.jit
def scale(
    x: tl.tensor,
    sums: tl.tensor,
    z: tl.tensor,
    g: tl.tensor,
    h: tl.tensor,
    w: tl.tensor,
    b: tl.tensor,
    w2: tl.tensor,
    b2: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    samples: tl.tensor,
    channels: tl.tensor,
    hidden: tl.tensor,
    places: tl.tensor,
    chunks: tl.tensor,
    pools: tl.constexpr,
    act: tl.constexpr,
    gate: tl.constexpr,
    residual: tl.constexpr,
    epsilon: tl.constexpr,
    taps: tl.constexpr,
    before: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
    block_h: tl.constexpr,
    span: tl.constexpr,
) -> None:
    """A tile of x times its gate: by two layers, by one (no w2), or by a convolution over the channels (taps)."""
    sample, c, piece = tile_of(channels, places, block_c, block_p * span)
    known_c = c < channels
    if taps > 0:
        logits = tl.zeros((block_c,), tl.float32)
        for tap in range(taps):
            near = c + tap - before
            inside = (near >= 0) & (near < channels)
            mean = pooled(sums, None, sample * channels + near, inside, places, chunks, False)
            logits += tl.load(w + tap).to(tl.float32) * mean
        if b is not None:
            logits += tl.load(b).to(tl.float32)
    elif w2 is None:
        logits = tl.load(z + sample * channels + c, mask=known_c, other=0.0)
    else:
        logits = channel_logits(
            z, g, h, w2, b2, sample, c, known_c, samples, hidden, pools, act, epsilon, block_h
        )  # fmt: skip
    weights = logits if gate == "add" else gated(logits, gate, residual)
    row = (sample * channels + c) * places
    factor = reciprocal(y_scale)
    for step in range(span):
        place = (piece * span + step) * block_p + tl.arange(0, block_p)
        inside = known_c[:, None] & (place < places)[None, :]
        spot = row[:, None] + place[None, :]
        tile = tl.load(x + spot, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        tile = tile + weights[:, None] if gate == "add" else tile * weights[:, None]
        tl.store(y + spot, written(tile, y, factor), mask=inside, eviction_policy="evict_first")


def _words(variant: str) -> tuple[str, list[str], str]:
    """(pool, layers, gate) of a variant."""
    *words, gate = variant.split("-")
    return ("avg", words, gate) if words[0] in ("ese", "eca") else (words[0], words[1:], gate)


def inputs(variant: str) -> tuple[str, ...]:
    """What the kernels call the node's inputs, in order."""
    _, words, _ = _words(variant)
    if words[0] == "eca":
        return ("x", "w", *(["b"] if "bias" in words else []))
    score = ["s"] if variant.startswith("attn-") else []
    return ("x", *score, "w1", "b1", *(["g", "h"] if "ln" in words else []), *([] if "ese" in words else ["w2", "b2"]))


def unsupported(variant: str, shapes: Sequence[Sequence[Dim]], dtype: str, arch: int, **_: object) -> list[str]:
    """Why this gate has no kernel; `shapes` are those of x and the weights."""
    return refusals(shapes[0], dtype)


def launches(
    variant: str,
    shapes: Sequence[Sequence[Dim]],
    dtype: str,
    arch: int,
    *,
    pads: Sequence[int] = (0, 0),
    epsilon: float = 0.0,
    codes: bool = False,
) -> list[Launch]:
    """The launches that compute y (B, C, H, W) from x and the weights, called as `inputs` says."""
    pool, words, gate = _words(variant)
    shape, names = shapes[0], inputs(variant)
    samples, channels, places = shape[0], shape[1], places_of(shape)
    assert isinstance(channels, int)
    first = attention_pool_launch(shape, dtype) if pool == "attn" else pool_launch(shape, dtype, POOLS[pool])
    eca = "eca" in words
    hidden = channels if eca else int(shapes[names.index("w1")][0])
    steps = [first] if eca else [first, project_launch(first, shape, dtype, hidden)]
    block_p = power(known(places), 16, 512)
    block_c = min(power(channels, 1, 64), TILE // block_p)
    weights = [name for name in names[1:] if name not in ("s", "w1", "b1")]
    pointers = {
        "x": dtype,
        ("sums" if eca else "z"): "float32",
        **dict.fromkeys(weights, dtype),
        "y": dtype,
    }
    optional = ("sums", "z", "g", "h", "w", "b", "w2", "b2")
    last = Launch(
        "channel_gate.scale",
        pointers,
        {
            "samples": str(samples),
            "channels": str(channels),
            "hidden": str(hidden),
            "places": places,
            "chunks": first.integers["chunks"],
        },
        {
            **{name: None for name in optional if name not in pointers},
            "pools": len(POOLS[pool]),
            "act": words[-1],
            "gate": gate.removesuffix(RESIDUAL),
            "residual": gate.endswith(RESIDUAL),
            "epsilon": epsilon,
            "taps": int(shapes[1][2]) if eca else 0,
            "before": pads[0],
            "block_c": block_c,
            "block_p": block_p,
            "block_h": power(hidden, 16, 64),
            "span": SPAN,
        },
        product(cdiv(known(places), block_p * SPAN), cdiv(channels, block_c), samples),
        warps=4,
    )
    return coded([*steps, last], codes)


def cost(variant: str, shapes: Sequence[Sequence[int]], dtype: str, *, codes: bool = False, **_: object) -> Cost:
    """FLOPs of pooling, layers and product; the map read twice by the kernels, y and the weights."""
    x, *weights = shapes
    numbers, count = sum(math.prod(shape) for shape in weights), math.prod(x)
    pools = len(POOLS[_words(variant)[0]])
    flops = (1 + pools) * count + 2 * pools * x[0] * (numbers if "eca" not in variant else numbers * x[1])
    width = dtype_named(dtype).bits // 8
    y = count * width_of(dtype, codes)
    return Cost(flops, width * (count + numbers) + y, width * (2 * count + numbers) + y)
