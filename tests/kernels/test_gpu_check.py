from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import torch

from edgeattn.kernels import kernel
from edgeattn.kernels.launch import Cost
from edgeattn.ops import ALL_OPS

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SCRIPT = SCRIPTS / "gpu_check"


def script(name: str) -> ModuleType:
    path = next(path for path in (SCRIPTS / f"{name}.py", SCRIPTS / name) if path.is_file())
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "dont_write_bytecode", True)
        sys.modules[name] = module  # where its dataclasses look for their annotations
        loader.exec_module(module)
    return module


CASES = script("_gpu_cases")
SMALL = [case for case in CASES.small_cases() if case.dtype == "float32"]


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
