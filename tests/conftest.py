"""What holds for every test: fixed seeds, and no setting of the developer's machine."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest

from edgeattn.backends.amx import avoid_broken_amx

# The tests' tensors are small: threads would only fight for the cores. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# oneDNN reads this only once in a process, and float32 may come before INT8 here.
avoid_broken_amx()


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed the generators and hide `EDGEATTN_*`, so that a test means the same anywhere and in any order."""
    for name in [name for name in os.environ if name.startswith("EDGEATTN_")]:
        monkeypatch.delenv(name)
    random.seed(0)
    np.random.seed(0)
    # A test that has not imported torch must not pay for it; torch's own first seed is fixed.
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
