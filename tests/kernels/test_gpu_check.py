from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from edgeattn.backends import backend_named
from edgeattn.kernels import gating, kernel
from edgeattn.kernels.launch import Cost
from edgeattn.ops import ALL_OPS, activations
from tests.kernels.interpreted import interpret
from tests.scripts import SCRIPTS, script

ROOT = SCRIPTS.parent
SCRIPT = SCRIPTS / "gpu_check"

CASES = script("_gpu_cases")
SMALL = [case for case in CASES.small_cases() if case.dtype == "float32"]
CODED = [case for case in CASES.small_cases() if case.codes]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_forms_are_the_ops_they_stand_for(case: object) -> None:
    inputs = {name: value.double() for name, value in case.tensors("cpu").items()}
    op = next(op for op in ALL_OPS if op.name == case.op)
    known = {name: value for name, value in case.attributes.items() if name not in ("layout", "residual")}
    if case.attributes.get("residual"):
        q, k, v = (inputs[name].transpose(1, 2)[:, None] for name in "qkv")
        truth = inputs["gamma"] * op.reference("", q, k, v, **known)[:, 0].transpose(1, 2) + inputs["x"]
    else:
        names = kernel(case.op).inputs(case.variant)
        truth = op.reference(case.variant, *(inputs[name] for name in names), **known)
    for form in (case.form, *case.rivals.values()):
        found = form(*inputs.values())
        assert found.shape == case.output
        assert float((found - truth).abs().max()) <= 1e-12 * float(truth.abs().max())


@pytest.mark.parametrize("case", CODED, ids=lambda case: case.name)
def test_int8_is_checked_to_half_a_code(case: object) -> None:
    def run_on(tensors: dict[str, torch.Tensor]) -> None:
        given = {name: value for name, value in tensors.items() if name != "y"}
        planned = kernel(case.op).launches(case.variant, case.shapes, case.dtype, 87, **case.attributes)
        tensors["y"].copy_(interpret(planned, given, case.output) + shift)

    check = script("gpu_check")
    shift = 0
    error, allowed = check.error_and_bound(case, run_on, "cpu")
    assert error <= allowed < 1 / 127
    shift = 1
    assert check.checked(case, lambda _: run_on, "cpu")["passed"] is False


@pytest.mark.parametrize("case", CASES.timed_cases(), ids=lambda case: f"{case.name} {case.dtype}")
def test_every_timed_case_has_a_kernel(case: object) -> None:
    module = kernel(case.op)
    assert module.unsupported(case.variant, case.shapes, case.dtype, 90, **case.attributes) == []
    assert module.launches(case.variant, case.shapes, case.dtype, 90, **case.attributes)


def test_a_row_compares_with_the_fastest_that_pytorch_has() -> None:
    case = CASES.timed_cases()[0]
    times = {"kernel": 0.5, "eager": 2.0, "compile": 1.5, "sdpa flash": 1.0}
    found = script("gpu_check").row(case, times, Cost(10**9, 10**6, 2 * 10**6), {"gemm_tflop_s": 4.0, "copy_gb_s": 8.0})
    assert found["best_rival"] == "sdpa flash"
    assert found["speedup"] == {"eager": 4.0, "compile": 3.0, "sdpa flash": 2.0, "best": 2.0}
    assert [found[name] for name in ("tflop_s", "of_gemm", "of_copy", "moved_of_copy")] == [2.0, 0.5, 0.25, 0.5]


def test_what_cannot_be_checked_costs_that_case_only(capsys: pytest.CaptureFixture[str]) -> None:
    check = script("gpu_check")
    first, second, third = SMALL[:3]
    faults = {first.name: RuntimeError("cuModuleLoadData: no image"), second.name: torch.cuda.OutOfMemoryError("2 GiB")}

    def runner(case: object) -> object:
        def run_on(tensors: dict[str, torch.Tensor]) -> None:
            if case.name in faults:
                raise faults[case.name]
            tensors["y"].copy_(case.form(*(value for name, value in tensors.items() if name != "y")))

        return run_on

    rows = check.check([first, second, third], runner, "cpu")
    assert [row["passed"] for row in rows.values()] == [False, None, True]
    assert rows[check.key(first)]["why"] == "RuntimeError: cuModuleLoadData: no image"
    printed = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in printed] == ["FAIL", "?   ", "ok  "]
    assert not check.right(rows)
    del rows[check.key(first)]
    assert check.right(rows)


