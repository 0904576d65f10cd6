"""The one tolerance table: how far an engine may be from the float64 truth before it counts as wrong.

Errors are relative: the largest absolute error over max|y|, and the L2 norm of the error over the L2 norm of y. Both
are held to the same limit. With `own`, the same error of the reference itself in the engine's dtype, that limit is

    min(cap, max(floor, 2 * (own + unit)))

and `cap` where `own` could not be measured. So the bar follows the network: one that amplifies rounding may be as far
off as PyTorch is in that dtype, twice over, and one that does not may not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeattn.errors import UsageError
from edgeattn.tensors import dtype_named

__all__ = ["FINITE", "TOLERANCES", "Tolerance", "tolerance_for"]


@dataclass(frozen=True)
class Tolerance:
    """One row of the table: all values are relative to the output's size.

    `unit` is the dtype's rounding unit, `floor` what a whole network may always be off, `cap` what it never may,
    `differing` the share of whole numbers in an output (class maps, indices) that may always be others. With `noise`,
    only the L2 norm of the error counts, and the largest does not.
    """

    unit: float
    floor: float
    cap: float
    differing: float
    noise: bool = False

    def limit(self, own: float | None) -> float:
        """The largest relative error that passes, given the reference's own error in this dtype, if known."""
        return self.cap if own is None else min(self.cap, max(self.floor, 2 * (own + self.unit)))

    def limit_differing(self, own: float | None) -> float:
        """The largest share of whole numbers that may differ, given the reference's own share, if known."""
        return max(self.differing, 2 * (own or 0.0))


# Measured against PyTorch in float64 on photographs, three seeds each, random weights, BatchNorm statistics of the
# photographs: ResNets with CBAM (6 to 46 convolutions), ViTs (2 and 12 blocks), a non-local block, U-Nets with
# attention gates (2 and 4 levels). Engines: ONNX Runtime (optimised and not), OpenVINO in each precision. Over all
# samples of a network, the engine's error was at most 2.0 times PyTorch's own in float32, 1.8 in float16 and 1.4 in
# bfloat16. Over a single sample it was up to 4.9 times, where a few class scores happen to come out well: what the
# floor is for.
TOLERANCES = {
    # Sums taken in another order cost up to 1.3e-5. Winograd convolution F(4x4, 3x3), which a GPU may choose, costs up
    # to 6 times what a direct one does and 3.2e-5 at most; the floor admits it.
    "float32": Tolerance(unit=2.0**-24, floor=5e-5, cap=2e-4, differing=1e-3),
    # Ordinary networks lose 0.6e-3 to 1.7e-3, the deep U-Nets, which amplify rounding, up to 4.1e-2; 0.6 % of their
    # pixels change class.
    "float16": Tolerance(unit=2.0**-11, floor=2e-3, cap=5e-2, differing=1e-2),
    # Ordinary networks lose 0.5e-2 to 1.7e-2, the deep U-Nets up to 2.2e-1; 3.5 % of their pixels change class.
    "bfloat16": Tolerance(unit=2.0**-8, floor=1.6e-2, cap=2.5e-1, differing=5e-2),
    # Judged by its noise on real samples, and in the end by the task's metric (`--max-drop`). The zoo's trained models
    # reach 25 to 41 dB, deep networks with random weights 13 to 27 dB; 10 dB is what no trained network should fall
    # below. Rounding to 8 bits is unbiased over many values, but single ones may be off by more.
    "int8": Tolerance(unit=2.0**-7, floor=10 ** (-10 / 20), cap=10 ** (-10 / 20), differing=1e-1, noise=True),
}
# What is left of it on random input, where INT8 promises nothing: numbers that are finite.
FINITE = Tolerance(unit=1.0, floor=math.inf, cap=math.inf, differing=1.0, noise=True)


def tolerance_for(precision: str) -> Tolerance:
    """The row of a precision, `float16` or `fp16`.

    Raises:
        UsageError: the table has no such row.
    """
    name = dtype_named(precision).name
    if name not in TOLERANCES:
        raise UsageError(f"no tolerance is known for {name}; known: {', '.join(TOLERANCES)}")
    return TOLERANCES[name]
