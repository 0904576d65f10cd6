"""Block sizes for each architecture: one table, nothing tuned at run time.

`scripts/tune_kernels` measures candidates on a GPU and prints the rows. Those here are of no measurement: they are the
largest blocks that fit each chip's shared memory and registers, as compiled for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from edgeattn.tensors import Dim

# The shared memory that one block may have, in KiB: CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability"; for 110 that of 101, which was its number before CUDA 13.
SHARED_KIB = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 110: 227, 120: 99, 121: 99}


class Blocks(NamedTuple):
    """Queries and keys in a block, warps in a program, and blocks of keys under way."""

    m: int
    n: int
    warps: int
    stages: int


# By the larger head size, up to.
PLAIN = {64: Blocks(32, 32, 4, 1), 128: Blocks(16, 32, 4, 1), 256: Blocks(16, 16, 4, 1)}  # no tensor cores
WARP = {64: Blocks(64, 64, 4, 3), 128: Blocks(64, 64, 4, 2), 256: Blocks(64, 32, 8, 2)}  # one warp's: mma.sync
GROUP = {64: Blocks(128, 128, 8, 2), 128: Blocks(128, 128, 8, 2), 256: Blocks(128, 64, 8, 2)}  # wgmma, tcgen05
ATTENTION = {75: PLAIN, 80: WARP, 86: WARP, 87: WARP, 89: WARP, 90: GROUP, 110: GROUP, 120: WARP, 121: WARP}
PROCESSORS = {75: 40, 80: 108, 86: 84, 87: 16, 89: 128, 90: 132, 110: 20, 120: 170, 121: 48}  # of a large one


def attention_blocks(arch: int, dtype: str, head: int, queries: Dim, pairs: str) -> Blocks:
    """The blocks for one attention.

    Args:
        arch: compute capability.
        dtype: of q; float32 has no tensor cores that compute in it.
        head: the larger of d_qk and d_v.
        queries: of one head; fewer than a block take a smaller one.
        pairs: samples times heads; where large blocks would be too few to keep a GPU busy, they are smaller.
    """
    rows = PLAIN if dtype == "float32" else ATTENTION[arch]
    largest = min(size for size in rows if size >= head)
    blocks = rows[largest]
    if rows is PLAIN or not isinstance(queries, int):
        return blocks
    few = pairs.isdecimal() and int(pairs) * -(-queries // blocks.m) < PROCESSORS[arch]
    if few or queries <= WARP[largest].m:
        blocks = WARP[largest]
    m = min(blocks.m, max(16, 1 << (queries - 1).bit_length()))
    return blocks._replace(m=m, warps=max(1, blocks.warps * m // blocks.m))
