"""Profiles of real engines."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeattn import files
from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine
from edgeattn.cli import main
from edgeattn.engine import sidecar_path
from edgeattn.errors import InputError, UsageError
from edgeattn.profile import ProfileReport, engine, grouped, profile_engine, timing
from edgeattn.profile.saved import read_profile
from tests.graphs import self_attention

SHAPES = {"min_shapes": {"x": (1, 33, 16)}, "opt_shapes": {"x": (2, 33, 16)}, "max_shapes": {"x": (4, 33, 16)}}


@pytest.fixture(scope="module", params=("openvino", "onnxruntime"))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reasons := backend_named(request.param).missing():
        pytest.skip("; ".join(reasons))
    path = tmp_path_factory.mktemp("engines") / "m.engine"
    build_engine(self_attention(tokens=33, dim=16).graph, path, BuildConfig(**SHAPES), request.param, check=False)  # type: ignore[arg-type]
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WARMUP_S", 0.0)
    monkeypatch.setattr(engine, "ROUNDS", 6)
    monkeypatch.setattr(engine, "STEADY_RUNS", 4)
    monkeypatch.setattr(timing, "LONGEST_SPIN_S", 0.02)


@pytest.fixture(scope="module")
def report(built: Path) -> ProfileReport:
    return profile_engine(built, duration_s=0.1, memory=False)


def test_a_profile_times_the_whole_and_its_layers(report: ProfileReport) -> None:
    assert report.shapes == {"x": (2, 33, 16)}
    assert report.batch == 2
    assert report.latency.runs == len(report.runs) > 0
    assert report.latency.throughput == pytest.approx(2000 / report.latency.mean_ms)
    assert report.interval_ms[0] <= report.latency.p50_ms <= report.interval_ms[1] * (1 + 1e-9)
    assert report.load_ms > 0
    assert report.first_run_ms > 0
    assert report.warmup_runs >= 8  # twice as many as are compared
    assert report.layers
    assert report.layer_runs > 0
    assert sum(layer.share for layer in report.layers) == pytest.approx(1)
    assert report.reconciliation is not None
    assert report.reconciliation.layers_ms == pytest.approx(sum(layer.median_ms for layer in report.layers))
    assert report.reconciliation.whole_ms == pytest.approx(statistics.median(run.latency_ms for run in report.runs))
    assert [run.start_ms for run in report.runs] == sorted(run.start_ms for run in report.runs)
    assert {"before", "after"} == set(report.conditions)
    assert not report.notes


def test_the_attention_block_is_found_in_its_layers(report: ProfileReport) -> None:
    (block,) = report.blocks
    assert block.op == "SoftmaxAttention"
    assert block.layers
    assert block.median_ms == pytest.approx(sum(own.median_ms for own in report.layers if own.name in block.layers))
    assert report.attention_share == pytest.approx(block.share)
    assert block.fused == (len(block.layers) == 1)
    assert block.flops
    assert block.bytes
    assert block.intensity == pytest.approx(block.flops / block.bytes)
    own = next(group for group in grouped(report.layers, "attention") if group.name == block.name)
    assert own.layers == len(block.layers)
    assert own.median_ms == pytest.approx(block.median_ms)
    named = {node for layer in report.layers for node in layer.nodes}
    assert {"query", "key", "value"} <= named


def test_json_csv_and_table_hold_the_layers(report: ProfileReport, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    files.write_json(path, report.to_json())
    again = read_profile(path)
    assert again == replace(report, runs=())
    assert json.loads(path.read_text())["groups"]["kind"]
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["name"] for row in rows] == [layer.name for layer in report.layers]
    assert [float(row["median_ms"]) for row in rows] == [layer.median_ms for layer in report.layers]
    text = str(report)
    assert all(layer.name in text for layer in report.layers[:5])
    assert "SoftmaxAttention" in text


def test_a_formula_in_a_name_stays_text_in_a_spreadsheet(report: ProfileReport) -> None:
    hostile = replace(report.layers[0], name='=HYPERLINK("evil")', module="+1", nodes=("@a", "b"))
    (row,) = csv.DictReader(io.StringIO(replace(report, layers=(hostile,)).to_csv()))
    assert row["name"] == '\'=HYPERLINK("evil")'
    assert row["module"] == "'+1"
    assert row["nodes"] == "'@a b"


def test_the_same_engine_twice_agrees_within_its_own_interval(built: Path) -> None:
    """Of several tries, since a machine that something else loads for a second is another machine."""
    for _ in range(5):
        first, second = (profile_engine(built, duration_s=0.15, memory=False) for _ in range(2))
        whole = overlap(first.interval_ms, second.interval_ms)
        theirs = {layer.name: layer.interval_ms for layer in second.layers}
        pairs = [(layer.interval_ms, theirs[layer.name]) for layer in first.layers if layer.name in theirs]
        assert len(pairs) >= 0.8 * len(first.layers)
        if whole and statistics.fmean(overlap(*pair) for pair in pairs) >= 0.7:
            return
    pytest.fail("five pairs of profiles did not agree within what they say of themselves")


def overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    step = 0.001  # ms, the clock of OpenVINO's layers
    return first[0] <= second[1] + step and second[0] <= first[1] + step


@pytest.mark.parametrize(
    ("asked", "batch", "shape"),
    [({"x": (3, 33, 16)}, None, 3), ({"": (4, 33, 16)}, None, 4), ({}, 1, 1)],
)
def test_shapes_and_batch_are_as_asked(
    built: Path, asked: dict[str, tuple[int, ...]], batch: int | None, shape: int
) -> None:
    found = profile_engine(built, shapes=asked, batch=batch, duration_s=0.01, layers=False, memory=False)
    assert found.shapes == {"x": (shape, 33, 16)}
    assert found.batch == shape
    assert (found.layers, found.reconciliation) == ((), None)
    (block,) = found.blocks
    assert block.median_ms is None
    assert block.flops is not None


def test_real_samples_are_fed(built: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 33, 16), np.float32))
    found = profile_engine(built, data=tmp_path, batch=3, duration_s=0.01, layers=False, memory=False)
    assert found.shapes == {"x": (3, 33, 16)}
    assert found.data == f"a.npz of {tmp_path}"
    np.savez(tmp_path / "b.npz", x=np.ones((2, 33, 16), np.float32))
    found = profile_engine(built, data=tmp_path / "b.npz", duration_s=0.01, layers=False, memory=False)
    assert found.shapes == {"x": (2, 33, 16)}
    with pytest.raises(UsageError, match=r"asked for as 3x33x16, and .* is 2x33x16"):
        profile_engine(built, data=tmp_path / "b.npz", batch=3, duration_s=0.01, layers=False, memory=False)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"batch": 9}, InputError, "input 'x': expected shape .* got 9x33x16"),
        ({"batch": 10**12}, InputError, "expected shape"),
        ({"shapes": {"x": (-1, 33, 16)}}, InputError, "got -1x33x16"),
        ({"shapes": {"y": (1, 33, 16)}}, UsageError, "no input 'y'"),
        ({"shapes": {"x": (1, 33, 16)}, "batch": 1}, UsageError, "give one of the two"),
        ({"recipe": "r.toml"}, UsageError, "a recipe is about real samples"),
    ],
)
def test_what_the_engine_does_not_take_is_refused(
    built: Path, settings: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        profile_engine(built, duration_s=0.01, memory=False, **settings)  # type: ignore[arg-type]


def test_memory_is_that_of_a_process_of_its_own(built: Path) -> None:
    found = profile_engine(built, duration_s=0.01, layers=False)
    assert found.memory.weights is not None
    assert found.memory.weights >= 3 * 16 * 16 * 4
    assert found.memory.peak is not None
    assert found.memory.activations is not None
    assert 0 <= found.memory.activations <= found.memory.peak < 500e6


def test_an_engine_built_before_provenance_still_profiles(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.engine"
    path.write_bytes(built.read_bytes())
    record = json.loads(sidecar_path(built).read_text())
    del record["provenance"]
    files.write_json(sidecar_path(path), record)
    found = profile_engine(path, duration_s=0.02, memory=False)
    assert found.layers
    assert found.blocks == ()
    assert any("build it again" in note for note in found.notes)


def test_the_command_prints_and_writes(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "memory_of", lambda *_: (engine.UNWEIGHED, ""))
    outputs = {flag: tmp_path / f"p.{flag}" for flag in ("json", "html")}
    words = [word for flag, path in outputs.items() for word in (f"--{flag}", str(path))]
    assert main(["profile", str(built), "--duration", "0.1", "--batch", "2", "--no-layers", "-q", *words]) == 0
    printed = capsys.readouterr().out
    assert "SoftmaxAttention" in printed
    assert json.loads(outputs["json"].read_text())["batch"] == 2
    assert outputs["html"].read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(SystemExit):
        main(["profile", str(built), "--duration", "0"])
