from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgeattn.images import Recipe, preprocess
from edgeattn.metrics import Label
from edgeattn.parity.decisions import decision, guess, moved, said
from edgeattn.parity.evidence import Evidence
from edgeattn.parity.pictures import SIDE, drawn, input_picture, unprepared

Array = NDArray[Any]


def looked(evidence: Evidence, got: Array, truth: Array, labels: list[Label] | None = None, **feeds: Array) -> Evidence:
    """Look at all rows, one a batch."""
    for row in range(len(truth)):
        one = {name: array[row : row + 1] for name, array in feeds.items()}
        said = None if labels is None else [labels[row]]
        evidence.add([f"{row}.png"], one, [got[row : row + 1]], [truth[row : row + 1]], labels=said, found=None)
    return evidence


def opened(data: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


# Which samples


def test_the_worst_samples_are_those_with_the_largest_errors_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 3, 8)) + 5 * np.arange(3)[:, None]  # not an output of any task
    sizes = rng.permutation(50) / 1e4
    got = truth + sizes[:, None, None]
    found = looked(Evidence(4), got, truth).worst()
    assert [sample.name for sample in found] == [f"{row}.png" for row in np.argsort(-sizes)[:4]]
    whole = np.linalg.norm(got - truth) / np.linalg.norm(truth)
    errors = [sample.relative_l2 for sample in looked(Evidence(50), got, truth).worst()]
    assert np.sqrt(np.square(errors).sum() / 50) == pytest.approx(whole)  # a sample's error squared is its part
    assert found[0].max_abs == pytest.approx(sizes.max())


def test_samples_that_are_decided_otherwise_come_first_however_small_their_error() -> None:
    truth = np.eye(4)[[0, 1, 2, 3, 0, 1]] * 10
    got = truth + np.arange(6)[:, None]  # the same class, with errors that grow
    got[0] = [9.999, 10, 0, 0]
    truth[0] = [10, 9.999, 0, 0]
    evidence = looked(Evidence(2), got, truth, labels=[0, 1, 2, 3, 0, 1])
    assert [sample.name for sample in evidence.worst()] == ["0.png", "5.png", "4.png"]
    first = evidence.worst()[0]
    assert (first.decision, first.label) == (1.0, "class 0")
    assert first.reference.startswith("0 (10), 1 (9.999), ")
    assert first.engine.startswith("1 (10), 0 (9.999), ")
    assert evidence.agreement() == ((0, 0, 1), (0, 1, 1), (1, 1, 2), (2, 2, 1), (3, 3, 1))


def test_what_does_not_differ_is_not_shown() -> None:
    truth = np.random.default_rng(0).normal(size=(5, 4))
    assert looked(Evidence(3), truth, truth).worst() == ()


def test_none_are_shown_where_none_are_asked_for_and_agreement_is_counted_still() -> None:
    truth = np.eye(3)
    evidence = looked(Evidence(0), truth[::-1], truth)
    assert evidence.worst() == ()
    assert evidence.agreement() == ((0, 2, 1), (1, 1, 1), (2, 0, 1))


def test_numbers_that_are_not_finite_are_the_largest_error() -> None:
    truth = np.ones((3, 2, 9))
    got = truth + 0.1
    got[1, 0, 0] = np.nan
    truth[2, 0, :2] = got[2, 0, :2] = np.inf, np.nan  # the original says so too
    worst = looked(Evidence(3), got, truth).worst()
    assert [sample.name for sample in worst] == ["1.png", "0.png", "2.png"]
    assert [np.isinf(sample.max_abs) for sample in worst] == [True, False, False]


def test_of_whole_numbers_the_error_is_the_share_that_differs() -> None:
    truth = np.arange(24).reshape(2, 3, 4)
    got = truth + 100 * (truth > 20)
    assert [(found.name, found.relative_l2) for found in looked(Evidence(3), got, truth).worst()] == [("1.png", 0.25)]


def test_rows_that_fill_a_batch_and_outputs_of_other_shapes_are_not_looked_at() -> None:
    evidence, truth = Evidence(5), np.eye(4)
    evidence.add(["a", "b"], {}, [truth[::-1]], [truth], labels=None, found=None)
    assert [sample.name for sample in evidence.worst()] == ["a", "b"]
    other = Evidence(5)
    other.add(["a"], {}, [np.ones((1, 3))], [np.ones((1, 4))], labels=None, found=None)
    assert other.worst() == ()


