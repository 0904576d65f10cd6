from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeattn.data import Dataset, Recipe, batches, load_recipe, open_data
from edgeattn.errors import InputError
from edgeattn.metrics.segmentation import Segmentation
from edgeattn.tensors import TensorSpec

GRAY = TensorSpec("x", "float32", ("batch", 1, 4, 6))
ROADS = os.environ.get("EDGEATTN_CAMVID")  # read now: tests do not see the settings of the machine
COCO = {
    "images": [{"id": 7, "file_name": "b.png"}, {"id": 3, "file_name": "deep/a.png", "width": 6, "height": 4}],
    "categories": [{"id": 90, "name": "ape"}, {"id": 2, "name": "owl"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 0, 2.5, 3]},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 6, 4], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 90, "bbox": [0, 0, 2, 2], "iscrowd": 1},
    ],
}


def draw(path: Path, level: int = 0, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).save(path)


def labels(data: Dataset) -> dict[str, Any]:
    return {sample.name: sample.label for sample in data}


def coco(folder: Path, **changes: Any) -> Path:
    draw(folder / "images" / "b.png")
    draw(folder / "images" / "deep" / "a.png")
    (folder / "annotations.json").write_text(json.dumps({**COCO, **changes}))
    return folder


@pytest.mark.parametrize("name", ["masks", "labels"])
def test_images_have_the_mask_of_their_name(name: str, tmp_path: Path) -> None:
    for level, stem in enumerate(("b", "deep/a.b", "c.1")):
        draw(tmp_path / "images" / f"{stem}.jpg")
        draw(tmp_path / name / f"{stem}.png", level)
    draw(tmp_path / name / "without_an_image.png", 9)
    draw(tmp_path / "depth" / "b.png", 200)
    found = labels(open_data(tmp_path, [GRAY]))
    assert {key: set(np.unique(mask)) for key, mask in found.items()} == {
        "images/b.jpg": {0}, "images/c.1.jpg": {2}, "images/deep/a.b.jpg": {1},
    }  # fmt: skip
    assert all(mask.shape == (4, 6) for mask in found.values())


