from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score

from edgeattn.errors import InputError
from edgeattn.metrics.segmentation import Segmentation


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 5)),
    classes=st.integers(2, 6),
    form=st.sampled_from(["scores", "classes"]),
)
def test_overlaps_are_scikit_learns_without_the_ignored_pixels(
    seed: int, shape: tuple[int, int, int], classes: int, form: str
) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(-1, classes, shape)
    answers = rng.integers(0, rng.integers(1, classes + 1), shape)  # maybe without the last classes
    scores = (np.arange(classes)[:, None, None] == answers[:, None]) + 0.1 * rng.random((len(masks), classes, 1, 1))
    output = scores if form == "scores" else answers
    metric = Segmentation()
    for index in range(len(masks)):
        metric.add(output[index : index + 1], [masks[index]])
    counted = masks >= 0
    if not counted.any():
        assert metric.result() == {}
        return
    truth, answer = masks[counted], answers[counted]
    assert metric.result() == pytest.approx(
        {
            "miou": jaccard_score(truth, answer, average="macro"),
            "dice": f1_score(truth, answer, average="macro"),
            "pixel_accuracy": accuracy_score(truth, answer),
        },
        rel=1e-12,
    )


def test_overlaps_worked_by_hand() -> None:
    mask = np.array([[0, 0, 1, 1], [0, 0, 1, -1]])
    answer = np.array([[0, 0, 0, 1], [0, 2, 1, 1]])
    metric = Segmentation()
    metric.add(answer[None], [mask])
    # class 0: 3 right, 1 missed, 1 too many; class 1: 2 right, 1 missed; class 2: 1 too many
    assert metric.result() == pytest.approx(
        {"miou": (3 / 5 + 2 / 3 + 0) / 3, "dice": (6 / 8 + 4 / 5 + 0) / 3, "pixel_accuracy": 5 / 7}
    )


def test_one_channel_is_the_probability_of_class_one() -> None:
    metric = Segmentation()
    metric.add(np.array([[[[0.5, 0.499, np.nan, 7.0]]]]), [np.array([[1, 0, 0, 1]])])
    assert metric.result()["miou"] == 1


@pytest.mark.parametrize(("output", "mask", "said"), [
    (np.zeros((1, 3, 4, 6)), np.zeros((8, 12), int), "mask is 8x12, but the model's output 4x6; let the model resize"),
    (np.zeros((1, 3, 4, 6)), np.full((4, 6), 3), r"class 3, but the model has 3 classes.*\[labels\] ignore = 3"),
    (np.zeros((1, 1, 4, 6)), np.full((4, 6), 255), r"class 255, but the model has 2 classes"),
    (np.zeros((1, 3, 4, 6)), 2, "label 2 is no mask"),
])  # fmt: skip
def test_a_mask_that_does_not_fit_the_output_is_refused(output: np.ndarray, mask: np.ndarray | int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Segmentation().add(output, [mask])