# What is decided

BOX = [0.0, 0, 10, 10, 0.9, 1]


@pytest.mark.parametrize(("task", "ours", "theirs", "expected"), [
    ("classification", np.array([0.0, 1]), np.array([0.0, 2]), 0.0),
    ("classification", np.array([2.0, 1]), np.array([0.0, 2]), 1.0),
    ("segmentation", np.array([[[1.0, 0]], [[0, 1]]]), np.array([[[1.0, 1]], [[0, 0]]]), 0.5),
    ("saliency", np.array([[[0.6, 0.4, 0.1]]]), np.array([[[0.6, 0.6, 0.2]]]), 1 / 3),
    ("detection", np.array([BOX]), np.array([BOX]), 0.0),
    ("detection", np.array([BOX]), np.array([[*BOX[:5], 2]]), 1.0),  # another class
    ("detection", np.array([BOX, [50, 50, 60, 60, 0.5, 1]]), np.array([BOX]), 1 / 3),
    ("detection", np.array([BOX, [50, 50, 60, 60, 0.1, 1]]), np.array([BOX]), 0.0),  # not decided on
    ("detection", np.array([[0, 0, 10, 4, 0.9, 1]]), np.array([BOX]), 1.0),  # half of it is not there
    ("detection", np.zeros((2, 6)), np.zeros((3, 6)), 0.0),
])  # fmt: skip
def test_how_far_decisions_differ(task: str, ours: Array, theirs: Array, expected: float) -> None:
    assert decision(task, ours, theirs) == pytest.approx(expected)


@pytest.mark.parametrize(("output", "asked", "expected"), [
    (np.zeros((1, 7)), None, "classification"),
    (np.zeros((1, 9, 6)), None, "detection"),
    (np.full((1, 1, 4, 4), 0.5), None, "saliency"),
    (np.zeros((1, 5, 4, 4)), None, ""),  # scores of classes look like any feature map
    (np.zeros((1, 5, 4, 4)), "segmentation", "segmentation"),
    (np.zeros((1, 7)), "segmentation", ""),
    (np.zeros((1, 7), np.int64), None, ""),
])  # fmt: skip
def test_without_labels_the_output_tells_what_it_may_be(output: Array, asked: str | None, expected: str) -> None:
    assert guess([np.zeros((1, 2, 3, 4, 5)), output], asked) == ((expected, 1) if expected else ("", 0))


def test_boxes_that_moved_are_an_error_before_they_are_another_decision() -> None:
    shifted = [[1.0, 0, 11, 10, 0.9, 1]]
    assert moved(np.array(shifted), np.array([BOX])) == pytest.approx(1 - 90 / 110)
    assert moved(np.array(shifted), np.array([BOX, [50, 50, 60, 60, 0.5, 1]])) == pytest.approx(1 - 2 * 90 / 110 / 3)
    assert moved(np.array([BOX]), np.array([BOX])) == moved(np.zeros((1, 6)), np.zeros((0, 6))) == 0
    evidence = Evidence(2)
    evidence.add(["a"], {}, [np.array([shifted])], [np.array([[BOX]])], labels=None, found=None)
    assert [(sample.name, sample.decision) for sample in evidence.worst()] == [("a", 0.0)]


def test_boxes_that_change_places_are_no_large_error() -> None:
    far = [50.0, 50, 60, 60, 0.9, 1]
    evidence = Evidence(2)
    evidence.add(["a"], {}, [np.array([[far, [1.0, *BOX[1:]]]])], [np.array([[BOX, far]])], labels=None, found=None)
    assert [sample.max_abs for sample in evidence.worst()] == [pytest.approx(0.9)]


def test_decisions_in_words() -> None:
    assert said("classification", np.array([0.5, 3, 1])) == "1 (3), 2 (1), 0 (0.5)"
    assert said("detection", np.array([[*BOX[:4], 0.4, 2], BOX])) == "1 (0.90), 2 (0.40)"
    assert said("saliency", np.array([[[0.6, 0.4, 0.1, 0]]])) == "25.0 % of the pixels"
    assert said("segmentation", np.array([[0, 0, 3, 0]])) == "0: 75.0 %, 3: 25.0 %"


