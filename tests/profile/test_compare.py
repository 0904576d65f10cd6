from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from edgeattn.build import build_engine
from edgeattn.cli import main
from edgeattn.errors import InputError, UsageError
from edgeattn.graph import Graph, save_graph
from edgeattn.profile import compare, timing
from edgeattn.profile import engine as engine_module
from edgeattn.profile.compare import ComparisonReport, compare_engines, compare_profiles
from edgeattn.profile.engine import profile_engine
from edgeattn.profile.saved import read_profile
from tests.graphs import FLOAT, graph_of, self_attention
from tests.profile.samples import without_layers


def judged(low: float, ratio: float, high: float, bound: float | None) -> ComparisonReport:
    report = without_layers()
    return ComparisonReport(report, report, ratio, (low, high), 20, (), bound)


@pytest.mark.parametrize(
    ("report", "gate"),
    [
        (judged(1.06, 1.08, 1.10, 0.05), "failed"),
        (judged(1.04, 1.08, 1.10, 0.05), "undecided"),
        (judged(1.00, 1.02, 1.05, 0.06), "passed"),
        (judged(0.80, 0.85, 0.90, 0.0), "passed"),
        (judged(0.98, 1.00, 1.02, 0.0), "undecided"),
        (judged(1.01, 1.02, 1.03, 0.0), "failed"),
        (judged(1.50, 1.60, 1.70, None), ""),
    ],
)
def test_the_gate_fails_only_beyond_the_noise(report: ComparisonReport, gate: str) -> None:
    assert report.gate == gate
    assert report.verdict.startswith(f"{gate.upper()}: " if gate else "slower: ")
    assert ("measure longer" in report.verdict) == (gate == "undecided")


@pytest.mark.parametrize(("turns", "gate"), [(5, "undecided"), (6, "failed"), (0, "failed")])
def test_a_handful_of_turns_decides_nothing(turns: int, gate: str) -> None:
    assert replace(judged(1.4, 1.5, 1.6, 0.05), turns=turns).gate == gate


@given(st.floats(0.5, 2), st.floats(0.5, 2), st.floats(0, 1))
def test_a_gate_fails_for_sure_or_passes_for_sure_or_neither(low: float, high: float, bound: float) -> None:
    low, high = sorted((low, high))
    gate = judged(low, (low + high) / 2, high, bound).gate
    assert (gate == "failed") == (low - 1 > bound)
    assert (gate == "passed") == (high - 1 <= bound)


def test_saved_profiles_are_compared_by_the_bounds_of_both() -> None:
    baseline = without_layers()
    low, high = baseline.interval_ms
    slower = replace(
        baseline, interval_ms=(2 * low, 2 * high), latency=replace(baseline.latency, p50_ms=2 * baseline.latency.p50_ms)
    )
    report = compare_profiles(slower, baseline)
    assert report.ratio == pytest.approx(2)
    assert report.interval == pytest.approx((2 * low / high, 2 * high / low))
    assert report.turns == 0
    assert any("did not run in turn" in note for note in report.notes)


def test_another_device_is_no_baseline_to_hold_a_bound_to() -> None:
    report = without_layers()
    other = replace(report, environment={"cpu": "another"})
    assert not compare_profiles(report, other).gate
    with pytest.raises(UsageError, match=r"another device \(cpu another, here some\)"):
        compare_profiles(report, other, 0.05)


