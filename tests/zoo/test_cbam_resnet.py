from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from edgeattn import files
from edgeattn.data import batches, load_recipe, open_data
from edgeattn.errors import InputError
from edgeattn.nn import CBAM
from edgeattn.tensors import TensorSpec
from edgeattn.zoo import cbam_resnet, train
from edgeattn.zoo.cbam_resnet import WEIGHTS, CBAMBlock, CBAMResNet, cbam_resnet_digits
from edgeattn.zoo.data import write_digits

RECIPE = Path(__file__).parents[2] / "calibration" / "digits.toml"
RECORD = json.loads(WEIGHTS.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for split in ("train", "test"):
        write_digits(folder / split, split)
    return folder


def test_shipped_weights_reach_the_recorded_accuracy_through_the_recipe(digits: Path) -> None:
    data = open_data(digits / "test", [TensorSpec("x", "float32", ("batch", 1, 32, 32))], load_recipe(RECIPE))
    model = cbam_resnet_digits()
    correct = 0
    with torch.inference_mode():
        for _, feeds, labels in batches(data, 128):
            correct += int((model(torch.from_numpy(feeds["x"])).argmax(1).numpy() == np.array(labels)).sum())
    assert abs(correct - RECORD["test_correct"]) <= 1  # a scan on the border may fall otherwise on another CPU
    assert correct / len(data) >= 0.98


def test_record_describes_the_shipped_weights() -> None:
    assert files.sha256_file(WEIGHTS) == RECORD["weights_sha256"]
    assert WEIGHTS.stat().st_size < 1 << 20
    assert RECORD["test_top1"] == RECORD["test_correct"] / RECORD["test_images"] >= 0.98
    assert RECORD["parameters"] == sum(weight.numel() for weight in cbam_resnet_digits().parameters())


def test_splits_are_whole_stratified_and_disjoint(digits: Path) -> None:
    found = {split: {p.name for p in (digits / split).rglob("*.png")} for split in ("train", "test")}
    assert not found["train"] & found["test"]
    assert len(found["train"] | found["test"]) == 1797
    for label in range(10):
        train_count, test_count = (len(list((digits / split / str(label)).iterdir())) for split in ("train", "test"))
        assert 0.19 < test_count / (train_count + test_count) < 0.21


def test_files_hold_the_scans(digits: Path) -> None:
    from PIL import Image

    scans = load_digits()
    for path in sorted((digits / "test").rglob("*.png"))[::20]:
        index = int(path.stem)
        assert scans.target[index] == int(path.parent.name)
        with Image.open(path) as image:
            assert image.mode == "L"
            assert np.array_equal(np.rint(np.asarray(image, float) * 16 / 255), scans.images[index])


def test_factory_without_weights_is_random_and_in_eval_mode() -> None:
    first, second = cbam_resnet_digits(pretrained=False), cbam_resnet_digits(pretrained=False)
    assert not first.training
    assert not torch.equal(first.head.weight, second.head.weight)
    assert first(torch.zeros(3, 1, 32, 32)).shape == (3, 10)


def test_cbam_acts_before_the_shortcut_is_added() -> None:
    block = CBAMBlock(4, 4, 1).eval()
    gate = next(module for module in block.modules() if isinstance(module, CBAM))
    nn.init.constant_(gate.spatial.conv.bn.bias, -1e4)  # every gate is 0: only the shortcut is left
    x = torch.rand(2, 4, 5, 7)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99], ids=["missing", "empty", "garbage"])
def test_bad_weights_are_refused_with_their_path(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(cbam_resnet, "WEIGHTS", path)
    with pytest.raises(InputError, match=r"w\.safetensors.*train_zoo"):
        cbam_resnet_digits()


def test_weights_of_another_model_are_refused_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(1)}, tmp_path / "w.safetensors")
    monkeypatch.setattr(cbam_resnet, "WEIGHTS", tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        cbam_resnet_digits()
    assert "\n" not in str(caught.value)


def test_training_is_reproducible_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "EPOCHS", 40)
    images = torch.rand(64, 1, 16, 16) * 0.1
    labels = torch.arange(64) % 2
    images[labels == 1, :, :, :8] += 1  # left half bright: class 1

    def trained() -> nn.Module:
        torch.manual_seed(3)
        model = CBAMResNet(classes=2, widths=(4, 8))
        train._fit(model, images, labels)
        return model

    first, second = trained(), trained()
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(train._logits(first, images).argmax(1), labels)


def test_unknown_model_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["resnet5000"])
    assert "unknown: resnet5000; known: cbam_resnet_digits" in capsys.readouterr().err
