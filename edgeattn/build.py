"""Graph -> Engine, whole: choose a backend, type the graph, build, load what was written, compare, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeattn import __version__, files
from edgeattn.backends import backend_named, choose_backend
from edgeattn.backends.base import BuildConfig
from edgeattn.engine import Engine, Sidecar, sidecar_path, write_engine
from edgeattn.errors import GateError, UnsupportedError, UsageError
from edgeattn.fuse import Missed, fuse
from edgeattn.graph import Graph, dtype_name, load_graph, with_profile
from edgeattn.inspect import AttentionInfo, attention_in
from edgeattn.lowering import Plan, to_backend
from edgeattn.parity import ParityReport, check_parity, reference_from_graph
from edgeattn.precision.fp16 import lower
from edgeattn.reports.text import number, table
from edgeattn.tensors import DTYPES, format_shape, format_size, resolve_profile

LOW_PRECISIONS = ("float16", "bfloat16")
SHORT_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_TENSORRT_SETTINGS = (
    "workspace", "timing_cache", "opt_level", "version_compatible", "hardware_compatibility", "tf32",
)  # fmt: skip
_PRIVATE = ("progress", "profile", "min_shapes", "opt_shapes", "max_shapes")


@dataclass(frozen=True)
class BuildPlan:
    """What a build will do, before it does it: `edgeattn build --dry-run`."""

    source: Graph
    typed: Graph
    backend: str
    why: str
    config: BuildConfig
    attention: tuple[AttentionInfo, ...] = ()
    missed: tuple[Missed, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [
            ("model", f"{self.source.path or 'in memory'} (opset {self.source.opset})"),
            ("backend", f"{self.backend} ({self.why})"),
            ("precision", self.config.precision),
            *(("input", f"{name}: {spread}") for name, spread in self.config.profile.items()),
            *(("output", str(spec)) for spec in self.typed.outputs),
            ("targets", ", ".join(self.config.targets) or "this machine"),
            *self.attention_rows(),
            *(("note", note) for note in self.notes),
        ]
        return table(rows)

    def attention_rows(self) -> list[tuple[str, str]]:
        """For people: what each attention is run with, and what was nearly one."""
        chosen = ((item, item.plans[self.backend]) for item in self.attention)
        return [
            *(("attention", f"{item}: {plan.runs}{f' ({plan.why})' if plan.why else ''}") for item, plan in chosen),
            *(("missed", str(item)) for item in self.missed),
        ]


@dataclass(frozen=True)
class BuildReport:
    """What a build did: where the engine is, what is in it, and what the check of it said."""

    path: Path
    plan: BuildPlan
    sidecar: Sidecar
    parity: ParityReport | None
    unchecked: str  # why it was not checked, empty where it was
    seconds: Mapping[str, float]

    @property
    def overhead_s(self) -> float:
        """What the build cost beyond the backend's compilation and the check, in seconds."""
        return sum(spent for phase, spent in self.seconds.items() if phase not in ("compile", "check"))

    def __str__(self) -> str:
        precision = self.sidecar.precision
        asked = f"{precision.asked}; weights {_shares(precision.weights, format_size)}"
        rows = [
            ("engine", f"{self.path} ({format_size(self.sidecar.plan_bytes)})"),
            ("backend", f"{self.sidecar.backend} {self.sidecar.backend_version} ({self.plan.why})"),
            *(("input", f"{spec} [{self.sidecar.profile[spec.name]}]") for spec in self.sidecar.inputs),
            *(("output", f"{spec.name}: {spec.dtype} {format_shape(spec.shape)}") for spec in self.sidecar.outputs),
            ("precision", f"asked {asked}; layers {_shares(precision.compute, str)}"),
            *self.plan.attention_rows(),
            *(("note", note) for note in (*self.plan.notes, *precision.notes)),
            ("check", _verdict(self.parity) if self.parity else f"not run: {self.unchecked}"),
        ]
        found = [(row["candidate"], number(row["ms"]), row["verdict"]) for row in self.sidecar.search]
        searched = table(found, ("candidate", "ms", "verdict"), "lr") if found else ""
        return "\n\n".join(filter(None, (table(rows), searched)))

    def to_json(self) -> dict[str, Any]:
        """Plain values: the sidecar as written, the notes, seconds by phase."""
        return {
            "engine": str(self.path),
            "why": self.plan.why,
            "attention": [item.to_json() for item in self.plan.attention],
            "missed": [dataclasses.asdict(item) for item in self.plan.missed],
            "notes": list(self.plan.notes),
            "sidecar": dataclasses.asdict(self.sidecar),
            "checked": self.parity is not None,
            "unchecked": self.unchecked,
            "seconds": dict(self.seconds),
            "overhead_s": self.overhead_s,
        }


