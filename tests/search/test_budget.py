from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgeattn.backends.base import Session
from edgeattn.calibrate.settings import CalibrationSettings
from edgeattn.data import Dataset, open_data
from edgeattn.errors import UsageError
from edgeattn.parity import Reference
from edgeattn.search.budget import Budget, Judge
from edgeattn.tensors import ShapeRange, TensorSpec
from tests.graphs import Array

X, Y = TensorSpec("x", "float32", ("n", 4)), TensorSpec("y", "float32", ("n", 4))
SAMPLES = 12


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Four scores of which the largest is the label's."""
    generator = np.random.default_rng(0)
    for number in range(SAMPLES):
        x = generator.standard_normal((1, 4)).astype(np.float32)
        np.savez(tmp_path / f"{number:02}.npz", x=x, label=x.argmax())
    return open_data(tmp_path, [X])


def session(change: Array) -> Session:
    """An engine that adds something to every score."""
    profile = {"x": ShapeRange((1, 4), (3, 4), (5, 4))}
    return Session((X,), (Y,), profile, lambda feeds: {"y": feeds["x"] + change})


class Counted:
    """The model: it says what it is given."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, feeds: dict[str, Array]) -> list[Array]:
        self.runs += 1
        return [feeds["x"]]

    @property
    def reference(self) -> Reference:
        return Reference("model", (X,), self, self, lambda feeds, dtype: None)  # type: ignore[arg-type]


def test_half_of_the_samples_calibrate_and_the_others_judge(data: Dataset) -> None:
    calibrating, judging = Budget(data, {"top1": 0.1}).halves()
    both = [path for path, _ in (*calibrating.files, *judging.files)]
    assert sorted(both) == [path for path, _ in data.files]
    assert len(calibrating) == len(judging) == SAMPLES // 2


def test_the_drop_is_that_of_the_task_and_the_distance_that_of_the_outputs(data: Dataset) -> None:
    bias = np.float32([3, 0, 0, 0])
    found = Judge(Counted().reference, data, Budget(data, {"top1": 0.1})).measure(session(bias), "float32")
    truth = np.concatenate([sample.feeds["x"] for sample in data])
    right = np.mean((truth + bias).argmax(1) == truth.argmax(1))
    assert found.values["top1"] == pytest.approx(right)
    assert found.drops["top1"] == pytest.approx(1 - right)
    assert found.failures
    assert found.failures[0].startswith("top1 drops by")
    cosine = np.vdot(truth + bias, truth) / np.linalg.norm(truth + bias) / np.linalg.norm(truth)
    assert found.drops["cosine"] == pytest.approx(1 - cosine, rel=1e-4)


def test_a_drop_keeps_its_bound_by_one_standard_error(data: Dataset) -> None:
    bias = np.float32([1, 0, 0, 0])
    truth = np.concatenate([sample.feeds["x"] for sample in data])
    lost = (truth + bias).argmax(1) != truth.argmax(1)
    drop, error = lost.mean(), lost.std() / np.sqrt(len(lost))
    assert 0 < drop < 1

    def failures(bound: float) -> tuple[str, ...]:
        return Judge(Counted().reference, data, Budget(data, {"top1": bound})).measure(session(bias), "int8").failures

    (said,) = failures(drop + 0.7 * error)
    assert "with a standard error of" in said
    assert failures(drop + 1.3 * error) == ()


@pytest.mark.parametrize(
    ("max_drop", "said"),
    [
        ({"top1": 0.0}, ()),
        ({"cosine": 1e-6}, ("cosine drops by",)),
        ({"sqnr": 60.0, "top1": 0.0}, ("sqnr is",)),
        ({"sqnr": 10.0, "cosine": 0.1}, ()),
    ],
)
def test_every_part_of_the_budget_is_held(data: Dataset, max_drop: dict[str, float], said: tuple[str, ...]) -> None:
    slightly = np.float32([0.02, 0.02, 0.02, 0.02])
    found = Judge(Counted().reference, data, Budget(data, max_drop)).measure(session(slightly), "float32")
    assert len(found.failures) == len(said)
    assert all(failure.startswith(start) for failure, start in zip(found.failures, said, strict=True))


def test_an_engine_that_is_not_finite_keeps_no_budget(data: Dataset) -> None:
    broken = np.float32([np.nan, 0, 0, 0])
    found = Judge(Counted().reference, data, Budget(data, {"cosine": 1.0})).measure(session(broken), "float32")
    assert "output 'y' is not finite" in found.failures


def test_the_model_answers_each_sample_once(data: Dataset) -> None:
    model = Counted()
    judge = Judge(model.reference, data, Budget(data, {"top1": 0.1}))
    first = judge.measure(session(np.zeros(4, np.float32)), "float32")
    runs = model.runs
    assert judge.measure(session(np.zeros(4, np.float32)), "float32") == first
    assert model.runs == runs


@pytest.mark.parametrize(
    ("max_drop", "said"),
    [({}, "how much may accuracy drop"), ({"topp1": 0.1}, "unknown metric 'topp1'")],
)
def test_a_budget_that_means_nothing_is_refused(data: Dataset, max_drop: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Budget(data, max_drop)


def test_one_sample_cannot_both_calibrate_and_judge(data: Dataset) -> None:
    with pytest.raises(UsageError, match="one half calibrates"):
        Budget(dataclasses.replace(data, files=data.files[:1]), {"top1": 0.1})


def test_the_words_of_a_budget_say_all_that_was_asked_for(data: Dataset) -> None:
    plain = Budget(data, {"top1": 0.005, "sqnr": 30.0})
    assert plain.words() == ["--data", str(data.folder), "--max-drop", "top1=0.005,sqnr=30"]
    asked = {"task": "classification", "builds": 3, "settings": CalibrationSettings("mse"), "recipe": Path("r.toml")}
    words = dataclasses.replace(plain, **asked).words()
    for pair in ("--task classification", "--max-builds 3", "--calibration-method mse", "--recipe r.toml"):
        assert pair in " ".join(words)
