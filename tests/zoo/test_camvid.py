"""The segmentation models at their real job: road scenes with real labels, which stay outside the project."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgeattn.backends import open_session
from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine
from edgeattn.data import Recipe, load_recipe, open_data
from edgeattn.export import export_model
from edgeattn.model import Model
from edgeattn.parity import check_parity, reference_from_model
from edgeattn.tensors import TensorSpec
from edgeattn.zoo.unet import UNet

ROADS = os.environ.get("EDGEATTN_CAMVID")  # read now: tests do not see the settings of the machine
RECIPE = """
[preprocess]
size = [96, 128]
[labels]
ignore = 11
"""
SPEC = TensorSpec("x", "float32", (1, 3, 96, 128))


needs_roads = pytest.mark.skipif(not ROADS, reason="EDGEATTN_CAMVID does not name CamVid's folder (train/ and val/)")


def learned_roads(recipe: Recipe) -> Model:
    """An attention U-Net after a minute on road scenes."""
    frames = list(islice(open_data(f"{ROADS}/train", [SPEC], recipe), 0, 240, 10))
    x = torch.from_numpy(np.concatenate([frame.feeds["x"] for frame in frames]))
    y = torch.from_numpy(np.stack([np.asarray(frame.label) for frame in frames])).long()
    torch.manual_seed(0)
    model = UNet(classes=11, attention="gate")
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        chosen = torch.arange(8) + 8 * (step % 3)
        loss = F.cross_entropy(model(x[chosen]), y[chosen], ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Model(model.eval(), (SPEC,), "a U-Net on road scenes")


@pytest.mark.slow
@needs_roads
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_attention_unet_learns_road_scenes_and_its_engine_sees_the_same(precision: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.toml")
    original = learned_roads(recipe)
    export_model(original, tmp_path / "m.onnx", check=False)
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildConfig(precision), "openvino")
    batches = (([s.name], s.feeds, [s.label]) for s in islice(open_data(f"{ROADS}/val", [SPEC], recipe), 0, 100, 10))
    with open_session(tmp_path / "m.engine") as session:
        report = check_parity(session, reference_from_model(original), batches, precision, latency=False)
    assert report.passed, report.reasons
    miou = next(metric for metric in report.metrics if metric.name == "miou")
    assert miou.reference > 0.15  # sky, road and buildings: one class of eleven everywhere would be below 0.03
    assert abs(miou.drop) < 0.005
