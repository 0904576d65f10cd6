from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from edgeattn.camera.results import Boxes, Classes, Mask, Saliency, name_of, read_names, reading_of
from edgeattn.errors import InputError, UsageError
from edgeattn.images import Recipe
from edgeattn.zoo.boxes import detections

SQUARE = Recipe((64, 64))
SIZE = (128, 96)


def test_scores_become_probabilities_and_probabilities_stay() -> None:
    logits = np.array([[2.0, -1.0, 5.0]], np.float32)
    reading = reading_of({"scores": logits}, names=("ant", "", "cat"))
    value = reading.value({"scores": logits}, SIZE, SQUARE, top=2)
    expected = torch.tensor(logits[0], dtype=torch.float64).softmax(0).numpy()
    assert isinstance(value, Classes)
    assert [number for number, _ in value.best] == [2, 0]
    assert [p for _, p in value.best] == pytest.approx(expected[[2, 0]].tolist())
    assert value.to_json()["classes"][0] == {
        "class": 2,
        "label": "cat",
        "probability": pytest.approx(float(expected[2])),
    }
    again = reading.value({"scores": expected.astype(np.float32)[None]}, SIZE, SQUARE, top=2)
    assert isinstance(again, Classes)
    assert [p for _, p in again.best] == pytest.approx([p for _, p in value.best], abs=1e-6)


def test_a_score_that_is_not_finite_does_not_end_the_camera() -> None:
    scores = {"y": np.array([[np.inf, np.nan, 1.0]], np.float32)}
    value = reading_of({"y": np.zeros((1, 3), np.float32)}).value(scores, SIZE, SQUARE, top=3)
    assert isinstance(value, Classes)
    assert value.best[0] == (0, 1.0)
    broken = reading_of({"y": np.zeros((1, 3), np.float32)}).value({"y": np.full((1, 3), np.nan)}, SIZE, SQUARE)
    assert isinstance(broken, Classes)
    assert broken.best == ()  # rather than three classes that are as likely


def test_boxes_without_classes_are_no_detections() -> None:
    assert reading_of({"boxes": np.zeros((1, 9, 4)), "scores": np.zeros((1, 9, 0))}).task == ""


def test_bfloat16_outputs_are_read() -> None:
    scores = {"y": np.array([[0.0, 3.0]], ml_dtypes.bfloat16)}
    value = reading_of(scores).value(scores, SIZE, SQUARE)
    assert isinstance(value, Classes)
    assert value.best[0][0] == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_mask_has_the_class_of_the_highest_score(dtype: str) -> None:
    scores = np.random.default_rng(0).normal(size=(1, 7, 16, 16)).astype(dtype)
    scores[0, 2, 3, 3] = scores[0, 5, 3, 3] = 9  # of equal scores, the first
    value = reading_of({"y": scores}).value({"y": scores}, SIZE, SQUARE)
    assert isinstance(value, Mask)
    assert np.array_equal(value.plane, scores[0].argmax(0))
    assert value.mask.shape == (96, 128)
    assert sum(value.shares.values()) == pytest.approx(1)
    assert value.to_json()["classes"][0]["share"] == max(value.shares.values())


def test_a_letterbox_counts_in_no_share() -> None:
    classes = np.zeros((1, 64, 64), np.int64)
    classes[:, 16:48] = 3  # exactly where a picture of 128x64 lies
    value = reading_of({"y": classes}).value({"y": classes}, (128, 64), Recipe((64, 64), "letterbox"))
    assert isinstance(value, Mask)
    assert value.shares == {3: 1.0}
    assert (value.mask == 3).all()


def test_one_channel_is_saliency_unless_segmentation_is_asked_for() -> None:
    outputs = {"y": np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 1, 4, 4)}
    value = reading_of(outputs).value(outputs, SIZE, SQUARE)
    assert isinstance(value, Saliency)
    assert value.to_json() == {"task": "saliency", "mean": pytest.approx(0.5), "peak": 1.0, "share": 0.5}
    mask = reading_of(outputs, "segmentation").value(outputs, SIZE, SQUARE)
    assert isinstance(mask, Mask)
    assert mask.shares == {0: 0.5, 1: 0.5}


