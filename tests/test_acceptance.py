"""What accuracy may cost: a build that loses more on labelled samples is not published."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgeattn.backends.base import BuildConfig
from edgeattn.build import BuildReport, build_engine
from edgeattn.calibrate import calibrate
from edgeattn.cli import main
from edgeattn.data import Dataset, open_data
from edgeattn.engine import read_sidecar
from edgeattn.errors import GateError, UsageError
from edgeattn.graph import load_graph, save_graph
from edgeattn.interpreter import run_as_written
from edgeattn.precision.ranges import Range
from tests.graphs import FLOAT, graph_of

CLIPPED = 1.3  # the range to which inputs of variance 1 are clipped
SAMPLES = 100


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier of 5 classes that are much alike, whose answers are right; beside it `data`."""
    rng = np.random.default_rng(0)
    weights = {"w": (rng.standard_normal((6, 1)) + rng.standard_normal((6, 5)) / 4).astype(np.float32)}
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="classifier")
    graph = graph_of([node], [("x", FLOAT, ["batch", 6])], [("y", FLOAT, ["batch", 5])], weights)
    save_graph(graph, tmp_path / "m.onnx")
    run = run_as_written(graph)
    (tmp_path / "data").mkdir()
    for number in range(SAMPLES):
        x = rng.standard_normal((1, 6)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{number:03}.npz", x=x, label=run({"x": x})["y"].argmax())
    return tmp_path / "m.onnx"


def clipped(model: Path, **allowed: float) -> BuildReport:
    """An INT8 engine of inputs that are clipped, held to what it may lose."""
    graph = load_graph(model)
    data: Dataset = open_data(model.with_name("data"), graph.inputs)
    narrow = {"x": Range(-CLIPPED, CLIPPED, -CLIPPED, CLIPPED)}
    ranges = dataclasses.replace(calibrate(graph, data), tensors=narrow)
    output, config = model.with_suffix(".engine"), BuildConfig(precision="int8")
    return build_engine(model, output, config, "onnxruntime", ranges=ranges, samples=data, max_drop=allowed)


def lost(model: Path) -> float:
    """The share of answers that clipping changes, by NumPy."""
    w = load_graph(model).model.graph.initializers["w"].const_value.numpy()  # type: ignore[union-attr]
    x = np.concatenate([np.load(path)["x"] for path in sorted(model.with_name("data").glob("*.npz"))])
    return float(np.mean((np.clip(x, -CLIPPED, CLIPPED) @ w).argmax(1) != (x @ w).argmax(1)))


def test_an_engine_that_loses_more_than_it_may_replaces_nothing(model: Path) -> None:
    output = model.with_suffix(".engine")
    output.write_bytes(b"the old one")
    drop = lost(model)
    assert 0.02 < drop < 0.4
    with pytest.raises(GateError, match=r"loses more than it may: top1 drops by .*, at most .* is allowed"):
        clipped(model, top1=drop - 0.015)
    assert output.read_bytes() == b"the old one"
    report = clipped(model, top1=drop + 0.015)
    assert "; top1 drops by" in report.verdict
    verified = read_sidecar(output).verified
    assert verified is not None
    assert verified["metrics"]["top1"]["drop"] == pytest.approx(drop, abs=0.015)
    assert verified["metrics"]["top1"]["samples"] == SAMPLES


def test_closeness_is_held_too(model: Path) -> None:
    with pytest.raises(GateError, match=r"sqnr is .* dB, at least 40 dB is asked for"):
        clipped(model, sqnr=40)
    with pytest.raises(GateError, match="cosine drops by"):
        clipped(model, cosine=1e-4)
    clipped(model, sqnr=10.1, cosine=0.1)


def test_without_samples_nothing_can_be_held(model: Path) -> None:
    with pytest.raises(UsageError, match="seen on real samples"):
        build_engine(model, model.with_suffix(".engine"), backend="onnxruntime", max_drop={"top1": 0.1})


def test_samples_without_labels_are_refused_before_any_work(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr("edgeattn.calibrate.calibrate", lambda *_, **__: pytest.fail("calibrated"))
    for path in Path("data").iterdir():
        np.savez(path, x=np.load(path)["x"])
    Path("r.toml").write_text('[acceptance]\ntop1 = "1%"\n')
    data = open_data(Path("data"), load_graph(model).inputs)
    words = ["build", "m.onnx", "-q", "--backend", "onnxruntime", "--data", "data"]
    for how in (
        ["--int8", "--recipe", "r.toml"],
        ["--best", "--max-drop", "top1=1%"],
        ["--max-drop", "cosine=1%,top1=1%"],
    ):
        assert main([*words, *how]) == 2
        said = capsys.readouterr().err
        assert "a top1 drop cannot be judged: it needs labels that are classes" in said
        assert "the samples have no labels" in said
    with pytest.raises(UsageError, match="have no labels"):
        build_engine(model, model.with_suffix(".engine"), backend="onnxruntime", samples=data, max_drop={"top1": 0.1})
    assert not Path("m.engine").exists()
    build_engine(
        model, model.with_suffix(".engine"), backend="onnxruntime", check=False, samples=data, max_drop={"top1": 0}
    )


def test_a_few_labels_are_enough_to_judge_on(model: Path) -> None:
    first, *_ = sorted(model.with_name("data").glob("*.npz"))
    np.savez(first, x=np.load(first)["x"])
    verified = clipped(model, top1=0.5).sidecar.verified
    assert verified is not None
    assert verified["metrics"]["top1"]["samples"] == SAMPLES - 1


def test_the_recipe_says_what_may_be_lost_and_the_command_line_overrules_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    Path("r.toml").write_text('[acceptance]\nsqnr = "90dB"\n')
    words = ["build", "m.onnx", "-q", "--int8", "--backend", "onnxruntime", "--recipe", "r.toml"]
    assert main([*words, "--data", "data"]) == 3
    assert "at least 90 dB is asked for" in capsys.readouterr().err
    assert not Path("m.engine").exists()
    assert main([*words, "--data", "data", "--max-drop", "top1=2%"]) == 0
    assert main(["calibrate", "m.onnx", "-q", "--data", "data", "-o", "ranges.json"]) == 0
    capsys.readouterr()
    assert main([*words, "--ranges", "ranges.json"]) == 0
    assert "the recipe's [acceptance] is judged on real samples: give --data DIR" in capsys.readouterr().err
