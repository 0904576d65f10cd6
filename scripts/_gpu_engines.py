"""Engines with and without plugins for `gpu_check`: built by edgeattn in FP16, held against PyTorch, timed in turns.

    _gpu_engines.py BACKEND FILE    writes what it found to FILE, after each model

Each backend has a process of its own: one process serves TensorRT or TensorRT-RTX, and a crash is seen from outside.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

if TYPE_CHECKING:
    from edgeattn.backends.base import Session
    from edgeattn.build import BuildReport

FLAVOURS = ("tensorrt", "tensorrt-rtx")
NEEDED = ("numpy", "onnx", "onnx_ir", "onnxscript", "PIL", "rich")  # by edgeattn's builds and PyTorch's export
ROUNDS, ROUND_S = 15, 0.1
Models = Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]


def sagan(channels: int = 64) -> nn.Module:
    """A map on which each place looks at all others."""
    from edgeattn.nn import SelfAttention2d

    attention = SelfAttention2d(channels)
    nn.init.ones_(attention.gamma)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), attention)


def transformer(dim: int = 384, heads: int = 6) -> nn.Module:
    """A ViT's block."""
    return nn.TransformerEncoderLayer(dim, heads, 4 * dim, activation="gelu", batch_first=True, norm_first=True)


def gated(kind: str, channels: int = 256, blocks: int = 2) -> nn.Module:
    """A stage of residual blocks with a gate each."""
    from edgeattn import nn as attention

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.body = nn.Sequential(conv, nn.BatchNorm2d(channels), getattr(attention, kind)(channels))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + x)

    return nn.Sequential(*(Block() for _ in range(blocks)))


MODELS: Models = {
    "SAGAN block, 64x64 places": (sagan, (1, 3, 64, 64)),
    "ViT block, 197 tokens": (transformer, (8, 197, 384)),
    "SE stage, 56x56": (lambda: gated("SqueezeExcite"), (8, 256, 56, 56)),
    "CBAM stage, 56x56": (lambda: gated("CBAM"), (8, 256, 56, 56)),
}


# In gpu_check


def engines(deadline: float, flavours: Sequence[str] = FLAVOURS) -> Iterator[dict[str, Any]]:
    """What each backend's process found so far, printed as it comes; why there is nothing, where there is nothing."""
    found: dict[str, Any] = {"rows": [], "notes": [], "crashes": []}
    if lacking := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        found["notes"].append(f"no engines: {', '.join(lacking)} not installed")
        print(*found["notes"])
        yield found
        return
    for flavour in flavours:
        made = _of_process(flavour, deadline - time.monotonic())
        for kind, each in found.items():
            each.extend(made[kind])
        print(*map(printed, made["rows"]), *made["notes"], *made["crashes"], sep="\n", flush=True)
        yield found


def _of_process(flavour: str, seconds: float) -> dict[str, Any]:
    """What a backend's process wrote until it ended, or was ended; of an abnormal end, how that was."""
    if seconds <= 0:
        return {"rows": [], "notes": [f"{flavour}: no time was left"], "crashes": []}
    notes, crashes = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [sys.executable, __file__, flavour, str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
            if done.returncode:
                crashes.append(f"{flavour} ended with {done.returncode}: {_last_line(done.stderr)}")
        except subprocess.TimeoutExpired:
            notes.append(f"{flavour}: no time was left for the rest")
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"rows": made.get("rows", []), "notes": [*made.get("notes", []), *notes], "crashes": crashes}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def sound(found: Mapping[str, Any]) -> bool:
    """Whether no engine was wrong, and no backend's process ended abnormally."""
    return all(row["passed"] for row in found.get("rows", ())) and not found.get("crashes")