def test_boxes_are_in_pixels_of_the_frame_and_padding_is_gone() -> None:
    rows = np.zeros((1, 4, 6), np.float32)
    rows[0, 0] = (16, 24, 32, 40, 0.6, 1)
    rows[0, 1] = (0, 16, 64, 48, 0.9, 0)
    rows[0, 2] = (0, 0, 64, 10, 0.8, 2)  # all of it in the letterbox's border
    rows[0, 3] = (np.nan, 0, 1, 1, 0.7, 0)
    value = reading_of({"y": rows}).value({"y": rows}, (128, 64), Recipe((64, 64), "letterbox"))
    assert isinstance(value, Boxes)
    assert value.rows == pytest.approx(np.array([[0, 0, 128, 64, 0.9, 0], [32, 16, 64, 48, 0.6, 1]]))
    assert value.to_json()["boxes"][1]["box"] == [32, 16, 64, 48]


def _yolo8(boxes: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    centres, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    return {"output0": np.concatenate([centres, sides, scores], 2).transpose(0, 2, 1)}


def _yolo5(boxes: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    rows = np.repeat(
        _yolo8(boxes, scores)["output0"].transpose(0, 2, 1), 3, 1
    )  # three of a place, of which two are bad
    objectness = np.tile(np.float32([1.0, 0.1, 0.0]), boxes.shape[1])[None, :, None]
    return {"output": np.concatenate([rows[..., :4], objectness, rows[..., 4:]], 2)}


@pytest.mark.parametrize(
    "written",
    [lambda boxes, scores: {"boxes": boxes, "scores": scores}, _yolo8, _yolo5],
    ids=["pair", "yolo8", "yolo5"],
)
@pytest.mark.parametrize("classes", [1, 3])
def test_overlapping_boxes_are_suppressed_as_in_the_graph_that_does_it_itself(written: Any, classes: int) -> None:
    rng = np.random.default_rng(3)
    places = 8 * 8 + 4 * 4 + 2 * 2  # of a YOLO at 64x64
    corners = rng.uniform(0, 40, (1, places, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(6, 24, (1, places, 2))], 2).astype(np.float32)
    scores = rng.random((1, places, classes)).astype(np.float32)
    outputs = written(boxes, scores)
    value = reading_of(outputs, size=(64, 64)).value(outputs, (64, 64), SQUARE, threshold=0.3)
    rows = detections(torch.tensor(boxes), torch.tensor(scores), places)[0].numpy()
    assert isinstance(value, Boxes)
    assert 5 < len(value.rows) < 80
    expected = rows[rows[:, 4] >= 0.3]
    assert value.rows == pytest.approx(expected[np.argsort(-expected[:, 4], kind="stable")], abs=1e-4)


def test_what_only_looks_like_a_detector_is_not_read_as_one() -> None:
    boxes, scores = np.float32([[[3, 4, 30, 40]] * 84]), np.full((1, 84, 2), 1e-4, np.float32)  # of a black frame
    yolo, older = _yolo8(boxes, scores), _yolo5(boxes, scores)
    assert reading_of(yolo, size=(64, 64)).form == "yolo8"
    assert reading_of(older, size=(64, 64)).form == "yolo5"
    assert reading_of(yolo, size=(96, 64)).task == ""  # the places of another size
    assert reading_of(_yolo8(boxes / 64, scores), size=(64, 64)).task == ""  # shares of the picture, no pixels
    for value in (32.0, -0.7, np.nan):  # key points, coefficients of masks, which a threshold would take for scores
        more = {"output0": np.concatenate([yolo["output0"], np.full((1, 51, 84), value, np.float32)], 1)}
        assert reading_of(more, size=(64, 64)).task == ""
        more["prototypes"] = np.zeros((1, 32, 16, 16), np.float32)
        assert reading_of(more, size=(64, 64)).task == ""
        assert reading_of(more, "segmentation", size=(64, 64)).outputs == ("prototypes",)
        rows = np.concatenate([older["output"], np.full((1, 252, 32), value, np.float32)], 2)
        rows[..., 4] = 1e-3  # nothing is seen yet, and what is multiplied by that says nothing
        assert reading_of({"output": rows}, size=(64, 64)).task == ""
    pose = {"output0": np.concatenate([yolo["output0"], np.full((1, 51, 84), 32.0, np.float32)], 1)}
    with pytest.raises(UsageError, match=r"YOLOv8's .* scores from 0 to 1; the model has output0 1x57x84"):
        reading_of(pose, "detection", size=(64, 64))


def test_detections_of_a_yolos_number_are_detections() -> None:
    rows = np.zeros((1, 252, 6), np.float32)  # three for each of the 84 places at 64x64
    reading = reading_of({"y": rows}, size=(64, 64))
    rows[0, 0] = [10, 10, 30, 30, 0.9, 2]
    value = reading.value({"y": rows}, (64, 64), SQUARE)
    assert isinstance(value, Boxes)
    assert value.rows == pytest.approx(rows[0, :1])


def test_many_objects_with_many_boxes_each_are_all_found() -> None:
    places = np.stack(np.meshgrid(np.arange(8), np.arange(5)), -1).reshape(-1, 2) * 16.0 + 2
    around = np.random.default_rng(0).uniform(-0.3, 0.3, (40, 12, 4)) + np.tile(places, 2)[:, None] + [0, 0, 10, 10]
    boxes = around.reshape(1, -1, 4).astype(np.float32)
    outputs = {"boxes": boxes, "scores": np.random.default_rng(1).uniform(0.5, 1, (1, 480, 1)).astype(np.float32)}
    value = reading_of(outputs).value(outputs, (128, 128), Recipe((128, 128)))
    assert isinstance(value, Boxes)
    assert len(value.rows) == 40


def test_a_box_that_is_not_finite_hides_none() -> None:
    boxes = np.float32([[[2, 2, 30, 30], [2, 2, 30, 30], [np.inf, 2, 30, 30]]])
    outputs = {"boxes": boxes, "scores": np.float32([[[np.inf], [0.9], [0.95]]])}
    reading = reading_of({**outputs, "scores": np.zeros((1, 3, 1), np.float32)})
    value = reading.value(outputs, (64, 64), SQUARE)
    assert isinstance(value, Boxes)
    assert value.rows[:, 4] == pytest.approx([0.9])


def test_no_box_at_all_is_a_result() -> None:
    outputs = {"boxes": np.zeros((1, 9, 4), np.float32), "scores": np.zeros((1, 9, 2), np.float32)}
    value = reading_of(outputs).value(outputs, SIZE, SQUARE)
    assert isinstance(value, Boxes)
    assert value.to_json() == {"task": "detection", "boxes": []}


def test_the_first_output_that_a_task_fits_is_read() -> None:
    outputs = {
        "odd": np.zeros((1, 2, 3, 4, 5), np.float32),
        "mask": np.ones((1, 5, 8, 8), np.float32),
        "class": np.zeros((1, 9), np.float32),
    }
    assert reading_of(outputs).outputs == ("mask",)
    assert reading_of(outputs, "classification").outputs == ("class",)


def test_outputs_of_no_task_have_no_value() -> None:
    outputs = {"embedding": np.zeros((1, 3, 4, 5, 6), np.float32)}
    assert reading_of(outputs).value(outputs, SIZE, SQUARE) is None
    with pytest.raises(UsageError, match=r"detection is read from .*boxes.* the model has embedding 1x3x4x5x6"):
        reading_of(outputs, "detection")
    with pytest.raises(UsageError, match="did you mean 'detection'"):
        reading_of(outputs, "detections")


def test_names_are_read_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("road\n\nTür \n\n")
    assert read_names(path) == ("road", "", "Tür")
    assert [name_of(n, read_names(path)) for n in (0, 1, 2, 3, -1)] == ["road", "class 1", "Tür", "class 3", "class -1"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not text in UTF-8"):
        read_names(path)
