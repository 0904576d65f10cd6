from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image

from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine
from edgeattn.calibrate import calibrate
from edgeattn.cli import main
from edgeattn.data import open_data
from edgeattn.engine import read_sidecar
from edgeattn.errors import InputError, UsageError
from edgeattn.export import export_model
from edgeattn.graph import load_graph, save_graph
from edgeattn.maps import AttentionMap, look, watched
from edgeattn.maps.picture import PANEL, _label, panel, picture
from edgeattn.maps.watch import watches_in
from edgeattn.model import Model, load_model, parse_inputs
from edgeattn.nn import CBAM
from edgeattn.precision.ranges import save_ranges
from edgeattn.tensors import TensorSpec
from edgeattn.tolerance import tolerance_for
from tests.graphs import FLOAT, graph_of

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
    shape, relu = [1, 1, 32, 32], helper.make_node("Relu", ["x"], ["y"])
    save_graph(graph_of([relu], [("x", FLOAT, shape)], [("y", FLOAT, shape)]), tmp_path / "plain.onnx")
    with pytest.raises(InputError, match="no attention"):
        look(str(tmp_path / "plain.onnx"), made / "x.npz")
    with pytest.raises(UsageError, match="leave --against out"):
        look(MODEL, made / "x.npz", against=MODEL)
    with pytest.raises(InputError, match="no such file"):
        look(MODEL, tmp_path / "none.png")
    with pytest.raises(InputError, match=r"no such file: .*none\.engine"):
        look(str(tmp_path / "none.engine"), made / "x.npz")
    with pytest.raises(UsageError, match="name the original"):
        look(str(made / "m.onnx"), made / "x.npz", weights=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="zoo:cbam_yolo refuses"):
        look(str(made / "m.onnx"), made / "x.npz", against="zoo:cbam_yolo")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.zeros((1, 1, 32, 32), np.float32)}, "unknown input 'y'"),
        ({"x": np.zeros((1, 1, 32, 31), np.float32)}, "expected shape 1x1x32x32, got 1x1x32x31"),
        ({"x": np.zeros((1, 1, 32, 32))}, "expected float32, got float64"),
        ({"x": np.full((1, 1, 32, 32), np.nan, np.float32)}, "not finite"),
    ],
    ids=["name", "shape", "dtype", "nan"],
)
def test_arrays_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], says: str, made: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=says):
        look(str(made / "m.onnx"), tmp_path / "bad.npz")


def test_an_engine_and_its_graph_may_move_together(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("old", "new"):
        Path(folder).mkdir()
    shutil.copy(made / "m.onnx", "old/m.onnx")
    build_engine("old/m.onnx", Path("old/m.engine"), backend="onnxruntime", check=False)
    for name in ("m.engine", "m.engine.json", "m.onnx"):
        Path("old", name).rename(Path("new", name))
    assert len(look("new/m.engine", made / "x.npz").maps) == 12
    other = onnx.load("new/m.onnx")
    other.doc_string = "another graph, where its own once was"
    onnx.save(other, "old/m.onnx")
    assert len(look("new/m.engine", made / "x.npz").maps) == 12
    Path("new/m.onnx").unlink()
    with pytest.raises(InputError, match="has changed since"):
        look("new/m.engine", made / "x.npz")
    Path("old/m.onnx").unlink()
    with pytest.raises(InputError, match="which is gone"):
        look("new/m.engine", made / "x.npz")


def test_maps_of_an_int8_engine_take_its_ranges(made: Path, tmp_path: Path) -> None:
    graph = load_graph(made / "m.onnx")
    for index in range(3):
        x = np.random.default_rng(index).random((1, 1, 32, 32), np.float32)
        np.savez(tmp_path / f"{index}.npz", x=x)
    ranges = calibrate(graph, open_data(tmp_path, graph.inputs))
    save_ranges(ranges, tmp_path / "ranges.json")
    for backend in ("openvino", "onnxruntime"):
        build_engine(
            made / "m.onnx", tmp_path / f"{backend}.engine", BuildConfig("int8"), backend, check=False, ranges=ranges
        )
        report = look(str(tmp_path / f"{backend}.engine"), made / "x.npz", ranges=tmp_path / "ranges.json")
        assert len(report.maps) == 12
        assert 1e-4 < max(item.distance or 0.0 for item in report.maps) < 0.1
    # ONNX Runtime's plan holds the ranges itself.
    assert look(str(tmp_path / "onnxruntime.engine"), made / "x.npz").maps
    with pytest.raises(InputError, match=r"openvino\.engine is in INT8, .* give them with --ranges"):
        look(str(tmp_path / "openvino.engine"), made / "x.npz")
    save_ranges(dataclasses.replace(ranges, data_sha256="other"), tmp_path / "ranges.json")
    with pytest.raises(InputError, match=r"not what .* was calibrated on: data_sha256"):
        look(str(tmp_path / "openvino.engine"), made / "x.npz", ranges=tmp_path / "ranges.json")


def test_a_sample_is_repeated_to_a_fixed_batch(made: Path, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), CBAM(8)).eval()
    for batch in (1, 2):
        specs = (TensorSpec("x", "float32", (batch, 1, 32, 32)),)
        export_model(Model(module, specs), tmp_path / f"{batch}.onnx", check=False)
    one, two = (look(str(tmp_path / f"{batch}.onnx"), made / "x.npz").maps[0].original for batch in (1, 2))
    assert np.allclose(two, np.concatenate([one, one]), atol=1e-6)


