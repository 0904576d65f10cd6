"""What SpatialGate and CBAM share: planes of what the channels agree on, and the map weighed by their convolution.

    collapse  x [, channel weights] -> sum and maximum over the channels at each place     reads the map
    weigh     y = x [* channel weights] * gate(conv(planes) + b)                           reads the map, writes y

A map weighed by its channels is never written: both kernels multiply as they read. Channels are split into spans where
a map has too few places to keep a GPU busy; then there are as many partial planes, and `weigh` adds them up. It
convolves for its own places, which reads the planes from the caches and spares a launch. Kernels that read a map one
after the other go through it forwards and backwards in turns, so that each begins with what is left in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.gating import coded, gated, reciprocal, written
from edgeattn.kernels.launch import Launch, cdiv, product
from edgeattn.kernels.pooling import TILE, known, places_of, power
from edgeattn.tensors import Dim

PLACES = 128  # in a tile
ENOUGH = 256  # programs that keep a GPU busy


@triton.jit
def _position(
    channels: tl.tensor, places: tl.tensor, span: tl.constexpr, block_p: tl.constexpr, backwards: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """What a program works on: a sample, a span of its channels, a block of places, and which of these there are."""
    blocks = tl.cdiv(places, block_p)
    spans = tl.cdiv(channels, span)
    program = tl.num_programs(0) - 1 - tl.program_id(0) if backwards else tl.program_id(0)
    place = program % blocks * block_p + tl.arange(0, block_p)
    return program // blocks // spans, program // blocks % spans, place, place < places


@triton.jit
def collapse(
    x: tl.tensor,
    channel: tl.tensor,
    sums: tl.tensor,
    peaks: tl.tensor,
    channels: tl.tensor,
    places: tl.tensor,
    span: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
    backwards: tl.constexpr,
) -> None:
    """Sums and maxima over spans of channels: sums and peaks (samples, spans, places)."""
    sample, part, place, inside = _position(channels, places, span, block_p, backwards)
    spans = tl.cdiv(channels, span)
    total = tl.zeros((block_c, block_p), tl.float32)
    highest = tl.full((block_c, block_p), -float("inf"), tl.float32)
    for first in range(part * span, tl.minimum(part * span + span, channels), block_c):
        c = first + tl.arange(0, block_c)
        row = sample * channels + c
        seen = (c < channels)[:, None] & inside[None, :]
        tile = tl.load(x + row[:, None] * places + place[None, :], mask=seen, other=0.0).to(tl.float32)
        if channel is not None:
            tile = tile * tl.load(channel + row, mask=c < channels, other=0.0)[:, None]
        total += tile
        highest = tl.maximum(highest, tl.where(seen, tile, -float("inf")))
    spot = (sample * spans + part) * places + place
    tl.store(sums + spot, tl.sum(total, 0), mask=inside)
    tl.store(peaks + spot, tl.max(highest, 0), mask=inside)


@triton.jit
def weigh(
    x: tl.tensor,
    channel: tl.tensor,
    sums: tl.tensor,
    peaks: tl.tensor,
    w: tl.tensor,
    b: tl.tensor,
    y: tl.tensor,
    y_scale: tl.tensor,
    channels: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    places: tl.tensor,
    rows: tl.constexpr,
    columns: tl.constexpr,
    top: tl.constexpr,
    left: tl.constexpr,
    gate: tl.constexpr,
    residual: tl.constexpr,
    span: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
    backwards: tl.constexpr,
) -> None:
    """The map weighed by a convolution of `rows` by `columns` of its planes."""
    sample, part, place, inside = _position(channels, places, span, block_p, backwards)
    spans = tl.cdiv(channels, span)
    logits = tl.zeros((block_p,), tl.float32) + tl.load(b).to(tl.float32)
    for tap in range(rows * columns):
        i = place // width + tap // columns - top
        j = place % width + tap % columns - left
        seen = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        total = tl.zeros((block_p,), tl.float32)
        highest = tl.full((block_p,), -float("inf"), tl.float32)
        for other in range(spans):
            spot = (sample * spans + other) * places + i * width + j
            total += tl.load(sums + spot, mask=seen, other=0.0)
            highest = tl.maximum(highest, tl.load(peaks + spot, mask=seen, other=0.0))
        logits += tl.load(w + tap).to(tl.float32) * (total / channels)
        logits += tl.load(w + rows * columns + tap).to(tl.float32) * highest
    weights = gated(logits, gate, residual)
    factor = reciprocal(y_scale)
    for first in range(part * span, tl.minimum(part * span + span, channels), block_c):
        c = first + tl.arange(0, block_c)
        row = sample * channels + c
        held = (c < channels)[:, None] & inside[None, :]
        at = row[:, None] * places + place[None, :]
        tile = tl.load(x + at, mask=held, other=0.0, eviction_policy="evict_first").to(tl.float32)
        if channel is not None:
            tile = tile * tl.load(channel + row, mask=c < channels, other=0.0)[:, None]
        tile = written(tile * weights[None, :], y, factor)
        tl.store(y + at, tile, mask=held, eviction_policy="evict_first")


def plane_launches(
    shape: Sequence[Dim],
    dtype: str,
    kernel: Sequence[int],
    pads: Sequence[int],
    gate: tuple[str, bool],
    channel: bool,
    codes: bool,
) -> list[Launch]:
    """X to y, by w and b; by the scratch tensor `channel` too, if that is there.

    Args:
        shape: of x.
        dtype: of x, w, b, and y unless it holds codes.
        kernel: rows and columns of the convolution.
        pads: top, left, bottom, right; the last two follow from the size, which the convolution keeps.
        gate: kind, and whether it is 1 + gate.
        channel: whether there are weights (B, C), float32.
        codes: whether y holds INT8 codes, by y_scale.
    """
    samples, channels, height, width = shape
    assert isinstance(channels, int)
    places = places_of(shape)
    block_p = power(known(places), 16, PLACES)
    span, block_c = _span(shape, block_p), TILE // block_p
    grid = product(cdiv(known(places), block_p), cdiv(channels, span), samples)
    held = {"span": span, "block_c": block_c, "block_p": block_p, **({} if channel else {"channel": None})}
    weights = {"channel": "float32"} if channel else {}
    planes = {"sums": "float32", "peaks": "float32"}
    collapsed = Launch(
        "planes.collapse",
        {"x": dtype, **weights, **planes},
        {"channels": str(channels), "places": places},
        {**held, "backwards": channel},
        grid,
        warps=4,
        scratch=dict.fromkeys(planes, product(samples, cdiv(channels, span), places)),
    )
    weighed = Launch(
        "planes.weigh",
        {"x": dtype, **weights, **planes, "w": dtype, "b": dtype, "y": dtype},
        {"channels": str(channels), "height": str(height), "width": str(width), "places": places},
        {
            **held,
            "backwards": not channel,
            "rows": kernel[0],
            "columns": kernel[1],
            "top": pads[0],
            "left": pads[1],
            "gate": gate[0],
            "residual": gate[1],
        },
        grid,
        warps=4,
    )
    return coded([collapsed, weighed], codes)


def _span(shape: Sequence[Dim], block_p: int) -> int:
    """Channels to a program: all, or fewer where a known number of places makes too few programs."""
    samples, channels, *places = shape
    assert isinstance(channels, int)
    span = triton.next_power_of_2(channels)
    if isinstance(samples, int) and all(isinstance(size, int) for size in places):
        programs = int(product(samples, cdiv(known(places_of(shape)), block_p)))
        while span > 4 * (TILE // block_p) and programs * -(-channels // span) < ENOUGH:
            span //= 2
    return int(span)