# Pictures


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    color=st.sampled_from(["rgb", "bgr", "gray"]),
    layout=st.sampled_from(["nchw", "nhwc"]),
    normal=st.booleans(),
)
def test_the_input_is_shown_as_the_recipe_saw_it(
    seed: int, size: tuple[int, int], color: str, layout: str, normal: bool
) -> None:
    channels = 1 if color == "gray" else 3
    numbers: dict[str, Any] = {"mean": (0.48, 0.45, 0.4)[:channels], "std": (0.2, 0.3, 0.25)[:channels]}
    recipe = Recipe(size, color=color, layout=layout, **(numbers if normal else {}))
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    image = Image.fromarray(pixels).convert("L" if color == "gray" else "RGB")
    shown = unprepared(preprocess(image, recipe), recipe)
    assert np.array_equal(shown, np.asarray(image.convert("RGB")))


def test_an_input_without_a_recipe_is_stretched_and_one_that_is_no_picture_is_not_drawn() -> None:
    x = np.linspace(-3, 5, 48).reshape(1, 3, 4, 4)
    picture = input_picture({"ids": np.zeros((1, 7)), "x": x}, None)
    assert picture is not None
    pixels = np.asarray(picture)
    assert (pixels.min(), pixels.max(), picture.size) == (0, 255, (4, 4))
    assert input_picture({"x": np.zeros((1, 8, 5, 4)), "ids": np.zeros((1, 7))}, None) is None
    assert input_picture({"x": np.zeros((1, 1, 4, 4))}, None) is not None


@pytest.mark.parametrize(("task", "ours"), [
    ("segmentation", np.random.default_rng(0).normal(size=(4, 13, 7))),
    ("saliency", np.random.default_rng(0).random((1, 13, 7))),
    ("detection", np.array([[1.0, 1, 5, 9, 0.9, 0]])),
    ("", np.random.default_rng(0).normal(size=(5, 13, 7))),
])  # fmt: skip
def test_each_task_has_its_pictures_and_each_is_small(task: str, ours: Array) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 7, 3), np.uint8))
    pictures = drawn(task, image, ours, ours * 0.5)
    assert list(pictures) == ["input", "reference", "engine", "difference"]
    for data in pictures.values():
        assert max(Image.open(io.BytesIO(data)).size) == SIDE
        assert len(data) < 16_000


def test_scores_have_no_picture() -> None:
    assert drawn("classification", None, np.zeros(10), np.ones(10)) == {}


def test_pixels_of_another_class_are_red_and_no_others() -> None:
    scores = np.zeros((2, 4, 4))
    other = scores.copy()
    other[1, :, :2] = 1
    shown = opened(drawn("segmentation", None, other, scores)["difference"])
    red = shown[..., 0] > shown[..., 1] + 60
    assert red[:, : SIDE // 2].all()
    assert not red[:, SIDE // 2 :].any()


def test_a_box_that_only_one_side_has_is_drawn_in_red_where_it_is() -> None:
    image = Image.new("RGB", (48, 48), (255, 255, 255))
    missing = np.array([[10.0, 20, 30, 40, 0.9, 3]])
    pictures = drawn("detection", image, np.zeros((0, 6)), missing)
    rows, columns = np.nonzero(opened(pictures["difference"])[..., 1] < 128)
    assert (columns.min() / 3, rows.min() / 3) == pytest.approx((10, 20), abs=1)
    assert (columns.max() / 3, rows.max() / 3) == pytest.approx((30, 40), abs=1)
    assert opened(pictures["engine"]).min() == 255


def test_pictures_of_a_wrong_engines_numbers_are_drawn_too() -> None:
    wild = np.full((1, 5, 5), np.nan)
    wild[0, 0, :2] = np.inf, -np.inf
    assert drawn("segmentation", None, np.full((5, 5), -1), np.full((5, 5), 10**6))
    for task in ("saliency", "segmentation", ""):
        assert set(drawn(task, None, wild, np.full((1, 5, 5), 0.5))) >= {"engine", "difference"}
    boxes = np.array([[np.inf, 0, 1, 1, 0.9, 0], [9.0, 9, 1, 1, 0.9, 5]])
    assert set(drawn("detection", Image.new("RGB", (9, 9)), boxes, boxes[:0])) >= {"engine"}
