"""The data sets hold what they say: the same everywhere, split by source, and labelled as the pictures show."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.feature import match_template
from sklearn.datasets import load_digits

from edgeattn.data import load_recipe, open_data
from edgeattn.errors import EdgeAttnError, MissingDependencyError
from edgeattn.tensors import TensorSpec
from edgeattn.zoo.data import DATASETS, sources, write_cluttered, write_digits, write_saliency, write_scenes
from edgeattn.zoo.data.clips import clip, reflected, write_clips
from edgeattn.zoo.data.cluttered import cluttered
from edgeattn.zoo.data.fusion import fusion, write_fusion
from edgeattn.zoo.data.saliency import saliency
from edgeattn.zoo.data.scenes import LEAST_SEEN, scene

RECIPES = Path(__file__).parents[2] / "calibration"
SPLITS = ("train", "test")
sets = pytest.mark.parametrize("name", DATASETS)


def contents(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def held_out(scan: int) -> bool:
    """Every fifth scan of a class is for the test."""
    target = load_digits().target
    return np.flatnonzero(target == target[scan]).tolist().index(scan) % 5 == 4


# What holds for every set


@sets
def test_samples_are_the_same_each_time_and_whatever_the_count(name: str, tmp_path: Path) -> None:
    for folder, count in (("a", 5), ("b", 5), ("fewer", 3)):
        assert DATASETS[name](tmp_path / folder, "train", count) == count
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    fewer = {path: digest for path, digest in contents(tmp_path / "fewer").items() if path != "annotations.json"}
    assert fewer.items() <= contents(tmp_path / "a").items()


@sets
def test_splits_differ(name: str, tmp_path: Path) -> None:
    for split in SPLITS:
        DATASETS[name](tmp_path / split, split, 4)
    first, second = (set(contents(tmp_path / split).values()) for split in SPLITS)
    if name in ("saliency", "scenes"):  # an empty corner of a mask is like any other
        first, second = ({contents(tmp_path / split)[f"images/0000{n}.png"] for n in range(4)} for split in SPLITS)
    assert not first & second


@sets
def test_a_folder_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeAttnError, match=r"cannot write .*file"):
        DATASETS[name](tmp_path / "file" / "inside", "test", 1)


@pytest.mark.parametrize("name", ["digits", "cluttered", "scenes", "saliency"])
def test_recipe_has_the_mean_and_deviation_of_the_training_pictures(name: str, tmp_path: Path) -> None:
    DATASETS[name](tmp_path, "train", 150)
    recipe = load_recipe(RECIPES / f"{name}.toml")
    channels = 1 if recipe.color == "gray" else 3
    data = open_data(tmp_path, [TensorSpec("x", "float32", (1, channels, *recipe.size))], recipe)
    x = np.concatenate([sample.feeds["x"] for sample in data])
    assert np.abs(x.mean((0, 2, 3))).max() < 0.15
    assert np.abs(x.std((0, 2, 3)) - 1).max() < 0.15


def test_no_photograph_and_no_coin_is_in_both_splits() -> None:
    assert not set(sources.PHOTOGRAPHS["train"]) & set(sources.PHOTOGRAPHS["test"])
    coins = {split: {picture.tobytes() for picture, _ in sources.coins(split)} for split in SPLITS}
    assert len(coins["train"]) == 18
    assert len(coins["test"]) == 6
    assert not coins["train"] & coins["test"]


def test_without_their_sources_the_sets_name_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn.datasets", "skimage.data"):
        monkeypatch.setitem(sys.modules, package, None)
    for source in (sources.scans, sources.photographs):
        with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
            source.__wrapped__("train")


# Digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for split in SPLITS:
        write_digits(folder / split, split)
    return folder


def test_digits_are_whole_stratified_and_disjoint(digits: Path) -> None:
    found = {split: {path.name for path in (digits / split).rglob("*.png")} for split in SPLITS}
    assert not found["train"] & found["test"]
    assert len(found["train"] | found["test"]) == 1797
    for label in range(10):
        train_count, test_count = (len(list((digits / split / str(label)).iterdir())) for split in SPLITS)
        assert 0.19 < test_count / (train_count + test_count) < 0.21


def test_digits_are_the_scans(digits: Path) -> None:
    scans = load_digits()
    for path in sorted((digits / "test").rglob("*.png"))[::20]:
        index = int(path.stem)
        assert scans.target[index] == int(path.parent.name)
        assert np.array_equal(np.rint(pixels(path).astype(float) * 16 / 255), scans.images[index])


@pytest.mark.parametrize("split", SPLITS)
def test_cluttered_digits_are_named_by_scan_and_lie_in_its_class(split: str, tmp_path: Path) -> None:
    write_cluttered(tmp_path, split, 60)
    target = load_digits().target
    for path in tmp_path.rglob("*.png"):
        scan = int(path.stem.partition("-")[2])
        assert target[scan] == int(path.parent.name)
        assert held_out(scan) == (split == "test")
        assert pixels(path).shape == (48, 48)


def likeness(picture: np.ndarray, scan: int, size: int) -> float:
    """How well a scan, enlarged to `size`, fits anywhere in a picture: the highest normalised correlation."""
    gray = np.rint(load_digits().images[scan] * (255 / 16)).astype(np.uint8)
    enlarged = np.asarray(Image.fromarray(gray).resize((size, size), Image.Resampling.BICUBIC))
    return float(match_template(picture.astype(float), enlarged.astype(float)).max())


def test_the_scan_is_what_the_cluttered_picture_shows() -> None:
    rng = np.random.default_rng(0)
    target = load_digits().target
    won = 0
    for number in range(40):
        picture, label, scan = cluttered("train", number)
        other = int(rng.choice(np.flatnonzero(target != label)))
        won += likeness(picture, scan, 24) > likeness(picture, other, 24)
    assert won >= 32


# Clips


def test_a_clip_shows_its_digit_in_some_frames_and_not_in_the_others() -> None:
    target = load_digits().target
    shown_likeness, hidden_likeness = [], []
    for number in range(12):
        frames, label, scan, shown = clip("test", number)
        assert target[scan] == label
        assert held_out(scan)
        assert 2 <= len(set(shown)) <= 3
        fits = [likeness(frame, scan, 17) for frame in frames]
        shown_likeness += [fits[time] for time in shown]
        hidden_likeness += [fit for time, fit in enumerate(fits) if time not in shown]
    assert np.mean(shown_likeness) > np.mean(hidden_likeness) + 0.2


def test_a_clip_is_a_sample_of_its_own_arrays(tmp_path: Path) -> None:
    write_clips(tmp_path, "test", 3)
    for number, sample in enumerate(open_data(tmp_path, [TensorSpec("frames", "float32", (1, 8, 1, 32, 32))])):
        frames, label, *_ = clip("test", number)
        assert sample.label == label
        assert np.abs((sample.feeds["frames"][0, :, 0] + 1) * 127.5 - frames).max() < 1e-3


def test_a_point_is_reflected_between_its_walls() -> None:
    assert [reflected(value, 3, 6) for value in range(-1, 12)] == [5, 6, 5, 4, 3, 4, 5, 6, 5, 4, 3, 4, 5]


# Fusion


@pytest.mark.parametrize("split", SPLITS)
def test_the_label_is_the_digit_that_the_depth_map_shows_nearest(split: str, tmp_path: Path) -> None:
    write_fusion(tmp_path, split, 30)
    target = load_digits().target
    specs = [TensorSpec("rgb", "float32", (1, 3, 48, 48)), TensorSpec("depth", "float32", (1, 1, 48, 48))]
    for number, sample in enumerate(open_data(tmp_path, specs)):
        _, depth, standing = fusion(split, number)
        assert len({label for _, label, _ in standing}) == len(standing) >= 2
        assert all(target[scan] == label and held_out(scan) == (split == "test") for _, label, scan in standing)
        seen = np.sort((sample.feeds["depth"].ravel() + 1) * 127.5)[100]  # a board has some 250 pixels
        nearest = min(standing, key=lambda item: abs(item[0] - seen))
        assert sample.label == nearest[1]
        assert np.abs((sample.feeds["depth"][0, 0] + 1) * 127.5 - depth).max() < 1e-3


# Scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, "test", 80)
    return folder


def test_annotations_are_coco_s(scenes: Path) -> None:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(scenes / "annotations.json"))
    assert len(coco.getImgIds()) == 80
    assert [item["name"] for item in coco.loadCats(coco.getCatIds())] == ["disc", "square", "triangle", "star", "ring"]
    for image in coco.loadImgs(coco.getImgIds()):
        assert pixels(scenes / "images" / image["file_name"]).shape == (image["height"], image["width"], 3)
        assert 1 <= len(coco.getAnnIds(image["id"])) <= 4


def test_boxes_are_tight_around_what_the_mask_shows(scenes: Path) -> None:
    document = json.loads((scenes / "annotations.json").read_text())
    alone = 0
    for image in document["images"]:
        mask = pixels(scenes / "masks" / image["file_name"])
        own = [item for item in document["annotations"] if item["image_id"] == image["id"]]
        assert {item["category_id"] for item in own} == set(np.unique(mask)) - {0}
        assert sum(item["area"] for item in own) == (mask > 0).sum()
        for item in own:
            rows, columns = np.nonzero(mask == item["category_id"])
            left, top, width, height = item["bbox"]
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if sum(other["category_id"] == item["category_id"] for other in own) == 1:
                alone += 1
                assert [left, top, left + width, top + height] == box
                assert item["area"] == len(rows)
            else:
                assert box[0] <= left < left + width <= box[2]
                assert box[1] <= top < top + height <= box[3]
    assert alone > 50


def test_at_least_half_of_an_object_is_seen_and_its_shape_is_its_category() -> None:
    for number in range(30):
        _, mask, seen = scene("train", number)
        for category, visible in seen:
            assert (mask[visible] == category).all()
            hull = sources.outline("disc", 64, (32, 32), 18, 0) >= 128  # the largest of all objects
            assert 60 * LEAST_SEEN <= visible.sum() <= hull.sum()


@pytest.mark.parametrize(
    ("kind", "share"),
    [("disc", np.pi), ("square", 2), ("triangle", 3 * 3**0.5 / 4), ("star", 10 * 0.42 * np.sin(np.pi / 5) / 2),
     ("ring", np.pi * (1 - 0.55**2))],
)  # fmt: skip
def test_an_outline_has_the_area_of_its_shape_however_it_is_turned(kind: str, share: float) -> None:
    for degrees in (0, 17, 200):
        area = sources.outline(kind, 64, (31, 33), 20, degrees).sum() / 255
        assert area == pytest.approx(share * 20**2, rel=0.06)


def test_scenes_open_as_masks_and_as_boxes(scenes: Path) -> None:
    spec, recipe = TensorSpec("x", "float32", (1, 3, 64, 64)), load_recipe(RECIPES / "scenes.toml")
    masks = list(open_data(scenes, [spec], recipe))
    boxes = list(open_data(scenes, [spec], recipe, prefer="boxes"))
    for number, (with_mask, with_boxes) in enumerate(zip(masks, boxes, strict=True)):
        _, mask, seen = scene("test", number)
        assert np.array_equal(with_mask.label, mask)
        assert sorted(with_boxes.label[:, 4]) == sorted(category - 1 for category, _ in seen)
        assert np.array_equal(with_mask.feeds["x"], with_boxes.feeds["x"])


# Saliency


def test_a_saliency_mask_is_where_the_picture_stands_out(tmp_path: Path) -> None:
    write_saliency(tmp_path, "test", 40)
    distances = []
    for path in sorted((tmp_path / "masks").iterdir()):
        mask, picture = pixels(path), pixels(tmp_path / "images" / path.name).astype(float)
        assert set(np.unique(mask)) == {0, 1}
        assert 0.02 < mask.mean() < 0.6
        distances.append(np.abs(picture[mask == 1].mean(0) - picture[mask == 0].mean(0)).sum())
    assert np.median(distances) > 120


def test_training_shows_a_horse_and_the_test_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeattn.zoo.data import saliency as module

    asked = []
    monkeypatch.setattr(module, "horse", lambda: asked.append(1) or np.full((9, 9), 255, np.uint8))
    for number in range(20):
        saliency("test", number)
    assert not asked
    for number in range(20):
        saliency("train", number)
    assert asked
