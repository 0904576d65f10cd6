"""CBAM's kernels: the channel gate's pooling and layers, then the spatial gate on a weighed map that is never written.

    pool      x -> sums, maxima of rows            reads the map
    project   W1 mean + b1, W1 max + b1
    weights   sigmoid(W2 act(...) + b2)            (B, C)
    collapse  x * weights -> sums, maxima          reads the map
    weigh     y = x * weights * sigmoid(conv)      reads the map, writes y

The place weights depend on all channel weights, and these on all places: three reads and one write are the fewest.
Where the map stays in the L2 cache (50 MB on an H100, 4 MB on an Orin), only the first read and the write cost
bandwidth; of a larger one, each pass finds the part that the one before read last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from edgeattn.kernels.gating import channel_logits, gated, project_launch, width_of
from edgeattn.kernels.launch import Cost, Launch, cdiv, product
from edgeattn.kernels.planes import plane_launches
from edgeattn.kernels.pooling import pool_launch, power, refusals
from edgeattn.tensors import Dim, dtype_named


@triton.jit
def weights(
    z: tl.tensor,
    w2: tl.tensor,
    b2: tl.tensor,
    channel: tl.tensor,
    samples: tl.tensor,
    channels: tl.tensor,
    hidden: tl.tensor,
    act: tl.constexpr,
    block_c: tl.constexpr,
    block_h: tl.constexpr,
) -> None:
    """The weights of the channels."""
    blocks = tl.cdiv(channels, block_c)
    sample = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * block_c + tl.arange(0, block_c)
    known = c < channels
    logits = channel_logits(z, None, None, w2, b2, sample, c, known, samples, hidden, 2, act, 0.0, block_h)
    tl.store(channel + sample * channels + c, gated(logits, "sigmoid", False), mask=known)


def inputs(variant: str) -> tuple[str, ...]:
    """What the kernels call the node's inputs, in order."""
    return ("x", "w1", "b1", "w2", "b2", "w", "b")


def unsupported(variant: str, shapes: Sequence[Sequence[Dim]], dtype: str, arch: int, **_: object) -> list[str]:
    """Why this module has no kernels; `shapes` are those of x and the weights."""
    return refusals(shapes[0], dtype)


def launches(
    variant: str,
    shapes: Sequence[Sequence[Dim]],
    dtype: str,
    arch: int,
    *,
    pads: Sequence[int],
    kernel_shape: Sequence[int],
    codes: bool = False,
) -> list[Launch]:
    """The launches that compute y (B, C, H, W) from x and the weights."""
    shape, hidden = shapes[0], shapes[1][0]
    samples, channels = shape[:2]
    assert isinstance(channels, int)
    assert isinstance(hidden, int)
    pooling = pool_launch(shape, dtype, ("avg", "max"))
    block_c = power(channels, 16, 32)
    weigh = Launch(
        "cbam.weights",
        {"z": "float32", "w2": dtype, "b2": dtype, "channel": "float32"},
        {"samples": str(samples), "channels": str(channels), "hidden": str(hidden)},
        {"act": variant, "block_c": block_c, "block_h": power(hidden, 16, 64)},
        product(cdiv(channels, block_c), samples),
        warps=4,
        scratch={"channel": product(samples, channels)},
    )
    planes = plane_launches(shape, dtype, kernel_shape, pads, ("sigmoid", False), channel=True, codes=codes)
    return [pooling, project_launch(pooling, shape, dtype, hidden), weigh, *planes]


def cost(variant: str, shapes: Sequence[Sequence[int]], dtype: str, *, codes: bool = False, **_: object) -> Cost:
    """FLOPs of both gates; the map read three times by the kernels, y and the weights."""
    x, *rest = shapes
    count, places = math.prod(x), x[0] * x[2] * x[3]
    layers, numbers = sum(math.prod(shape) for shape in rest[:4]), sum(math.prod(shape) for shape in rest)
    flops = 6 * count + 4 * x[0] * layers + 2 * places * math.prod(rest[4])
    width = dtype_named(dtype).bits // 8
    y = count * width_of(dtype, codes)
    return Cost(flops, width * (count + numbers) + y, width * (3 * count + numbers) + y)
