"""A network whose engines are bisected, and no time spent on timing them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgeattn.export import export_model
from edgeattn.model import Model
from edgeattn.tensors import TensorSpec
from tests.bisected import samples
from tests.models import CbamResNet, settled


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.bisect.remedies.TIMED_S", 0.0)
    monkeypatch.setattr("edgeattn.profile.timing.TURN_S", 0.0)
    monkeypatch.setattr("edgeattn.profile.timing.LONGEST_SPIN_S", 0.0)


@pytest.fixture(scope="session")
def cbam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small ResNet with CBAM, `good.onnx`, and eight samples."""
    folder = tmp_path_factory.mktemp("cbam")
    torch.manual_seed(0)
    module = settled(lambda: CbamResNet(8, (1, 1)), torch.randn(8, 3, 16, 16))
    export_model(
        Model(module, (TensorSpec("x", "float32", (2, 3, 16, 16)),)),
        folder / "good.onnx",
        dynamic={"x": {0: "batch"}},
        check=False,
    )
    samples(folder / "data", (1, 3, 16, 16))
    return folder
