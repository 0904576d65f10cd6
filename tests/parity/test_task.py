from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from onnx import helper
from PIL import Image

from edgeattn.cli import main
from edgeattn.errors import InputError, UsageError
from edgeattn.graph import Graph, save_graph
from edgeattn.metrics import Label
from edgeattn.parity.report import MetricParity
from edgeattn.parity.task import TaskParity
from tests.graphs import FLOAT, graph_of

Array = NDArray[Any]
MASK = np.array([[0, 0, 1, 1], [0, 0, 1, -1]])
BOXES = np.array([[0, 0, 10, 10, 0], [20, 0, 30, 10, 1]], np.float32)
FOUND = np.array([[[0, 0, 10, 10, 0.9, 0], [20, 0, 30, 10, 0.8, 1], [0, 0, 0, 0, 0, 0]]])


def planes(classes: Array) -> Array:
    """Scores (1, 2, H, W) that say these classes."""
    return np.stack([classes == 0, classes == 1])[None].astype(np.float64)


def measured(label: Label, got: Array, truth: Array, **asked: Any) -> dict[str, MetricParity]:
    check = TaskParity(**asked)
    check.add([got], [truth], ["a"], [label])
    return {metric.name: metric for metric in check.result()}


def test_segmentation_is_measured_on_both_sides() -> None:
    wrong = np.array([[0, 0, 1, 1], [0, 0, 0, 0]])
    found = measured(MASK, planes(wrong), planes(np.abs(MASK)))
    assert set(found) == {"miou", "dice", "pixel_accuracy"}
    accuracy = found["pixel_accuracy"]
    assert (accuracy.reference, accuracy.engine) == (1, pytest.approx(6 / 7))
    assert accuracy.agreement == pytest.approx(6 / 8)  # also where there is no label
    assert found["miou"].drop == pytest.approx(1 - (4 / 5 + 2 / 3) / 2)


def test_saliency_has_no_agreement_and_its_error_may_rise() -> None:
    found = measured(MASK, np.abs(MASK) * 0.5 + np.zeros((1, 1, 1, 1)), np.abs(MASK) + np.zeros((1, 1, 1, 1)))
    error = found["mae"]
    assert (error.reference, error.engine, error.agreement) == (0, pytest.approx(3 * 0.5 / 7), None)
    assert error.drop == error.engine
    strict = measured(MASK, np.full((1, 1, 2, 4), 0.5), np.full((1, 1, 2, 4), 0.1), max_drop={"mae": 0.05})
    assert strict["mae"].failures == ("mae rises by 5.71 %, at most 5.00 % is allowed",)


def test_detection_may_find_another_number_of_boxes() -> None:
    found = measured(BOXES, FOUND[:, 1:], FOUND)
    assert (found["map50"].reference, found["map50"].engine, found["map50"].agreement) == (1, 0.5, 0.5)
    assert found["map"].drop == 0.5


@pytest.mark.parametrize(("label", "got", "truth"), [
    (1, np.eye(3)[:1], np.eye(2)[1:]),
    (MASK, np.zeros((1, 2, 1, 2)), planes(np.abs(MASK))),
    (BOXES, np.zeros((1, 3, 7)), FOUND),
])  # fmt: skip
def test_an_engine_with_another_output_has_no_figure_and_fails_its_bound(
    label: Label, got: Array, truth: Array
) -> None:
    name = {int: "top1", 4: "miou", 5: "map"}[type(label) if isinstance(label, int) else label.shape[1]]
    metric = measured(label, got, truth, max_drop={name: 1.0})[name]
    assert math.isnan(metric.engine)
    assert metric.failures


def test_a_drop_of_exactly_the_bound_passes() -> None:
    assert not MetricParity("top1", 0.8, 0.7, None, 10, 0.1).failures  # 0.10000000000000009
    assert MetricParity("top1", 0.8, 0.7, None, 10, 0.0999).failures


def test_one_channel_is_what_it_is_asked_to_be() -> None:
    found = measured(MASK, np.abs(MASK)[None, None] * 0.9, np.abs(MASK)[None, None] * 0.9, asked="segmentation")
    assert found["miou"].reference == 1


def test_labels_and_outputs_that_fit_no_task_are_said_and_only_refused_where_it_matters() -> None:
    check = TaskParity()
    check.add([FOUND], [FOUND], ["a"], [3])
    assert check.result() == ()
    assert check.task.startswith("none of classification")
    with pytest.raises(UsageError, match=r"a miou drop cannot be judged: it needs labels that are masks"):
        measured(3, FOUND, FOUND, max_drop={"miou": 0.1})
    with pytest.raises(UsageError, match=r"detection needs labels that are boxes .*; this model or data have others"):
        measured(MASK, FOUND, FOUND, asked="detection")


def test_an_output_smaller_than_the_mask_is_one_clear_error() -> None:
    small = planes(np.array([[0, 1]]))
    with pytest.raises(InputError, match=r"sample 'a': the mask is 2x4, but the model's output 1x2; let the model"):
        measured(MASK, small, small)


