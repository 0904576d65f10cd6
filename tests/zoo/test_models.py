"""Every model of the zoo, all the way: what a user of any of them relies on."""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from edgeattn import files, zoo
from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig
from edgeattn.build import BuildReport, build_engine
from edgeattn.data import load_recipe, open_data
from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph
from edgeattn.model import load_model, parse_dynamic, parse_inputs
from edgeattn.parity import compare_files
from edgeattn.zoo import MODELS
from edgeattn.zoo.data import DATASETS
from tests.test_house import ROOT

BACKENDS = ("openvino", "onnxruntime", "tensorrt-rtx")
# One process makes and keeps what all tests of a model share.
names = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in MODELS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@functools.cache
def exported(name: str, folder: Path) -> Path:
    """The model as an ONNX file with a dynamic batch, checked against PyTorch by the export itself."""
    model = load_model(f"zoo:{name}")
    specs = parse_inputs([], model.module)
    export_model(
        type(model)(model.module, specs, name), folder / f"{name}.onnx", dynamic=parse_dynamic(["batch"], specs)
    )
    return folder / f"{name}.onnx"


@functools.cache
def built(name: str, backend: str, folder: Path) -> BuildReport:
    """An engine of the exported model."""
    config = BuildConfig(targets=("sm_86",) if backend == "tensorrt-rtx" else ())
    return build_engine(exported(name, folder), folder / f"{name}-{backend}.engine", config, backend)


@names
def test_record_describes_the_shipped_weights(name: str) -> None:
    entry, record = MODELS[name], MODELS[name].record()
    path = zoo.FOLDER / f"{entry.weights or name}.safetensors"
    assert files.sha256_file(path) == record["weights_sha256"]
    assert entry.size_bytes is not None
    assert entry.size_bytes < 1_000_000
    assert record["parameters"] == sum(weight.numel() for weight in zoo.factory(name)().parameters())
    assert record["train_metrics"].keys() == record["metrics"].keys()
    json.dumps(record)


def test_all_weights_together_are_small() -> None:
    assert sum(path.stat().st_size for path in zoo.FOLDER.glob("*.safetensors")) < 8_000_000


@names
def test_exports_with_a_dynamic_batch_and_its_mechanism_is_found(name: str, folder: Path) -> None:
    graph = load_graph(exported(name, folder))
    found = Counter(item.op for item in fuse(graph)[1].found)
    assert set(found) == set(MODELS[name].ops)


@names
def test_exports_with_batch_one(name: str, folder: Path) -> None:
    model = load_model(f"zoo:{name}")
    specs = parse_inputs([], model.module)
    export_model(type(model)(model.module, specs, name), folder / f"{name}-1.onnx")
    assert isinstance(load_graph(folder / f"{name}-1.onnx"), Graph)


@names
@pytest.mark.parametrize("backend", BACKENDS)
def test_builds_and_agrees_with_its_graph(name: str, backend: str, folder: Path) -> None:
    if reasons := backend_named(backend).missing(running=False):
        pytest.skip(reasons[0])
    report = built(name, backend, folder)
    assert report.path.stat().st_size
    assert report.parity is None or report.parity.passed
    assert report.parity is not None or backend == "tensorrt-rtx"


@names
def test_engine_does_the_task_as_its_original_does(name: str, folder: Path) -> None:
    entry = MODELS[name]
    data = folder / entry.data
    if not data.exists():
        DATASETS[entry.data](data, "test", 24)
    recipe = ROOT / "calibration" / f"{entry.data}.toml"
    report = compare_files(
        built(name, "openvino", folder).path,
        f"zoo:{name}",
        data=data,
        recipe=recipe if recipe.is_file() else None,
        limit=24,
        latency=False,
        task=None if entry.weights else entry.task,
    )
    assert report.passed, report.reasons
    if entry.weights:  # without suppression there is nothing that boxes can be held against
        return
    metric = next(item for item in report.metrics if item.name == entry.metric)
    assert metric.drop == pytest.approx(0, abs=1e-6)
    recorded = entry.record()["metrics"][entry.metric]
    assert abs(metric.reference - recorded) < 0.3  # of 24 samples, not of all


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    DATASETS["scenes"](folder, "test", 40)
    return folder


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.task == "segmentation"])
def test_a_segmentation_model_knows_every_class(name: str, scenes: Path) -> None:
    model = load_model(f"zoo:{name}").module
    samples = list(open_data(scenes, parse_inputs([], model), load_recipe(ROOT / "calibration" / "scenes.toml")))
    with torch.inference_mode():
        scores = model(torch.from_numpy(np.concatenate([sample.feeds["x"] for sample in samples])))
    masks = np.stack([sample.label for sample in samples])
    iou = jaccard_score(masks.ravel(), scores.argmax(1).numpy().ravel(), average=None)
    assert len(iou) == 6
    assert iou.min() > 0.1  # a class that is never found has 0


@names
def test_without_weights_it_is_random(name: str) -> None:
    first, second = (zoo.factory(name)(pretrained=False) for _ in range(2))
    assert not first.training
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