@pytest.mark.parametrize("form", ["npz", "recipe", "nothing"])
def test_a_model_that_does_not_say_what_it_takes_is_given_the_sample(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from torch import nn\nfrom edgeattn.nn import CBAM\n"
        "def own(): return nn.Sequential(nn.Conv2d(3, 8, 1), CBAM(8))\n"
    )
    np.savez("x.npz", input=np.ones((1, 3, 9, 7), np.float32), label=3)
    Image.new("RGB", (30, 20)).save("x.png")
    Path("r.toml").write_text("[preprocess]\nsize = [9, 7]")
    if form == "nothing":
        with pytest.raises(UsageError, match="or decorate it"):
            look("own.py:own", "x.png")
        return
    sample, recipe = ("x.npz", None) if form == "npz" else ("x.png", "r.toml")
    assert look("own.py:own", sample, recipe=recipe).maps[1].original.shape == (1, 1, 9, 7)


# Pictures


def test_maps_lie_on_the_picture_that_the_model_sees(made: Path, tmp_path: Path) -> None:
    across = np.clip(np.linspace(-0.5, 1.5, 80), 0, 1)  # black, in the middle half from black to white, white
    pixels = np.tile(65535 * across, (40, 1)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    (tmp_path / "r.toml").write_text('[preprocess]\nsize = [32, 32]\nresize = "crop"\ncolor = "gray"\nmean = [0.5]')
    seen = look(str(made / "m.onnx"), tmp_path / "x.png", recipe=tmp_path / "r.toml").image
    assert seen is not None
    assert (seen.shape, seen.dtype) == ((32, 32, 3), np.uint8)
    # Cut to the middle and turned: from white on the left to black on the right, and nothing before and after.
    assert np.abs(seen[..., 0].astype(int) - np.linspace(252, 3, 32).astype(int)).max() <= 4


def test_a_query_that_no_attention_has_is_refused_and_one_that_some_lack_is_told() -> None:
    many = AttentionMap("SoftmaxAttention", "many", "weights", np.eye(4).reshape(1, 1, 4, 4))
    few = AttentionMap("SoftmaxAttention", "few", "weights", np.ones((3, 1, 2, 4)))
    gate = AttentionMap("ChannelGate", "gate", "weights", np.array([[0.2, np.nan, np.inf]]))
    picture([many, few, gate], None, query=3)
    assert _label(many, 3) == "many (SoftmaxAttention weights, query 3)"
    assert _label(few, 3) == "few (SoftmaxAttention weights, all queries, first of 3)"
    assert _label(gate, 3) == "gate (ChannelGate weights)"
    with pytest.raises(UsageError, match="no query 4: the softmax attention here has 4"):
        picture([many, few], None, query=4)
    with pytest.raises(UsageError, match="no query 0: the softmax attention here has 0"):
        picture([gate], None, query=0)


def test_a_choice_is_drawn_where_its_items_are(tmp_path: Path) -> None:
    model = load_model("zoo:dynamic_capacity_network")
    specs = parse_inputs([], model.module)
    export_model(Model(model.module, specs), tmp_path / "m.onnx", check=False)
    (watch,) = watched(load_graph(tmp_path / "m.onnx"))[1]
    assert watch.items == 36
    black = Image.new("RGB", (PANEL, PANEL))
    chosen = AttentionMap(watch.op, watch.name, watch.kind, np.array([[0, 35]]), items=36)
    drawn = np.asarray(panel(chosen, chosen.original, black), int).sum(2)
    assert drawn[0, 0] == drawn[-1, -1] == drawn.max()
    assert drawn[0, -1] == drawn[-1, 0] == drawn.min()


def test_a_picture_is_a_png_by_its_name(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["attention", str(made / "m.onnx"), "--input", str(made / "x.npz"), "-o", str(tmp_path / "map.jpg")]
    assert main(words) == 2
    assert "call it map.png" in capsys.readouterr().err


def test_a_graph_with_its_maps_as_outputs_is_a_file_that_builds(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attention", str(made / "m.onnx"), "--expose", str(tmp_path / "maps.onnx")]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(names) == 12
    build_engine(tmp_path / "maps.onnx", tmp_path / "maps.engine", backend="onnxruntime")
    sidecar = read_sidecar(tmp_path / "maps.engine")
    assert [spec.name for spec in sidecar.outputs] == ["output", *names]
    assert [watch.output for watch in watches_in(sidecar.graph)] == names
    assert main(["attention", str(made / "m.onnx")]) == 2
    assert "--input" in capsys.readouterr().err
