"""Pooling a map over its places: what the gates read first.

A map x (B, C, H, W) is read as rows (B C) of places (H W). Pooling a row is split into chunks where it is long, so that
one sample of few channels keeps a GPU busy; whoever reads the chunks adds them up, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.launch import Launch, cdiv, product, too_large
from edgeattn.tensors import Dim, dtype_named

DTYPES = ("float16", "bfloat16", "float32")
CHUNK = 4096  # places that one program pools
TILE = 2048  # elements of a map that a program holds
POOLED = ("sums", "peaks", "tops", "totals")


@triton.jit
def pool(
    x: tl.tensor,
    u1: tl.tensor,
    u2: tl.tensor,
    u3: tl.tensor,
    sums: tl.tensor,
    peaks: tl.tensor,
    rows: tl.tensor,
    places: tl.tensor,
    chunks: tl.tensor,
    chunk: tl.constexpr,
    block_r: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """Sums and maxima of chunks of rows of x + u1 + u2 + u3; either, and each u, may be left out."""
    piece = tl.program_id(0) % chunks
    row = tl.program_id(0) // chunks * block_r + tl.arange(0, block_r)
    known_row = row < rows
    total = tl.zeros((block_r, block_p), tl.float32)
    highest = tl.full((block_r, block_p), -float("inf"), tl.float32)
    for first in range(piece * chunk, tl.minimum(piece * chunk + chunk, places), block_p):
        place = first + tl.arange(0, block_p)
        known = known_row[:, None] & (place < places)[None, :]
        spot = row[:, None] * places + place[None, :]
        tile = tl.load(x + spot, mask=known, other=0.0).to(tl.float32)
        if u1 is not None:
            tile += tl.load(u1 + spot, mask=known, other=0.0).to(tl.float32)
        if u2 is not None:
            tile += tl.load(u2 + spot, mask=known, other=0.0).to(tl.float32)
        if u3 is not None:
            tile += tl.load(u3 + spot, mask=known, other=0.0).to(tl.float32)
        total += tile
        if peaks is not None:
            highest = tl.maximum(highest, tl.where(known, tile, -float("inf")))
    if sums is not None:
        tl.store(sums + row * chunks + piece, tl.sum(total, 1), mask=known_row)
    if peaks is not None:
        tl.store(peaks + row * chunks + piece, tl.max(highest, 1), mask=known_row)


@triton.jit
def pool_by_attention(
    x: tl.tensor,
    s: tl.tensor,
    sums: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    channels: tl.tensor,
    places: tl.tensor,
    chunks: tl.tensor,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """Sums of rows weighed by exp(s x - top), of a block of places each; a second read finds it in the caches."""
    piece = tl.program_id(0) % chunks
    sample = tl.program_id(0) // chunks
    place = piece * block_p + tl.arange(0, block_p)
    inside = place < places
    partial = tl.zeros((block_c, block_p), tl.float32)
    for first in range(0, channels, block_c):
        c = first + tl.arange(0, block_c)
        seen = (c < channels)[:, None] & inside[None, :]
        spot = (sample * channels + c)[:, None] * places + place[None, :]
        tile = tl.load(x + spot, mask=seen, other=0.0).to(tl.float32)
        partial += tile * tl.load(s + c, mask=c < channels, other=0.0).to(tl.float32)[:, None]
    scores = tl.where(inside, tl.sum(partial, 0), -float("inf"))
    top = tl.max(scores, 0)
    shares = tl.exp(scores - top)
    tl.store(tops + sample * chunks + piece, top)
    tl.store(totals + sample * chunks + piece, tl.sum(shares, 0))
    for first in range(0, channels, block_c):
        c = first + tl.arange(0, block_c)
        row = sample * channels + c
        seen = (c < channels)[:, None] & inside[None, :]
        tile = tl.load(x + row[:, None] * places + place[None, :], mask=seen, other=0.0).to(tl.float32)
        tl.store(sums + row * chunks + piece, tl.sum(tile * shares[None, :], 1), mask=c < channels)


@triton.jit
def attended(
    sums: tl.tensor,
    tops: tl.tensor,
    totals: tl.tensor,
    row: tl.tensor,
    sample: tl.tensor,
    known: tl.tensor,
    chunks: tl.tensor,
) -> tl.tensor:
    """Means of whole rows, weighed by a softmax over their places."""
    top = -float("inf")
    for piece in range(chunks):
        top = tl.maximum(top, tl.load(tops + sample * chunks + piece))
    value = tl.zeros(row.shape, tl.float32)
    total = 0.0
    for piece in range(chunks):
        share = tl.exp(tl.load(tops + sample * chunks + piece) - top)
        value += share * tl.load(sums + row * chunks + piece, mask=known, other=0.0)
        total += share * tl.load(totals + sample * chunks + piece)
    return value / total


@triton.jit
def pooled(
    sums: tl.tensor,
    peaks: tl.tensor,
    row: tl.tensor,
    known: tl.tensor,
    places: tl.tensor,
    chunks: tl.tensor,
    maximum: tl.constexpr,
) -> tl.tensor:
    """Means, or maxima, of whole rows."""
    if maximum:
        value = tl.full(row.shape, -float("inf"), tl.float32)
        for piece in range(chunks):
            value = tl.maximum(value, tl.load(peaks + row * chunks + piece, mask=known, other=0.0))
    else:
        value = tl.zeros(row.shape, tl.float32)
        for piece in range(chunks):
            value += tl.load(sums + row * chunks + piece, mask=known, other=0.0)
        value = value / places
    return value


# Launches


def refusals(shape: Sequence[Dim], dtype: str) -> list[str]:
    """What no gate takes: another type, another rank, a number of channels that is not known, a map too large."""
    reasons = too_large([shape])
    if dtype_named(dtype).name not in DTYPES:
        reasons.append(f"{dtype} inputs; it takes {', '.join(DTYPES)}")
    if len(shape) != 4:
        reasons.append(f"a map of {len(shape)} dimensions; it takes 4")
    elif not isinstance(shape[1], int):
        reasons.append(f"a number of channels that is dynamic: {shape[1]}")
    return reasons


def power(size: Dim, least: int, most: int) -> int:
    """The power of two that covers a size, within bounds; the upper one where the size is open."""
    return max(least, min(most, triton.next_power_of_2(size))) if isinstance(size, int) else most


def places_of(shape: Sequence[Dim]) -> str:
    """H W of a map."""
    return product(*shape[2:])


def known(size: str) -> Dim:
    """A number where an expression is one."""
    return int(size) if size.isdecimal() else size


def pool_launch(shape: Sequence[Dim], dtype: str, kinds: Sequence[str], maps: Sequence[str] = ("x",)) -> Launch:
    """x, or the sum of some maps, to the scratch tensors `sums` ("avg") and `peaks` ("max")."""
    samples, channels, places = shape[0], shape[1], places_of(shape)
    block_p = power(known(places), 16, 1024)
    rows, chunks = product(samples, channels), cdiv(known(places), CHUNK)
    scratch = {name: product(rows, chunks) for name, kind in (("sums", "avg"), ("peaks", "max")) if kind in kinds}
    return Launch(
        "pooling.pool",
        {**dict.fromkeys(maps, dtype), **dict.fromkeys(scratch, "float32")},
        {"rows": rows, "places": places, "chunks": chunks},
        {
            "chunk": CHUNK,
            "block_r": TILE // block_p,
            "block_p": block_p,
            **{name: None for name in ("u1", "u2", "u3", "sums", "peaks") if name not in {*maps, *scratch}},
        },
        product(cdiv(known(rows), TILE // block_p), chunks),
        warps=4,
        scratch=scratch,
    )


def attention_pool_launch(shape: Sequence[Dim], dtype: str) -> Launch:
    """The same by attention: x to the scratch tensors `sums`, `tops` and `totals`, by s."""
    samples, channels, places = shape[0], shape[1], places_of(shape)
    block_p = power(known(places), 16, 128)
    chunks = cdiv(known(places), block_p)
    each = product(samples, chunks)
    scratch = {"sums": product(samples, channels, chunks), "tops": each, "totals": each}
    return Launch(
        "pooling.pool_by_attention",
        {"x": dtype, "s": dtype, **dict.fromkeys(scratch, "float32")},
        {"channels": str(channels), "places": places, "chunks": chunks},
        {"block_c": TILE // block_p, "block_p": block_p},
        each,
        warps=4,
        scratch=scratch,
    )