def test_the_recipe_says_which_class_is_none(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.png")
    draw(tmp_path / "masks" / "a.png", 11)
    (mask,) = labels(open_data(tmp_path, [GRAY], Recipe((4, 6), color="gray", ignore=11))).values()
    assert np.all(mask == -1)


def test_annotations_name_images_and_boxes(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "not_named.png")
    found = labels(open_data(coco(tmp_path), [GRAY]))
    assert list(found) == ["images/b.png", "images/deep/a.png"]
    assert found["images/b.png"].tolist() == [[1, 0, 3.5, 3, 1], [0, 0, 6, 4, 0], [0, 0, 2, 2, -2]]
    assert found["images/deep/a.png"].shape == (0, 5)


def test_boxes_take_the_way_of_the_image(tmp_path: Path) -> None:
    found = labels(open_data(coco(tmp_path), [TensorSpec("x", "float32", (1, 3, 8, 18))]))
    assert found["images/b.png"][0].tolist() == [3, 0, 10.5, 6, 1]


def test_of_masks_and_boxes_the_caller_chooses(tmp_path: Path) -> None:
    coco(tmp_path)
    for name in ("b.png", "deep/a.png"):
        draw(tmp_path / "masks" / name, 1)
    for prefer, shape in (("masks", (4, 6)), ("boxes", (3, 5))):
        assert labels(open_data(tmp_path, [GRAY], prefer=prefer))["images/b.png"].shape == shape  # type: ignore[arg-type]
    (tmp_path / "annotations.json").unlink()
    assert labels(open_data(tmp_path, [GRAY], prefer="boxes"))["images/b.png"].shape == (4, 6)


def test_labels_of_a_batch_stay_apart(tmp_path: Path) -> None:
    ((names, feeds, joined),) = batches(open_data(coco(tmp_path), [GRAY]), 8)
    assert names == ("images/b.png", "images/deep/a.png")
    assert feeds["x"].shape == (2, 1, 4, 6)
    assert joined is not None
    assert [np.shape(boxes) for boxes in joined] == [(3, 5), (0, 5)]


def test_a_named_image_that_is_missing_is_bad_and_said(tmp_path: Path) -> None:
    data = open_data(coco(tmp_path, images=[*COCO["images"], {"id": 1, "file_name": "c.png"}]), [GRAY])
    assert len(list(data)) == 2
    assert "no such image" in data.bad[0]


def test_a_turned_image_is_measured_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("L", (4, 6)).save(tmp_path / "images" / "a.png", exif=exif)
    draw(tmp_path / "masks" / "a.png", 5)
    assert set(np.unique(labels(open_data(tmp_path, [GRAY]))["images/a.png"])) == {5}


def test_a_mask_or_boxes_of_another_size_are_bad(tmp_path: Path) -> None:
    draw(tmp_path / "m" / "images" / "a.png")
    draw(tmp_path / "m" / "masks" / "a.png", size=(3, 2))
    with pytest.raises(InputError, match="its image has 6x4"):
        list(open_data(tmp_path / "m", [GRAY]))
    images = [{"id": 7, "file_name": "b.png", "width": 12, "height": 8}]
    with pytest.raises(InputError, match=r"b\.png has 6x4 pixels, its boxes are of 12x8"):
        list(open_data(coco(tmp_path / "c", images=images), [GRAY]))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"images": 3}, "'int' object is not iterable"),
    ({"categories": []}, "90 is missing or unknown"),
    ({"images": []}, "7 is missing or unknown"),
    ({"annotations": [{"image_id": 7, "category_id": 2}]}, "'bbox' is missing or unknown"),
    ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3]}]}, "not enough values"),
    ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, "w"]}]}, "could not convert"),
    ({"annotations": [{"id": 5, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, float("nan")]}]}, "5 has the box"),
    ({"annotations": [{"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 10**400]}]}, "too large"),
    ({"annotations": [{"id": 5, "image_id": 7, "category_id": 2, "bbox": [4, 4, 2, -1]}]}, "5 has the box .*-1"),
    ({"annotations": ["box"]}, "string indices"),
    ({"images": [{"id": 7, "file_name": "../b.png"}], "annotations": []}, "not an image inside"),
    ({"images": [{"id": 7, "file_name": "/etc/b.png"}], "annotations": []}, "not an image inside"),
    ({"images": [{"id": 7, "file_name": "b.npz"}], "annotations": []}, "not an image inside"),
    ({"images": [{"id": 7, "file_name": "b\0.png"}], "annotations": []}, "not an image inside"),
    ({"images": [{"id": 7, "file_name": "\ud800.png"}], "annotations": []}, "not an image inside"),
])  # fmt: skip
def test_annotations_with_a_mistake_are_refused_in_words(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"annotations\.json.*{reason}"):
        open_data(coco(tmp_path, **changes), [GRAY])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_coco_file_is_refused(content: bytes, tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "annotations.json").write_bytes(content)
    with pytest.raises(InputError, match=r"annotations\.json as COCO instances"):
        open_data(tmp_path, [GRAY])


@pytest.mark.parametrize(("files", "reason"), [
    (["images/a.png", "masks/b.png"], r"a\.png has no mask: expected .*masks/a\.png"),
    (["images/a.png", "masks/a.png", "labels/a.png"], "both masks/ and labels/"),
    (["images/a.png", "masks/a.png", "masks/a.bmp"], "two masks of one name"),
    (["masks/a.png", "images/notes/.hidden.png"], "holds no images"),
])  # fmt: skip
def test_masks_that_do_not_pair_are_refused(files: list[str], reason: str, tmp_path: Path) -> None:
    for name in files:
        draw(tmp_path / name)
    with pytest.raises(InputError, match=reason):
        open_data(tmp_path, [GRAY])


@pytest.mark.skipif(not ROADS, reason="EDGEATTN_CAMVID does not name CamVid's folder (images/ and labels/)")
def test_real_road_scenes_open_as_they_are(tmp_path: Path) -> None:
    recipe = tmp_path / "roads.toml"
    recipe.write_text('[preprocess]\nsize = [96, 128]\nresize = "letterbox"\n[labels]\nignore = 11\n')
    data = open_data(str(ROADS), [TensorSpec("x", "float32", (1, 3, 96, 128))], load_recipe(recipe))
    metric, bright = Segmentation(), []
    for sample in data:
        assert isinstance(sample.label, np.ndarray)
        assert sample.label.shape == (96, 128)
        assert -1 <= sample.label.min() <= sample.label.max() <= 10
        luma = sample.feeds["x"][0].mean(0)
        bright.append(luma[sample.label == 0].mean() > luma[sample.label == 3].mean())  # sky and road
        metric.add(np.full((1, 96, 128), 3), [sample.label])
    assert not data.bad
    assert np.mean(bright) > 0.9
    assert 0.15 < metric.result()["pixel_accuracy"] < 0.5  # a road is that much of a road scene
