"""Whether oneDNN, inside OpenVINO, survives Intel's AMX here: some virtual machines announce it and then fault.

Layers in bfloat16 (and INT8) would end the process with SIGILL. So one convolution is run in a child process first,
and where that dies oneDNN is told to do without AMX.

    python -m edgeattn.backends.amx

is that child: it exits 0 where the convolution ran.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
ISA_WITHOUT_AMX = "AVX512_CORE_FP16"


@cache
def avoid_broken_amx() -> str:
    """Switch AMX off for oneDNN where it is announced and does not work; only before OpenVINO is imported.

    Returns:
        What was done, in words; empty where there was nothing to do.
    """
    if ISA_VARIABLE in os.environ or not _announced():
        return ""
    # Not through pipes: what the signal leaves behind of it may hold them open for good.
    nowhere = subprocess.DEVNULL
    child = subprocess.run([sys.executable, "-m", __name__], stdin=nowhere, stdout=nowhere, stderr=nowhere, check=False)
    if child.returncode >= 0:  # it ran, or failed in a way that is no signal: then AMX is not to blame
        return ""
    os.environ[ISA_VARIABLE] = ISA_WITHOUT_AMX
    return "this machine announces AMX but stops programs that use it: computing without AMX"


def _announced() -> bool:
    try:
        return " amx_tile " in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _convolve() -> None:
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([1, 64, 16, 16], np.float32)
    w = ops.constant(np.ones((64, 64, 3, 3), np.float32))
    y = ops.convolution(x, w, [1, 1], [0, 0], [0, 0], [1, 1])
    compiled = ov.Core().compile_model(ov.Model([y], [x]), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    compiled([np.ones((1, 64, 16, 16), np.float32)])


if __name__ == "__main__":
    _convolve()
