from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgeattn import files, zoo
from edgeattn.model import parse_inputs
from edgeattn.zoo import train, weights
from edgeattn.zoo.fitting import Settings

NAME = "cbam_resnet_digits"
SHORT = Settings(epochs=2, samples=150)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "DATA_SETTINGS", {"digits": SHORT})
    monkeypatch.setattr(train, "TEST_SAMPLES", 60)


@pytest.mark.slow
def test_the_record_is_of_the_stored_weights(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train.main([NAME, "--out", str(tmp_path), "--data", str(tmp_path / "data")])
    record = json.loads((tmp_path / f"{NAME}.json").read_text())
    assert record["train_samples"] == 150
    assert record["test_samples"] == 60
    assert record["weights_sha256"] == files.sha256_file(tmp_path / f"{NAME}.safetensors")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    model = zoo.factory(NAME)()
    assert record["parameters"] == sum(weight.numel() for weight in model.parameters())
    specs = parse_inputs(["1x1x32x32"], model)
    for split, key in (("test", "metrics"), ("train-150", "train_metrics")):
        samples = train.load(zoo.find(NAME), tmp_path / "data" / "digits" / split, specs)
        assert train.evaluate(model, "classification", *samples) == record[key]


@pytest.mark.slow
def test_two_jobs_make_what_one_makes(short: None, tmp_path: Path) -> None:
    names = [NAME, NAME]  # of one name only one trains at a time
    for jobs in ("1", "2"):
        train.main([*names, "--jobs", jobs, "--out", str(tmp_path / jobs), "--data", str(tmp_path / "data" / jobs)])
    one, two = ((tmp_path / jobs / f"{NAME}.safetensors").read_bytes() for jobs in ("1", "2"))
    assert one == two


def test_every_entry_has_settings_and_no_settings_are_of_nothing() -> None:
    assert all(train.settings_of(entry).epochs for entry in zoo.MODELS.values())
    assert set(train.OWN_SETTINGS) <= set(zoo.MODELS)


@pytest.mark.parametrize("name", [name for name, entry in zoo.MODELS.items() if not entry.weights])
def test_the_shipped_record_is_of_the_settings(name: str) -> None:
    record, settings = zoo.MODELS[name].record(), train.settings_of(zoo.MODELS[name])
    asked = (settings.samples, settings.epochs, settings.batch, settings.rate, settings.seed)
    assert tuple(record[key] for key in ("train_samples", "epochs", "batch", "peak_learning_rate", "seed")) == asked


def test_a_data_set_is_written_once_and_anew(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "digits" / "train-150" / "3" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    monkeypatch.setattr(train, "DATA", tmp_path)
    train.write_sets([NAME, NAME], tmp_path)
    assert not stale.exists()
    assert len(list((tmp_path / "digits" / "train-150").rglob("*.png"))) == 150


def test_models_that_want_more_samples_change_nothing_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "DATA_SETTINGS", {"cluttered": Settings(samples=3)})
    monkeypatch.setattr(train, "OWN_SETTINGS", {"vit": Settings(samples=5)})
    monkeypatch.setattr(train, "TEST_SAMPLES", 2)
    train.write_sets(["resnet", "vit", "se_resnet"], tmp_path)
    written = {path.name: len(list(path.rglob("*.png"))) for path in (tmp_path / "cluttered").iterdir()}
    assert written == {"test": 2, "train-3": 3, "train-5": 5}


def test_a_mechanism_is_trained_as_the_network_without_it_is() -> None:
    with_and_without = (
        ("cross_attention_fusion", "late_fusion"),
        ("temporal_attention", "temporal_mean"),
        ("stn_classifier", "cnn_classifier"),
        ("se_deeplabv3plus", "deeplabv3plus"),
        *(
            (name, "resnet")
            for name, entry in zoo.MODELS.items()
            if entry.home == "resnet" and entry.data == "cluttered"
        ),
    )
    for name, other in with_and_without:
        assert train.settings_of(zoo.find(name)) == train.settings_of(zoo.find(other))


def test_files_of_anybody_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "digits" / "test" / "own.png"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(SystemExit):
        train.main([NAME, "--out", str(tmp_path / "out"), "--data", str(tmp_path)])
    assert "is not empty" in capsys.readouterr().err
    assert own.read_text() == "mine"


def test_masks_and_boxes_are_read_as_the_task_asks(tmp_path: Path) -> None:
    zoo.data.write_scenes(tmp_path, "train", 4)
    specs = parse_inputs(["1x3x64x64"], torch.nn.Identity())
    entries = {entry.task: entry for entry in zoo.MODELS.values()}
    (images,), masks = train.load(entries["segmentation"], tmp_path, specs)
    _, boxes = train.load(entries["detection"], tmp_path, specs)
    assert images.shape == (4, 3, 64, 64)
    assert isinstance(masks, torch.Tensor)
    assert masks.shape == (4, 64, 64)
    assert isinstance(boxes, list)
    assert all(each.shape[1] == 5 for each in boxes)


def test_unknown_model_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["resnet5000"])
    assert f"unknown: resnet5000; known: {NAME}" in capsys.readouterr().err