def keep(report: Mapping[str, Any], path: Path) -> None:
    """Write what is known so far, in one step: whoever is stopped leaves a whole file."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def printed(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    name = f"{row['model']}, {row['backend']} {row['attention']}"
    if not row["passed"]:
        return f"FAIL {name:52} {row.get('why') or 'error {error:.1e}, allowed {allowed:.1e}'.format(**row)}"
    return f"ok   {name:52} {row['device_ms']:8.4f} ms on the device, {row['run_ms']:8.4f} ms with copies"


# In a process of its own


def found_by(backend: str, models: Models = MODELS) -> Iterator[dict[str, Any]]:
    """The rows of each model so far, or why the backend cannot run here."""
    from edgeattn.backends import backend_named

    found: dict[str, Any] = {"rows": [], "notes": []}
    if reasons := backend_named(backend).missing():
        found["notes"].append(f"no engines of {backend}: {reasons[0]}")
        yield found
        return
    for name, (make, shape) in models.items():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            found["rows"] += rows_of(backend, name, make, shape, Path(folder))
        yield found


def rows_of(
    backend: str, name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], folder: Path
) -> list[dict[str, Any]]:
    """One model with attention native and, where there are plugins, as plugins: right or not, and if so how fast."""
    from edgeattn.backends import open_session
    from edgeattn.export import export_model
    from edgeattn.model import Model
    from edgeattn.tensors import TensorSpec

    ways = ("native", "plugin") if backend == "tensorrt" else ("native",)
    rows = {how: {"model": name, "backend": backend, "attention": how, "passed": False} for how in ways}
    right: dict[str, Session] = {}
    with failing(*rows.values()), contextlib.ExitStack() as stack:
        module = make().eval().requires_grad_(False)
        export_model(Model(module, (TensorSpec("x", "float32", shape),), name), folder / "m.onnx", check=False)
        for how, row in rows.items():
            with failing(row):
                report = built(folder / "m.onnx", folder / f"{how}.engine", backend, how)
                row.update(described(report))
                session = stack.enter_context(open_session(report.path))
                row.update(compared(session, module, shape))
                if row["passed"]:
                    right[how] = session
        for how, times in timed(right, shape).items() if right else ():
            rows[how] |= times
    return list(rows.values())


@contextlib.contextmanager
def failing(*rows: dict[str, Any]) -> Iterator[None]:
    """Rows that fail, and say why, where what is inside does: the others are to be seen, too."""
    try:
        yield
    except Exception as err:
        for row in rows:
            row.setdefault("why", f"{type(err).__name__}: {err}")
            row["passed"] = False


def built(model: Path, engine: Path, backend: str, how: str) -> BuildReport:
    """An engine in FP16 throughout; it is held against PyTorch afterwards."""
    from edgeattn.backends.base import BuildConfig
    from edgeattn.build import build_engine

    config = BuildConfig(precision="float16", attention=how, keep_io_types=False)
    return build_engine(model, engine, config, backend, check=False)


def described(report: BuildReport) -> dict[str, Any]:
    """What an engine is."""
    sidecar = report.sidecar
    return {
        "version": sidecar.backend_version,
        "build_s": report.seconds["compile"],
        "runs": {item.found.name: item.plans[report.plan.backend].runs for item in report.plan.attention},
        "plugins": [dict(item) for item in sidecar.plugins],
        "notes": list(sidecar.precision.notes),
    }


def compared(session: Session, module: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """An engine's error against PyTorch in float64, and what it may be by PyTorch's own in float16."""
    import copy

    from edgeattn.tolerance import tolerance_for

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(shape).half()
    (spec,) = session.inputs
    (y,) = session.run({spec.name: x.numpy().astype(spec.dtype)}).values()
    truth, own = (copy.deepcopy(module).to(device, dtype)(x.to(device, dtype)) for dtype in (torch.double, torch.half))
    truth = truth.cpu()
    error, allowed = (
        float((other.double().cpu() - truth).norm() / truth.norm()) for other in (torch.from_numpy(y), own)
    )
    limit = tolerance_for("float16").limit(allowed)
    return {"error": error, "allowed": limit, "passed": error <= limit}


def timed(sessions: Mapping[str, Session], shape: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Milliseconds of each session, all in turns: of its work on the device, and of a whole run with its copies."""
    from functools import partial

    from edgeattn.alone import timer
    from edgeattn.profile import measure
    from edgeattn.tensors import random_feeds

    clocks = {how: timer(session) for how, session in sessions.items()}
    rounds: dict[str, list[float]] = {how: [] for how in sessions}
    for _ in range(ROUNDS):
        for how, clock in clocks.items():
            rounds[how].append(statistics.median(clock(ROUND_S)) / 1e6)
    calls = {
        how: partial(session.run, random_feeds(session.inputs, {session.inputs[0].name: shape}, seed=0))
        for how, session in sessions.items()
    }
    whole = measure(calls)
    return {how: {"device_ms": statistics.median(rounds[how]), "run_ms": whole[how].p50_ms} for how in sessions}


def main() -> None:
    """What the process of one backend does."""
    backend, path = sys.argv[1], Path(sys.argv[2])
    for found in found_by(backend):
        keep(found, path)


if __name__ == "__main__":
    main()
