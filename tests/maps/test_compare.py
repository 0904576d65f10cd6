from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine
from edgeattn.cli import main
from edgeattn.errors import InputError, UsageError
from edgeattn.export import export_model
from edgeattn.graph import load_graph
from edgeattn.maps import AttentionMap, look, watched
from edgeattn.model import Model, load_model, parse_inputs
from edgeattn.nn import CBAM
from edgeattn.tensors import TensorSpec
from edgeattn.tolerance import tolerance_for

MODEL = "zoo:cbam_resnet_digits"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    model = load_model(MODEL)
    specs = parse_inputs([], model.module)
    export_model(Model(model.module, specs), folder / "m.onnx", check=False)
    for backend in ("openvino", "onnxruntime"):
        build_engine(folder / "m.onnx", folder / f"{backend}.engine", backend=backend)
    build_engine(folder / "m.onnx", folder / "half.engine", BuildConfig("float16"), "onnxruntime")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).random((1, 1, 32, 32), np.float32))
    return folder


def test_watching_adds_outputs_and_changes_none(made: Path) -> None:
    opened, watches = watched(load_graph(made / "m.onnx"))
    assert [spec.name for spec in opened.outputs] == ["output", *(watch.output for watch in watches)]
    assert len(watches) == 12
    assert {watch.kind for watch in watches} == {"channel", "place_weights"}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_maps_of_an_engine_are_those_of_pytorch(backend: str, made: Path) -> None:
    report = look(str(made / f"{backend}.engine"), made / "x.npz", against=MODEL)
    assert len(report.maps) == 12
    assert not report.missed
    bound = tolerance_for("float32").floor
    assert all(item.distance is not None and item.distance <= bound for item in report.maps)


def test_maps_are_those_that_the_module_makes(made: Path) -> None:
    report = look(MODEL, made / "x.npz")
    model = load_model(MODEL).module
    gates = []
    for module in model.modules():
        if isinstance(module, CBAM):
            module.channel.register_forward_hook(lambda part, args, out: gates.append((out / args[0]).amax((2, 3))))
    with torch.no_grad():
        model(torch.from_numpy(np.load(made / "x.npz")["x"]))
    channels = [item.original for item in report.maps if item.kind == "channel"]
    for found, truth in zip(channels, gates, strict=True):
        known = truth.isfinite().numpy()
        assert np.allclose(found[known], truth.numpy()[known], atol=1e-5)


def test_half_precision_moves_the_maps_a_little(made: Path) -> None:
    report = look(str(made / "half.engine"), made / "x.npz")
    distances = [item.distance or 0.0 for item in report.maps]
    assert 0 < max(distances) < 0.01


@pytest.mark.parametrize(
    ("op", "engine", "distance"),
    [
        ("SoftmaxAttention", [[[[0.0, 1.0], [0.5, 0.5]]]], 0.5),
        ("AttentionGate", [[[[1.0, 0.0], [0.5, 0.0]]]], 0.125),
        ("HardAttention", [[[[1.0, 0.0], [0.5, 2.0]]]], 0.25),
    ],
)
def test_distance_by_hand(op: str, engine: list[object], distance: float) -> None:
    original = np.array([[[[1.0, 0.0], [0.5, 0.5]]]])
    assert AttentionMap(op, "a", "weights", original, np.array(engine)).distance == pytest.approx(distance)


def test_the_command_draws_and_describes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save("x.png")
    words = ["attention", str(made / "openvino.engine"), "--against", MODEL, "--input", "x.png", "-o", "map.png"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["maps"]) == 12
    assert set(report["maps"][0]) == {"op", "name", "map", "shape", "distance"}
    with Image.open("map.png") as drawn:
        assert drawn.width > 2 * 160
    assert Path("map.png").stat().st_size < 1_000_000


def test_what_cannot_be_looked_into_is_said(made: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    export_model(Model(torch.nn.Conv2d(1, 1, 1), (TensorSpec("x", "float32", (1, 1, 32, 32)),)), plain, check=False)
    with pytest.raises(InputError, match="no attention"):
        look(str(plain), made / "x.npz")
    with pytest.raises(UsageError, match="leave --against out"):
        look(MODEL, made / "x.npz", against=MODEL)
    with pytest.raises(InputError, match="no such file"):
        look(MODEL, tmp_path / "none.png")
