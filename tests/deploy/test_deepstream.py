from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeattn.cli import main
from edgeattn.deploy.deepstream import _preprocessing, deploy_deepstream
from edgeattn.errors import InputError, UsageError
from edgeattn.folding import FOLDED
from edgeattn.images import Recipe, preprocess
from edgeattn.tensors import TensorSpec
from tests.deploy.engines import engine_at

RECIPE = Recipe((64, 96))


def whole(text: str) -> int:
    return int(text)


def words(text: str) -> list[str]:
    return text.split(";")


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(";")]


def one_of(*known: int) -> Any:
    def read(text: str) -> int:
        assert int(text) in known
        return int(text)

    return read


# How nvinfer reads those of its keys that are written; it refuses other values, and warns of other keys.
KEYS = {
    "gpu-id": whole,
    "gie-unique-id": whole,
    "process-mode": one_of(1, 2),
    "model-engine-file": str,
    "batch-size": whole,
    "network-mode": one_of(0, 1, 2, 3),
    "labelfile-path": str,
    "infer-dims": numbers,
    "network-input-order": one_of(0, 1),
    "model-color-format": one_of(0, 1, 2),
    "net-scale-factor": float,
    "offsets": numbers,
    "maintain-aspect-ratio": one_of(0, 1),
    "symmetric-padding": one_of(0, 1),
    "scaling-filter": one_of(0, 1, 2, 3, 4, 5, 6),
    "network-type": one_of(0, 1, 2, 3, 100),
    "output-tensor-meta": one_of(0, 1),
    "num-detected-classes": whole,
    "segmentation-threshold": float,
    "segmentation-output-order": one_of(0, 1),
    "classifier-threshold": float,
}


def read(path: Path) -> dict[str, Any]:
    """A configuration as nvinfer reads it."""
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.read_string(path.read_text())
    assert parser.sections() == ["property"]
    return {key: KEYS[key](text) for key, text in parser["property"].items()}


def written(folder: Path, recipe: Recipe = RECIPE, **settings: Any) -> tuple[dict[str, Any], str]:
    """What is written for an engine of `engine_at`, and the notes."""
    changed = {key: settings.pop(key) for key in list(settings) if key not in ("task", "names")}
    engine = engine_at(folder / "m.engine", **changed)
    report = deploy_deepstream(engine, folder / "config.txt", recipe=recipe, **settings)
    return read(folder / "config.txt"), "\n".join(report.notes)


colours = st.sampled_from(["rgb", "bgr", "gray"])


@settings(max_examples=60, deadline=None)
@given(colours, st.floats(1e-3, 2), st.floats(0.05, 4), st.lists(st.floats(-2, 2), min_size=3, max_size=3), st.data())
def test_nvinfer_computes_what_the_recipe_says(
    color: str, scale: float, std: float, mean: list[float], data: st.DataObject
) -> None:
    channels = 1 if color == "gray" else 3
    recipe = Recipe((4, 5), color=color, scale=scale, mean=tuple(mean[:channels]), std=(std,) * channels)
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (4, 5, 3), np.uint8)
    picture = Image.fromarray(pixels)
    keys, _ = _preprocessing(recipe)
    # As nvdsinfer_conversion.cu: planes in the model's order of colours, float32.
    ordered = np.asarray(picture.convert("L"))[None] if color == "gray" else pixels.transpose(2, 0, 1)
    ordered = ordered[::-1] if color == "bgr" else ordered
    offsets = np.array(numbers(str(keys["offsets"])), np.float32)[:, None, None]
    y = np.float32(keys["net-scale-factor"]) * (ordered.astype(np.float32) - offsets)
    expected = preprocess(picture, recipe)
    assert np.abs(y - expected).max() <= 1e-5 * max(np.abs(expected).max(), (np.abs(mean).max() + scale * 255) / std)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.05, 4), min_size=3, max_size=3))
def test_one_scale_for_unlike_channels_errs_by_what_is_said(std: list[float]) -> None:
    keys, notes = _preprocessing(Recipe((4, 5), std=tuple(std)))
    wanted = 1 / 255 / np.array(std)
    error = float(np.abs(float(keys["net-scale-factor"]) / wanted - 1).max())
    if error > 1e-12:
        assert f"up to {100 * error:.2g} % too large or small" in notes[0]
    for other in wanted:  # none of them would err less
        assert np.abs(other / wanted - 1).max() >= error - 1e-9


def test_the_engine_is_named_from_where_the_configuration_stands(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "models").mkdir()
    engine = engine_at(tmp_path / "models" / "m.engine")
    deploy_deepstream(engine, tmp_path / "config" / "nvinfer.txt", recipe=RECIPE)
    assert read(tmp_path / "config" / "nvinfer.txt")["model-engine-file"] == "../models/m.engine"


def test_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    keys, notes = written(tmp_path, names=tmp_path / "names.txt")
    assert keys["infer-dims"] == [3, 64, 96]
    assert (keys["batch-size"], keys["network-mode"], keys["network-type"]) == (8, 2, 1)
    assert keys["maintain-aspect-ratio"] == 0
    assert (tmp_path / keys["labelfile-path"]).read_text() == "ant;bee;cat\n"
    assert "end the graph with a softmax" in notes