ENVIRONMENT = {"gpu": "A GPU in words", "torch": "2", "cuda": "12", "date": "2026-01-02T03:04:05+00:00"}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is left of a whole run on a machine that only pretends to be a GPU, with time for two cases."""
    timing, check = script("_gpu_timing"), script("gpu_check")
    minutes = iter([0.0, 1.0, 2.0, *[600.0] * 100])
    monkeypatch.setattr(timing, "ceilings", lambda: {"copy_gb_s": 1000.0, "gemm_tflop_s": 500.0})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 7))
    monkeypatch.setattr(check, "time", SimpleNamespace(monotonic=lambda: 60 * next(minutes)))
    ok = {"error": 1e-4, "allowed": 1e-3, "passed": True}
    for name, value in {
        "compiled": lambda cases, arch: {check.key(case): ((), Cost(10**9, 10**6, 10**6)) for case in cases},
        "gpu_runner": lambda kernels: None,
        "check": lambda cases, runner, device: {check.key(case): ok for case in cases},
        "environment": lambda: ENVIRONMENT,
        "timed": lambda case, steps: {"kernel": 0.5, "eager": 2.0, "compile": 1.5, "sdpa flash": 1.0},
        "engines": lambda deadline: iter([{"rows": [], "notes": ["no engines of tensorrt: no GPU"]}]),
    }.items():
        monkeypatch.setattr(check, name, value)
    args = Namespace(only="float16", check_only=False, kernels=None, output=tmp_path / "r.json", minutes=9.0)
    with torch.no_grad():
        assert check.on_gpu(args)
    found: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
    return found


def test_a_run_keeps_all_that_it_had_time_for(measured: dict[str, Any]) -> None:
    large = [case.name for case in CASES.timed_cases()]
    assert list(measured["cases"]) == [f"{name} float16" for name in large[:2]]
    assert measured["left_out"] == [f"{name} float16: no time was left" for name in large[2:]]
    assert measured["engines"]["notes"] == ["no engines of tensorrt: no GPU"]
    assert measured["sanitizer"] in ("not installed", "no time was left")


# Engines


def small_models(engines: ModuleType) -> dict[str, Any]:
    return {
        "SAGAN": (lambda: engines.sagan(8), (1, 3, 8, 8)),
        "SE": (lambda: engines.gated("SqueezeExcite", 16, blocks=1), (2, 16, 6, 6)),
    }


@pytest.fixture(scope="module")
def engine_rows() -> list[dict[str, Any]]:
    """What the CPU's backends, which take the same way as TensorRT, say of two small models."""
    engines = script("_gpu_engines")
    engines.ROUNDS, engines.ROUND_S = 2, 0.0
    every = [list(engines.found_by(backend, small_models(engines))) for backend in ("openvino", "onnxruntime")]
    assert [len(found) for found in every] == [2, 2]
    return [row for *_, last in every for row in last["rows"]]


@pytest.mark.slow
def test_engines_are_held_against_pytorch_and_timed(engine_rows: list[dict[str, Any]]) -> None:
    assert [(row["model"], row["backend"]) for row in engine_rows] == [
        ("SAGAN", "openvino"), ("SE", "openvino"), ("SAGAN", "onnxruntime"), ("SE", "onnxruntime")
    ]  # fmt: skip
    for row in engine_rows:
        assert row["passed"], row
        assert row["attention"] == "native"
        assert 0 <= row["error"] <= row["allowed"]
        assert row["device_ms"] > 0 < row["run_ms"]
        assert len(row["runs"]) == 1
        assert json.loads(json.dumps(row)) == row
        assert script("_gpu_engines").printed(row).startswith("ok   ")


