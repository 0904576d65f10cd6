"""Triton kernels for attention ops, one module for each op that has one, of the same stem as the op's own.

Every module holds its kernels, and of the op's canonical node

    inputs(variant)                                          what the kernels call its inputs, in order; the output is y
    unsupported(variant, shapes, dtype, arch, **attributes)  why there is no kernel for it: empty where there is
    launches(variant, shapes, dtype, arch, **attributes)     what to launch, in order, as values
    cost(variant, shapes, dtype, **attributes)               its FLOPs and bytes

`shapes` are those of the node's inputs, in order; a dimension that is a name stays open until the launch. `arch` is the
compute capability, 87 for sm_87. The truth is the op's own reference. Only modules that are about Triton import it;
whoever launches a compiled kernel needs none.

The gates also do what a QuantizeLinear behind them would: with `codes=True`, `launches` and `cost` are about an INT8 y,
and a last input `y_scale` (1).

AttentionPool has none: written out, it reads x once and writes y, as a kernel would; its scores are few beside them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from edgeattn.errors import MissingDependencyError, UsageError, one_line

KERNELS = {
    "SoftmaxAttention": "softmax_attention",
    "ChannelGate": "channel_gate",
    "SpatialGate": "spatial_gate",
    "CBAM": "cbam",
    "SelectiveKernel": "selective_kernel",
    "AttentionGate": "attention_gate",
}


def kernel(op: str) -> ModuleType:
    """The module of an op's kernels.

    Raises:
        UsageError: the op has none.
        MissingDependencyError: Triton is not installed.
    """
    if op not in KERNELS:
        raise UsageError(f"{op} has no kernel; these have one: {', '.join(KERNELS)}")
    try:
        return importlib.import_module(f"edgeattn.kernels.{KERNELS[op]}")
    except ImportError as err:
        raise MissingDependencyError(
            f"the kernels need Triton (Linux only): {one_line(err)}; pip install 'edgeattn[kernels]'"
        ) from err