def plan_build(source: Graph | str | Path, config: BuildConfig | None = None, backend: str = "auto") -> BuildPlan:
    """Read, choose and type: everything up to the backend's own work, without writing anything.

    Raises:
        InputError: the file is refused.
        UsageError: shapes that the graph does not admit, or a precision that no graph is lowered to.
        UnsupportedError: no backend fits, or the chosen one lacks the targets or an operator; lists every reason.
    """
    config = config or BuildConfig()
    if config.precision and config.precision not in SHORT_NAMES:
        raise UsageError(f"cannot build in {config.precision!r}; known: {', '.join(SHORT_NAMES.values())}")
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        graph = source if isinstance(source, Graph) else load_graph(source)
    with _timed(seconds, "choose"):
        name, why = choose_backend(backend)
        _require_tensors(graph)
        profile = config.profile or resolve_profile(
            graph.inputs, config.min_shapes, config.opt_shapes, config.max_shapes
        )
    with _timed(seconds, "fuse"):
        fused, found = fuse(graph)
        typed = with_profile(to_backend(fused, name, config.forms), profile)
        notes = (*_unused(config, name), *found.notes)
    with _timed(seconds, "type"):
        if config.precision in LOW_PRECISIONS:
            lowered = lower(typed, config.precision, config.keep_io_types)
            typed, notes = lowered.graph, (*notes, *lowered.notes)
        config = dataclasses.replace(config, precision=config.precision or _own_precision(graph), profile=profile)
        reasons = backend_named(name).unsupported(typed)
        if reasons:
            raise UnsupportedError(f"backend {name} cannot build {graph.path or 'the graph'}", reasons)
    attention = tuple(
        _with_form(item, name, config.forms) for item in attention_in(fused, found.found, config.precision)
    )
    return BuildPlan(graph, typed, name, why, config, attention, found.missed, notes, seconds)


def build_engine(
    source: Graph | str | Path,
    output: str | Path,
    config: BuildConfig | None = None,
    backend: str = "auto",
    check: bool = True,
) -> BuildReport:
    """Build an engine and publish it only once it says what the graph says.

    The plan is written beside `output`, read back, loaded, and compared with the graph at every corner of the profile
    on seeded random inputs; then it replaces what was at `output`. Where this machine cannot run it (TensorRT-RTX
    without a GPU) the report says so.

    Raises:
        GateError: it computes something else; the old engine stays.
        EdgeAttnError: see `plan_build`, and the backend's own BuildError.
    """
    output = Path(output)
    plan = plan_build(source, config, backend)
    for path in (output, sidecar_path(output)):
        files.output_file(path, *plan.source.files)
    module = backend_named(plan.backend)
    seconds = dict(plan.seconds)
    found: list[ParityReport] = []
    unchecked = "; ".join(module.missing()) if check else "switched off"

    def finish(engine: Engine) -> Sidecar:
        if unchecked:
            return engine.sidecar
        plan.config.progress("checking", None)
        with _timed(seconds, "check"), module.load(engine) as session:
            reference = reference_from_graph(plan.source)
            report = check_parity(session, reference, None, plan.config.precision, seed=0, latency=False)
            audit = session.details.get("compute", dict)()
        if not report.passed:
            raise GateError(f"the engine does not say what the graph says: {'; '.join(report.reasons)}; see --no-check")
        found.append(report)
        return _verified(engine.sidecar, report, audit)

    with files.locked(output):
        with _timed(seconds, "compile"):
            engine = module.build(plan.typed, plan.config)
        with _timed(seconds, "write"):
            sidecar = write_engine(_described(engine, plan, output), output, finish)
        seconds["write"] -= seconds.get("check", 0.0)
    return BuildReport(output, plan, sidecar, found[0] if found else None, unchecked, seconds)