@pytest.mark.slow
def test_an_engine_that_cannot_be_built_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = script("_gpu_engines")
    monkeypatch.setattr(backend_named("onnxruntime"), "build", lambda graph, config: 1 / 0)
    (first, _) = engines.found_by("onnxruntime", small_models(engines))
    (row, *_) = first["rows"]
    assert not row["passed"]
    assert row["why"] == "ZeroDivisionError: division by zero"
    assert engines.printed(row).startswith("FAIL SAGAN, onnxruntime native")


class Stub:
    """A session that knows which engine it is of."""

    def __init__(self, path: Path) -> None:
        self.how = path.stem

    def __enter__(self) -> Stub:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The engines' script with nothing that exports, builds or runs; all passes."""
    engines = script("_gpu_engines")
    monkeypatch.setattr("edgeattn.export.export_model", lambda *_, **__: None)
    monkeypatch.setattr("edgeattn.backends.open_session", Stub)
    for name, value in {
        "built": lambda model, engine, backend, how: SimpleNamespace(path=engine),
        "described": lambda report: {"version": "10"},
        "compared": lambda session, module, shape: {"passed": True},
        "timed": lambda sessions, shape: {how: {"device_ms": float(len(sessions))} for how in sessions},
    }.items():
        monkeypatch.setattr(engines, name, value)
    return engines


def rows_of(engines: ModuleType, make: Any, folder: Path) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = engines.rows_of("tensorrt", "model", make, (1, 3, 8, 8), folder)
    assert [row["attention"] for row in made] == ["native", "plugin"]
    return made