def test_other_shapes_are_no_baseline() -> None:
    report = without_layers()
    with pytest.raises(InputError, match="measured at 4x3x224x224, the engine at 1x3x224x224"):
        compare_profiles(report, replace(report, shapes={"image": (4, 3, 224, 224)}))


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs, and no process of its own to see how much memory a run takes."""
    monkeypatch.setattr(engine_module, "WARMUP_S", 0.0)
    monkeypatch.setattr(engine_module, "STEADY_RUNS", 3)
    monkeypatch.setattr(engine_module, "ROUNDS", engine_module.FEWEST_ROUNDS)
    monkeypatch.setattr(engine_module, "memory_of", lambda *_: (engine_module.UNWEIGHED, ""))
    monkeypatch.setattr(compare, "LEAST_S", 0.2)
    monkeypatch.setattr(timing, "TURN_S", 0.01)
    monkeypatch.setattr(timing, "LONGEST_SPIN_S", 0.01)


def built(graph: Graph, path: Path, backend: str = "onnxruntime") -> Path:
    save_graph(graph, path.with_suffix(".onnx"))
    build_engine(path.with_suffix(".onnx"), path, backend=backend, check=False)
    return path


def products(count: int) -> Graph:
    """x times a matrix, so many times."""
    nodes = [helper.make_node("MatMul", [f"h{n}", "w"], [f"h{n + 1}"], name=f"product_{n}") for n in range(count)]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    ends = [("x", FLOAT, [192, 192])], [("y", FLOAT, [192, 192])]
    return graph_of(nodes, *ends, {"w": np.eye(192, dtype=np.float32)})


@pytest.mark.usefixtures("_quick")
def test_two_backends_are_compared_block_by_block(tmp_path: Path) -> None:
    graph = self_attention(batch=1, tokens=193, dim=8).graph
    engine = built(graph, tmp_path / "a.engine")
    baseline = built(graph, tmp_path / "<script>alert(1)", "openvino")
    report = compare_engines(engine, baseline, duration_s=0.1, memory=False)
    assert report.turns >= 2
    assert report.interval[0] <= report.ratio <= report.interval[1]
    block = next(item for item in report.differences if item.by == "block")
    assert block.layers
    assert block.baseline_layers
    assert any("is run by function body, in the baseline by OpenVINO" in why for why in block.why)
    assert any(note.startswith("layers add up to ") for note in report.notes)
    page = report.to_html()
    assert "SoftmaxAttention" in page
    assert "<script>alert" not in page


@pytest.mark.usefixtures("_quick")
def test_of_two_engines_in_turns_the_slower_one_fails(tmp_path: Path) -> None:
    slow, fast = (built(products(count), tmp_path / f"{count}.engine") for count in (20, 1))
    report = compare_engines(slow, fast, max_slowdown=0.05, duration_s=0.1, layers=False, memory=False)
    assert report.gate == "failed"
    assert report.turns >= 6


@pytest.mark.usefixtures("_quick")
def test_an_engine_that_is_slower_than_a_saved_profile_ends_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast = (built(products(count), tmp_path / f"{count}.engine") for count in (20, 1))
    saved = tmp_path / "fast.json"
    saved.write_text(json.dumps(profile_engine(fast, duration_s=0.1, layers=False, memory=False).to_json()))
    options = ["--compare", str(saved), "--max-slowdown", "5%", "--duration", "0.1", "--no-layers", "-q"]
    assert main(["profile", str(slow), *options]) == 3
    assert "FAILED: it takes " in capsys.readouterr().out


@pytest.mark.usefixtures("_quick")
def test_a_saved_profile_is_a_baseline_and_every_export_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = built(self_attention(batch=1, tokens=193).graph, tmp_path / "m.engine")
    saved = tmp_path / "baseline.json"
    saved.write_text(json.dumps(profile_engine(engine, duration_s=0.1, layers=False, memory=False).to_json()))
    flags = ("trace", "export-profile", "exportLayerInfo", "export-times", "json")
    files = {flag: tmp_path / f"{flag}.json" for flag in flags}
    options = ["--duration", "0.1", "-q", *(word for flag in flags for word in (f"--{flag}", str(files[flag])))]
    assert main(["profile", str(engine), "--compare", str(saved), "--max-slowdown", "900%", *options]) == 0
    assert "did not run in turn" in capsys.readouterr().out
    found = {flag: json.loads(path.read_text()) for flag, path in files.items()}
    layers = found["json"]["engine"]["layers"]
    assert len(found["export-profile"]) == 1 + len(layers) == 1 + len(found["exportLayerInfo"]["Layers"])
    slices = [event for event in found["trace"]["traceEvents"] if event["ph"] == "X"]
    assert sum(event["cat"] == "layers" for event in slices) == len(layers)
    assert len(found["export-times"]) == found["json"]["engine"]["latency"]["runs"]
    assert [layer.name for layer in read_profile(files["json"]).layers] == [layer["name"] for layer in layers]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-slowdown", "5%"], "--max-slowdown is about a comparison"),
        (["--compare", "other.engine", "--ablate"], "--ablate is about one engine"),
        (["--no-layers", "--trace", "t.json"], "--trace writes layers"),
        (["--compare", "other.engine", "--max-slowdown", "5"], "expected a share such as 5% or 0.05"),
    ],
)
def test_flags_that_say_nothing_together_are_refused(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):  # argparse's own way out
        assert main(["profile", "m.engine", *flags]) == 2
    assert said in capsys.readouterr().err