def _with_form(item: AttentionInfo, backend: str, forms: Mapping[str, str]) -> AttentionInfo:
    """What is said of an attention once its form was chosen."""
    form = forms.get(item.found.name)
    return dataclasses.replace(item, plans={**item.plans, backend: Plan(form, "as chosen")}) if form else item


def _unused(config: BuildConfig, backend: str) -> tuple[str, ...]:
    """What was asked for that only TensorRT has, in words; empty where it builds."""
    if backend.startswith("tensorrt"):
        return ()
    if config.targets:
        raise UnsupportedError(
            f"{backend} builds for this machine's CPU, not for {', '.join(config.targets)}: "
            "build with --backend tensorrt-rtx, or on the device with --backend tensorrt"
        )
    default = BuildConfig()
    names = [name for name in _TENSORRT_SETTINGS if getattr(config, name) != getattr(default, name)]
    return tuple(f"{name.replace('_', ' ')} is a setting of TensorRT: not used" for name in names)


def _verified(sidecar: Sidecar, report: ParityReport, audit: Mapping[str, int]) -> Sidecar:
    """Add what the check found, and the precisions that the loaded engine itself reports, where it does."""
    precision = dataclasses.replace(sidecar.precision, compute=audit or sidecar.precision.compute)
    verified = {"against": "graph", "outputs": report.to_json()["outputs"]}
    return dataclasses.replace(sidecar, precision=precision, verified=verified)


def _described(engine: Engine, plan: BuildPlan, output: Path) -> Engine:
    """Add to a backend's sidecar what only the whole build knows."""
    source = plan.source
    settings = {
        item.name: getattr(plan.config, item.name)
        for item in dataclasses.fields(plan.config)
        if item.name not in _PRIVATE
    }
    sidecar = dataclasses.replace(
        engine.sidecar,
        graph={"path": str(source.path or ""), "name": source.model.graph.name or "", "sha256": source.sha256},
        config={**settings, **engine.sidecar.config},
        rebuild=rebuild_command(plan, output, ["--backend", plan.backend]),
        edgeattn_version=__version__,
    )
    return dataclasses.replace(engine, sidecar=sidecar)


def rebuild_command(plan: BuildPlan, output: Path, choice: Sequence[str]) -> str:
    """The command line that does a build again; `choice` says how its backend is chosen."""
    config, source = plan.config, plan.source
    words = ["edgeattn", "build", str(source.path or "MODEL.onnx"), "-o", str(output), *choice]
    if config.precision in LOW_PRECISIONS:
        words.append(f"--{SHORT_NAMES[config.precision]}")
    for flag, bound in (("--min-shapes", "min"), ("--opt-shapes", "opt"), ("--max-shapes", "max")):
        words += [flag, ",".join(f"{name}:{format_shape(getattr(r, bound))}" for name, r in config.profile.items())]
    if config.targets:
        words += ["--target", ",".join(config.targets)]
    return shlex.join(words)


def _own_precision(graph: Graph) -> str:
    """The coarsest floating dtype that a graph's nodes compute in; weights may be stored in another."""
    computing = (node for node in graph.nodes() if node.op_type not in ("Cast", "Constant"))
    made = {dtype_name(value.dtype) for node in computing for value in node.outputs}
    return next((dtype for dtype in reversed(LOW_PRECISIONS) if dtype in made), "float32")


def _require_tensors(graph: Graph) -> None:
    """Refuse what no array can be fed to or come out of: sequences, strings, numbers below a byte."""
    reasons = []
    for kind, values in (("input", graph.model.graph.inputs), ("output", graph.model.graph.outputs)):
        for value in values:
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                reasons.append(f"{kind} {value.name!r} is no tensor but a {type(value.type).__name__}")
            elif value.dtype is not None and all(row.onnx != value.dtype.value for row in DTYPES):
                reasons.append(f"{kind} {value.name!r} has dtype {dtype_name(value.dtype)}")
    if reasons:
        raise UnsupportedError(f"an engine of {graph.path or 'the graph'} could not be fed or read", reasons)


def _verdict(report: ParityReport) -> str:
    return f"passed against the graph at {len(report.shapes)} shapes"


def _shares(counts: Mapping[str, int], show: Any) -> str:
    return ", ".join(f"{dtype} {show(count)}" for dtype, count in counts.items()) or "none"


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = time.perf_counter() - start