@pytest.mark.parametrize("wrong", [True, False])
def test_an_engine_that_fails_is_not_timed(
    wrong: bool, stubbed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def compared(session: Stub, module: object, shape: object) -> dict[str, Any]:
        if session.how == "plugin" and not wrong:
            raise RuntimeError("enqueue failed")
        return {"passed": session.how == "native"}

    monkeypatch.setattr(stubbed, "compared", compared)
    native, plugin = rows_of(stubbed, torch.nn.Identity, tmp_path)
    assert native["passed"]
    assert native["device_ms"] == 1
    assert not plugin["passed"]
    assert "device_ms" not in plugin
    assert plugin.get("why") == (None if wrong else "RuntimeError: enqueue failed")


@pytest.mark.parametrize("name", ["timed", "make"])
def test_what_fails_for_a_model_fails_its_rows_only(
    name: str, stubbed: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    if name == "timed":
        monkeypatch.setattr(stubbed, name, fail)
    made = rows_of(stubbed, fail if name == "make" else torch.nn.Identity, tmp_path)
    assert [(row["passed"], row["why"]) for row in made] == [(False, "RuntimeError: no memory")] * 2


def test_a_process_that_crashed_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = script("_gpu_engines")
    monkeypatch.setattr(engines, "sys", SimpleNamespace(executable="false"))
    (found,) = engines.engines(time.monotonic() + 60, ("tensorrt",))
    assert found == {"rows": [], "notes": [], "crashes": ["tensorrt ended with 1: it said nothing"]}
    assert not engines.sound(found)
    assert engines.sound({"rows": [{"passed": True}], "notes": ["no time was left"], "crashes": []})
    assert not engines.sound({"rows": [{"passed": False}]})


def test_engines_are_left_out_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engines = script("_gpu_engines")
    late = list(engines.engines(time.monotonic() - 1, ("tensorrt",)))
    assert late == [{"rows": [], "notes": ["tensorrt: no time was left"], "crashes": []}]
    monkeypatch.setattr(engines, "NEEDED", ("json", "no_such_package"))
    (found,) = engines.engines(time.monotonic() + 60)
    assert found == {"rows": [], "notes": ["no engines: no_such_package not installed"], "crashes": []}
    assert capsys.readouterr().out.splitlines() == ["tensorrt: no time was left", *found["notes"]]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_each_backend_answers_from_a_process_of_its_own() -> None:
    *_, found = script("_gpu_engines").engines(time.monotonic() + 100)
    assert found["rows"] == []
    assert [note.split(":")[0] for note in found["notes"]] == ["no engines of tensorrt", "no engines of tensorrt-rtx"]


# The README's tables


def test_the_readme_shows_what_is_kept() -> None:
    table, text = script("gpu_table"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert table.written(text, table.kept(ROOT / "plugins" / "results")) == text


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_without_results_the_tables_are_one_honest_line() -> None:
    assert script("gpu_table").tables({}).startswith("No GPU has run them yet: ")


def test_an_engine_that_was_not_built_stays_beside_its_partner() -> None:
    row = {"model": "SE", "backend": "tensorrt"}
    failed = row | {"attention": "native", "passed": False, "why": "no memory"}
    built = row | {"attention": "plugin", "passed": True, "version": "10", "plugins": [{}], "device_ms": 0.5}
    assert list(script("gpu_table").engine_rows([failed, built])) == ["| SE, tensorrt 10 | failed | 0.5000 | - |"]
    assert list(script("gpu_table").engine_rows([failed])) == ["| SE, tensorrt | failed | - | - |"]


@pytest.mark.slow
def test_a_file_of_results_becomes_tables(measured: dict[str, Any], engine_rows: list[dict[str, Any]]) -> None:
    table = script("gpu_table")
    both = [row | {"backend": "tensorrt", "version": "10"} for row in engine_rows[:2]]
    both += [row | {"attention": "plugin", "plugins": [{}], "device_ms": row["device_ms"] / 2} for row in both[:1]]
    both += [row | {"attention": "plugin"} for row in both[1:2]]
    measured["engines"] = {"rows": both, "notes": []}
    lines = table.tables({"a.json": measured}).splitlines()
    total = len(measured["checks"])
    assert lines[0].startswith(
        f"**A GPU in words**, 2026-01-02: PyTorch 2, CUDA 12; {total} of {total} checks against float64 passed; "
    )
    (kernels, engines) = (lines.index(head) for head in (table.KERNELS, table.ENGINES))
    assert len(cells(lines[kernels])) == len(cells(lines[kernels + 1])) == len(cells(lines[kernels + 2])) == 7
    name, row = next(iter(measured["cases"].items()))
    assert cells(lines[kernels + 2]) == [
        name.removesuffix(" float16"), "0.5000", "4.00x", "3.00x", "2.00x (sdpa flash)",
        f"{row['tflop_s']:.1f}", f"{row['gb_s']:,.0f}, {row['of_copy']:.0%}",
    ]  # fmt: skip
    first, second = (cells(line) for line in lines[engines + 2 : engines + 4])
    assert first[0] == "SAGAN, tensorrt 10"
    assert first[3] == "2.00x"
    assert second[2:] == ["no plugin", "-"]
    assert lines[-1] == f"Not timed: {'; '.join(measured['left_out'])}."


# Where only PyTorch is


def test_a_residual_gate_is_called_the_same_by_kernels_and_ops() -> None:
    assert gating.RESIDUAL == activations.RESIDUAL


@pytest.mark.slow
def test_it_needs_nothing_but_pytorch_and_triton(tmp_path: Path) -> None:
    absent = ["onnx", "onnx_ir", "onnxruntime", "onnxscript", "ml_dtypes", "PIL", "rich", "polygraphy", "pycuda"]
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent}));"
        "sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    options = ["--compile", "87", "--only", "2x19x7x5 float16", "-o", tmp_path / "kernels.json"]
    subprocess.run([sys.executable, "-c", code, SCRIPT, *options], check=True, capture_output=True, cwd=ROOT)
    assert len(json.loads((tmp_path / "kernels.json").read_text())) == len(CASES.GATES)


# The command


@pytest.mark.slow
def test_it_runs_on_the_interpreter() -> None:
    command = [sys.executable, SCRIPT, "--interpret", "--only", "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok   ") == len(SMALL)


@pytest.mark.slow
def test_it_keeps_kernels_for_other_machines(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    command = [sys.executable, SCRIPT, "--compile", "87", "--only", "SE 2x19x7x5 float32", "-o", path]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (entry,) = json.loads(path.read_text()).values()
    assert [made["launch"]["kernel"] for made in entry["kernels"]] == [
        "pooling.pool", "gating.project", "channel_gate.scale"
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_can_do() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "no GPU here: compile with --compile, or run small sizes with --interpret" in done.stderr