@pytest.mark.parametrize(
    ("shape", "dtype", "network", "said"),
    [
        (("batch", 7, 64, 96), "float32", 2, "end the graph with a softmax"),
        (("batch", 1, 64, 96), "float32", 2, "-1 elsewhere"),
        (("batch", 7, 32, 48), "float32", 100, "segmentation from y"),  # nvinfer would read beyond it
        (("batch", 7, 64, 96), "float16", 100, "no parser"),
        (("batch", 64, 96), "int64", 100, "segmentation from y"),
        (("batch", 30, 6), "float32", 100, "write a parser of the boxes"),
        (("batch", 30, 4, 5, 6), "float32", 100, "no known task"),
    ],
)
def test_outputs_go_to_a_parser_that_reads_them_right_or_to_none(
    shape: tuple[Any, ...], dtype: str, network: int, said: str, tmp_path: Path
) -> None:
    keys, notes = written(tmp_path, outputs=(TensorSpec("y", dtype, shape),))
    assert keys["network-type"] == network
    assert (keys.get("output-tensor-meta") == 1) == (network == 100)
    assert keys.get("num-detected-classes") == (shape[1] if network == 2 else None)
    assert said in notes


def test_several_outputs_are_attached_as_tensors(tmp_path: Path) -> None:
    outputs = (TensorSpec("scores", "float32", ("batch", 5)), TensorSpec("map", "float32", ("batch", 1, 8, 8)))
    assert written(tmp_path, outputs=outputs)[0]["network-type"] == 100


def test_what_nvinfer_does_otherwise_is_said_and_stands_in_the_file(tmp_path: Path) -> None:
    recipe = Recipe((64, 96), "crop", "bicubic", std=(0.2, 0.3, 0.4))
    keys, notes = written(tmp_path, recipe)
    assert keys["scaling-filter"] == 2
    for what in ("one scale for all channels", "does not crop", "96:64", "bicubic filter does not smooth"):
        assert what in notes
        assert what in (tmp_path / "config.txt").read_text()
    keys, notes = written(tmp_path, Recipe((64, 96), "letterbox"))
    assert keys["maintain-aspect-ratio"] == keys["symmetric-padding"] == 1
    assert "pads with black, where the recipe fills with 114" in notes
    assert "library" not in notes
    assert "custom-lib-path" in written(tmp_path, plugins=({"route": "library"},))[1]


def test_a_recipe_that_nvinfer_follows_exactly_has_nothing_to_say_of_pictures(tmp_path: Path) -> None:
    notes = written(tmp_path, Recipe((64, 96), "letterbox", "nearest", mean=(0.5, 0.4, 0.3), std=(0.2,) * 3, fill=0))[1]
    assert notes.startswith("nvinfer gives a class only where")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"backend": "openvino"}, "is an engine of openvino; DeepStream runs TensorRT's own"),
        ({"backend": "tensorrt-rtx"}, "is an engine of tensorrt-rtx"),
        ({"inputs": (TensorSpec("x", "float16", ("batch", 3, 64, 96)),)}, "without --no-keep-io-types"),
        ({"inputs": (TensorSpec("x", "float32", ("batch", 64)),)}, "is no batch of images"),
        ({"inputs": tuple(TensorSpec(name, "float32", (1, 3, 64, 96)) for name in "ab")}, "has 2 inputs"),
    ],
)
def test_an_engine_that_nvinfer_cannot_feed_is_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        written(tmp_path, **changed)
    assert not (tmp_path / "config.txt").exists()


def test_an_engine_that_takes_pixels_is_refused(tmp_path: Path) -> None:
    folded = '{"size": [64, 96], "color": "rgb"}'
    with pytest.raises(UsageError, match="without --fold-preprocess"):
        written(tmp_path, graph={FOLDED: folded}, inputs=(TensorSpec("x", "uint8", ("batch", 64, 96, 3)),))


def test_a_recipe_for_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not fit the engine"):
        written(tmp_path, Recipe((96, 64)))


def test_names_that_nvinfer_would_part_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a;b\n")
    with pytest.raises(InputError, match="semicolon"):
        written(tmp_path, names=tmp_path / "names.txt")


def test_the_names_that_were_given_are_not_written_over(tmp_path: Path) -> None:
    names = tmp_path / "config_labels.txt"
    names.write_text("ant\nbee\n")
    with pytest.raises(UsageError, match="would overwrite"):
        written(tmp_path, names=names)
    assert names.read_text() == "ant\nbee\n"


@pytest.mark.parametrize(("name", "value"), [("a\\sb", "a\\\\sb"), ("  a", "\\s a"), ("a;b#ü", "a;b#ü")])
def test_glib_reads_the_path_as_it_is(name: str, value: str, tmp_path: Path) -> None:
    deploy_deepstream(engine_at(tmp_path / name), tmp_path / "config.txt", recipe=RECIPE)
    assert f"\nmodel-engine-file={value}\n" in (tmp_path / "config.txt").read_text()


def test_a_name_cannot_write_keys_of_its_own(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "m\n[property]\ngpu-id=7 .engine")
    with pytest.raises(UsageError, match="line break"):
        deploy_deepstream(engine, tmp_path / "config.txt", recipe=RECIPE)


def test_the_command_writes_and_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_at(tmp_path / "m.engine")
    assert main(["deploy", str(engine), "--deepstream", str(tmp_path / "c.txt")]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "c.txt") in said
    assert "end the graph with a softmax" in said
    engine_at(tmp_path / "m.engine", backend="onnxruntime")
    assert main(["deploy", str(engine), "--deepstream", str(tmp_path / "c.txt")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