# From files to reports


def network(outputs: Sequence[tuple[str, list[int]]], last: Callable[[], list[Any]], **weights: Array) -> Graph:
    return graph_of(last(), [("x", FLOAT, [1, 1, 8, 8])], [(n, FLOAT, s) for n, s in outputs], weights)


def thresholds(low: float) -> Graph:
    """Scores of two classes: the second where x is above `low`."""
    nodes = [
        helper.make_node("Sub", ["x", "low"], ["above"]),
        helper.make_node("Neg", ["above"], ["below"]),
        helper.make_node("Concat", ["below", "above"], ["y"], axis=1),
    ]
    return network([("y", [1, 2, 8, 8])], lambda: nodes, low=np.full((1,), low, np.float32))


def sigmoid(steepness: float) -> Graph:
    nodes = [
        helper.make_node("Sub", ["x", "half"], ["around"]),
        helper.make_node("Mul", ["around", "steepness"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["y"]),
    ]
    weights = {"half": np.full((1,), 0.5, np.float32), "steepness": np.full((1,), steepness, np.float32)}
    return network([("y", [1, 1, 8, 8])], lambda: nodes, **weights)


def finder(shift: float) -> Graph:
    """Always the same detections, `shift` pixels to the right."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["level"], keepdims=0),
        helper.make_node("Mul", ["level", "zero"], ["none"]),
        helper.make_node("Add", ["found", "none"], ["y"]),
    ]
    found = np.array([[[2 + shift, 2, 6 + shift, 6, 0.9, 0], [0, 0, 1, 1, 0.1, 0]]], np.float32)
    return network([("y", [1, 2, 6])], lambda: nodes, found=found, zero=np.zeros((), np.float32))


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bright squares, their masks and their boxes."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "masks"):
        (tmp_path / "scenes" / folder).mkdir(parents=True)
    square = np.zeros((8, 8), np.uint8)
    square[2:6, 2:6] = 1
    images, annotations = [], []
    for index in range(3):
        Image.fromarray(square * 150 + 20 * index).save(tmp_path / "scenes" / "images" / f"{index}.png")
        Image.fromarray(square).save(tmp_path / "scenes" / "masks" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": 8, "height": 8})
        annotations.append({"id": index, "image_id": index, "category_id": 4, "bbox": [2, 2, 4, 4], "iscrowd": 0})
    table = {"images": images, "annotations": annotations, "categories": [{"id": 4, "name": "square"}]}
    (tmp_path / "scenes" / "annotations.json").write_text(json.dumps(table))
    return tmp_path / "scenes"


MODELS = {
    "segmentation": (thresholds(0.5), thresholds(0.7)),
    "saliency": (sigmoid(1000), sigmoid(0)),
    "detection": (finder(0), finder(1)),
}


@pytest.mark.parametrize(("task", "metric", "expected"), [
    ("segmentation", "miou", (1, (144 / 176 + 16 / 48) / 2)),  # one of three squares is bright enough
    ("saliency", "mae", (0, 0.5)),
    ("detection", "map50", (1, 1)),
    ("detection", "map", (1, 0.3)),  # the overlap is 12 / 20
])  # fmt: skip
def test_every_task_goes_from_files_to_a_gated_report(
    scenes: Path, task: str, metric: str, expected: tuple[float, float]
) -> None:
    for name, graph in zip(("right.onnx", "wrong.onnx"), MODELS[task], strict=True):
        save_graph(graph, name)
    assert main(["build", "wrong.onnx", "--backend", "onnxruntime", "-q"]) == 0
    words = ["parity", "wrong.engine", "--against", "right.onnx", "--data", str(scenes), "--no-latency", "--json"]
    written = ["--html", "r.html", "--junit", "r.xml", "--markdown", "r.md", "--pictures", "2"]
    assert main([*words, "r.json", *written, "--max-drop", f"{metric}=1%"]) == 3
    report = json.loads(Path("r.json").read_text())
    found = report["metrics"][metric]
    assert report["compared"]["task"] == task
    assert set(found) == {
        "reference", "engine", "agreement", "samples", "max_drop", "drop", "confidence_interval", "standing",
    }  # fmt: skip
    assert found["samples"] == 3
    assert (found["reference"], found["engine"]) == pytest.approx(expected, abs=1e-6)
    fails = any(reason.startswith(metric) for reason in report["reasons"])
    assert fails == (expected[0] != expected[1])
    schema = json.loads((files("edgeattn.reports") / "schemas" / "parity.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(report)] == []
    assert 1 <= len(report["worst_samples"]) <= 3
    page = Path("r.html").read_text()
    assert page.count("data:image/") == 4 * len(report["worst_samples"])
    assert bool(report["precision_recall"]) == (task != "segmentation")
    assert f"| {metric} | ".replace("_", "\\_") in Path("r.md").read_text()
    assert "[r.html](<r.html>)" in Path("r.md").read_text()
    assert metric in page
    assert f"metric {metric}" in Path("r.xml").read_text()
