"""The whole way with real models and real pictures: video in, overlay out, judged by the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import edgeattn.camera
from edgeattn.build import build_engine
from edgeattn.camera.frame import Frame
from edgeattn.camera.outlets import Result
from edgeattn.camera.results import Mask
from edgeattn.camera.sinks.overlay import OPACITY, Overlay, colour_of
from edgeattn.camera.sinks.recording import Recording
from edgeattn.data import load_recipe
from edgeattn.export import export_model
from edgeattn.images import Recipe, read_image, read_mask
from edgeattn.metrics import task_named
from edgeattn.model import Model, load_model, parse_inputs
from edgeattn.zoo.data.scenes import scene
from tests.zoo.test_camvid import RECIPE, ROADS, learned_roads, needs_roads

Pictures = Sequence[NDArray[Any]]
BESIDE = 50  # columns on either side of a picture, which its recipe cuts off


def filmed(pictures: Pictures, path: Path) -> None:
    """Write pictures as a video, ten a second."""
    recording = Recording(path, lambda result: Image.fromarray(result.frame.image))
    for index, picture in enumerate(pictures):
        recording(Result(Frame(picture, index, index / 10, index / 10, "film"), {}, None, {}))
    recording.close()


def watched_masks(film: Path, engine: Path, recipe: Recipe) -> Pictures:
    """The masks of a video's frames, all of them in order, at their size; the overlays are looked at on the way."""
    masks = []
    overlay = Overlay(recipe)
    for index, result in enumerate(edgeattn.camera.open(str(film), engine, recipe=recipe)):
        assert result.frame.index == index
        assert isinstance(result.value, Mask)
        masks.append(result.value.mask)
        picture = np.asarray(overlay(result)).astype(float)
        # Above the list of classes, the overlay is the frame with the colours of the mask.
        colours = np.array([colour_of(number) for number in range(12)])[np.maximum(result.value.mask, 0)]
        expected = (1 - OPACITY) * result.frame.image + OPACITY * np.where(result.value.mask[..., None] < 0, 0, colours)
        assert np.abs(picture - expected)[: len(picture) // 2].max() <= 1
    return masks


def miou(masks: Pictures, truth: Pictures) -> float:
    metric = task_named("segmentation")()
    metric.add(np.stack(masks), list(truth))
    return metric.result()["miou"]


@pytest.mark.slow
def test_a_model_of_the_zoo_sees_the_objects_in_a_video_where_they_are(tmp_path: Path) -> None:
    model = load_model("zoo:unet")
    export_model(Model(model.module, parse_inputs([], model.module)), tmp_path / "m.onnx", check=False)
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend="openvino", check=False)
    scenes = [scene("test", number)[:2] for number in range(16)]
    large = [(picture.repeat(5, 0).repeat(5, 1), mask.repeat(5, 0).repeat(5, 1)) for picture, mask in scenes]
    frames = [np.pad(picture, ((0, 0), (BESIDE, BESIDE), (0, 0)), constant_values=90) for picture, _ in large]
    filmed(frames, tmp_path / "film.mp4")
    shipped = load_recipe(Path(__file__).parents[2] / "calibration" / "scenes.toml")
    recipe = Recipe(shipped.size, "crop", mean=shipped.mean, std=shipped.std)
    masks = watched_masks(tmp_path / "film.mp4", tmp_path / "m.engine", recipe)
    assert len(masks) == len(scenes)
    assert all((mask[:, :BESIDE] == -1).all() and (mask[:, -BESIDE:] == -1).all() for mask in masks)
    inside = [mask[:, BESIDE:-BESIDE] for mask in masks]
    assert miou(inside, [mask.astype(np.int64) for _, mask in large]) > 0.55  # 0.75 on its whole test set


@pytest.mark.slow
@needs_roads
def test_road_scenes_are_segmented_in_a_video_as_they_are_in_pictures(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "r.toml")
    export_model(learned_roads(recipe), tmp_path / "m.onnx", check=False)
    build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend="openvino", check=False)
    paths = sorted(Path(f"{ROADS}/val/images").iterdir())[::8]
    pictures = [np.asarray(read_image(path).convert("RGB")) for path in paths]
    height, width = pictures[0].shape[:2]
    filmed(pictures, tmp_path / "film.mp4")
    masks = watched_masks(tmp_path / "film.mp4", tmp_path / "m.engine", recipe)
    stills = [
        result.value.mask
        for result in edgeattn.camera.open(iter(pictures), tmp_path / "m.engine", recipe=recipe)
        if isinstance(result.value, Mask)
    ]
    full = Recipe((height, width), ignore=recipe.ignore)
    labels = [next(Path(f"{ROADS}/val/labels").glob(f"{path.stem}*")) for path in paths]
    truth = [read_mask(label, (width, height), full) for label in labels]
    found = miou(masks, truth)
    assert found > 0.12  # sky, road and buildings: one class of eleven everywhere would be below 0.03
    assert abs(found - miou(stills, truth)) < 0.02  # what the codec lost
