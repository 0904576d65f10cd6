"""Graph -> Engine, whole: choose a backend, type the graph, build, load what was written, compare, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from edgeattn import __version__, files
from edgeattn.alone import Measured, fastest_forms
from edgeattn.backends import backend_named, choose_backend
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.build_report import LOW_PRECISIONS, SHORT_NAMES, BuildPlan, BuildReport, rebuild_command
from edgeattn.data import Dataset, Sample, batches, spread
from edgeattn.engine import Engine, Sidecar, sidecar_path, write_engine
from edgeattn.errors import GateError, UnsupportedError, UsageError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, dtype_name, load_graph
from edgeattn.inspect import AttentionInfo, attention_in
from edgeattn.lowering import BODY, PLUGIN, Plan
from edgeattn.lowering.tensorrt import choose
from edgeattn.parity import ParityReport, check_parity, reference_from_graph
from edgeattn.parity.closeness import closeness, require_judgeable, task_drops, too_far
from edgeattn.precision.mixed import floating, typed_for
from edgeattn.precision.ranges import Ranges
from edgeattn.profile.provenance import record
from edgeattn.tensors import DTYPES, resolve_profile

__all__ = ["LOW_PRECISIONS", "SHORT_NAMES", "BuildPlan", "BuildReport", "build_engine", "plan_build", "rebuild_command"]

CHECKED_SAMPLES = 64
JUDGED_SAMPLES = 1024  # where it is said what accuracy may drop by
_TENSORRT_SETTINGS = (
    "attention", "workspace", "timing_cache", "opt_level", "version_compatible", "hardware_compatibility", "tf32",
)  # fmt: skip
_PRIVATE = ("progress", "profile", "min_shapes", "opt_shapes", "max_shapes")


def plan_build(
    source: Graph | str | Path,
    config: BuildConfig | None = None,
    backend: str = "auto",
    *,
    ranges: Ranges | None = None,
    samples: Iterable[Sample] | None = None,
) -> BuildPlan:
    """Read, choose and type: everything up to the backend's own work on the whole, without writing anything.

    For TensorRT, attentions may be built and timed alone on the way; see `BuildConfig.attention`.

    `ranges` is what calibration observed of the graph, which INT8 needs; with `samples`, real ones, its weights are
    improved where that measurably helps.

    Raises:
        InputError: the file is refused.
        UsageError: shapes that the graph does not admit, a precision that no graph is lowered to, INT8 without ranges.
        UnsupportedError: no backend fits, or the chosen one lacks the targets or an operator; lists every reason.
    """
    config = config or BuildConfig()
    _require_settings(config, ranges)
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        graph = source if isinstance(source, Graph) else load_graph(source)
    with _timed(seconds, "choose"):
        name, why = choose_backend(backend)
        _require_tensors(graph)
        profile = config.profile or resolve_profile(
            graph.inputs, config.min_shapes, config.opt_shapes, config.max_shapes
        )
        config = dataclasses.replace(config, profile=profile)
    with _timed(seconds, "fuse"):
        fused, found = fuse(graph) if config.fuse else fuse(graph, ())
    with _timed(seconds, "measure"):
        config, measured, functions = _with_plugins(fused, name, config, ranges)
    with _timed(seconds, "type"):
        typed, typing, improved = typed_for(fused, name, config, ranges=ranges, samples=samples)
        notes = (*_unused(config, name), *found.notes, *functions, *typing)
        config = dataclasses.replace(config, precision=config.precision or _own_precision(graph), improve=improved)
        reasons = backend_named(name).unsupported(typed)
        if reasons:
            raise UnsupportedError(f"backend {name} cannot build {graph.path or 'the graph'}", reasons)
    attention = tuple(
        _with_form(item, name, config.forms, measured) for item in attention_in(fused, found.found, floating(config))
    )
    return BuildPlan(graph, typed, name, why, config, attention, found.missed, notes, seconds)


def build_engine(
    source: Graph | str | Path,
    output: str | Path,
    config: BuildConfig | None = None,
    backend: str = "auto",
    check: bool = True,
    *,
    ranges: Ranges | None = None,
    samples: Iterable[Sample] | None = None,
    max_drop: Mapping[str, float] | None = None,
    task: str | None = None,
) -> BuildReport:
    """Build an engine and publish it only once it says what the graph says.

    The plan is written beside `output`, read back, loaded, and compared with the graph at every corner of the profile
    on seeded random inputs; then it replaces what was at `output`. Where this machine cannot run it (TensorRT-RTX
    without a GPU) the report says so.

    `ranges` is what calibration observed of the graph. Of `samples`, real ones that can be gone through several times,
    16 improve INT8 weights and 64 are compared on, from all over a folder. An INT8 engine without any must only run and
    give finite numbers, since random input says nothing about its accuracy. With `max_drop` 1,024 samples also tell
    what is lost: by metric of the `task` (see `check_parity`) or `cosine`; of `sqnr` it is the least dB.

    Raises:
        GateError: it computes something else, or loses more than it may; the old engine stays.
        UsageError: it is to be judged, and there are no samples, or no labels; samples that can be seen only once.
        EdgeAttnError: see `plan_build`, and the backend's own BuildError.
    """
    output = Path(output)
    _require_samples(samples, max_drop or {}, judged_here(backend, check))
    plan = plan_build(source, config, backend, ranges=ranges, samples=samples)
    for path in (output, sidecar_path(output)):
        files.output_file(path, *plan.source.files)
    module = backend_named(plan.backend)
    seconds = dict(plan.seconds)
    found: list[ParityReport] = []
    unchecked = "; ".join(module.missing()) if check else "switched off"
    unchecked += "; what it loses is not known" if unchecked and max_drop else ""

    def finish(engine: Engine) -> Sidecar:
        if unchecked:
            return engine.sidecar
        plan.config.progress("checking", None)
        with _timed(seconds, "check"), module.load(engine) as session:
            report = _checked(session, plan, samples, max_drop or {}, task)
            audit = session.details.get("compute", dict)()
        found.append(report)
        return _verified(engine.sidecar, report, audit)

    with files.locked(output):
        with _timed(seconds, "compile"):
            engine = module.build(plan.typed, plan.config)
        with _timed(seconds, "write"):
            choice = ["--backend", plan.backend, *_judging(samples, max_drop or {}, task)]
            sidecar = write_engine(
                _described(engine, plan, rebuild_command(plan, output, choice), ranges), output, finish
            )
        seconds["write"] -= seconds.get("check", 0.0)
    return BuildReport(output, plan, sidecar, found[0] if found else None, unchecked, seconds)


def _require_samples(samples: Iterable[Sample] | None, max_drop: Mapping[str, float], judged: bool) -> None:
    if isinstance(samples, Iterator):
        raise UsageError("samples are gone through several times, an iterator only once: give a list, or `open_data`'s")
    if judged:
        require_judgeable(max_drop, samples)


def judged_here(backend: str, check: bool) -> bool:
    """Whether a build is compared with its graph: that was not switched off, and this machine can run it."""
    return check and not backend_named(choose_backend(backend)[0]).missing()


def _checked(
    session: Session, plan: BuildPlan, samples: Iterable[Sample] | None, max_drop: Mapping[str, float], task: str | None
) -> ParityReport:
    """Compare an engine with its graph.

    Raises:
        GateError: it computes something else, or loses more than it may.
    """
    count = JUDGED_SAMPLES if max_drop else CHECKED_SAMPLES
    report = check_parity(
        session,
        reference_from_graph(plan.source),
        None if samples is None else batches(spread(samples, count), 1),
        plan.config.precision,
        seed=0,
        latency=False,
        task=task,
        max_drop=task_drops(max_drop),
    )
    lost = [reason for metric in report.metrics for reason in metric.failures]
    if wrong := [reason for reason in report.reasons if reason not in lost]:
        raise GateError(f"the engine does not say what the graph says: {'; '.join(wrong)}; see --no-check")
    if lost := [*lost, *too_far(closeness(report.outputs), max_drop)]:
        raise GateError(f"the engine loses more than it may: {'; '.join(lost)}; see --keep and --best")
    return report


def _require_settings(config: BuildConfig, ranges: Ranges | None) -> None:
    """Refuse precisions that cannot be meant, together or at all, and numbers that are none."""
    known = ", ".join(SHORT_NAMES.values())
    if config.precision and config.precision not in SHORT_NAMES:
        raise UsageError(f"cannot build in {config.precision!r}; known: {known}")
    if config.precision == "int8" and ranges is None:
        raise UsageError("INT8 needs to know the values it rounds: give --data DIR with real samples, or --ranges FILE")
    if config.threads is not None and config.threads < 1:
        raise UsageError(f"an engine cannot run on {config.threads} threads; expected 1 or more")
    if config.rest not in SHORT_NAMES or config.rest == "int8":
        raise UsageError(f"what is not INT8 cannot be {config.rest!r}; expected fp32, fp16 or bf16")
    possible = {"float32", floating(config) or "float32", config.precision or "float32"}
    for name, precision in config.layer_precisions.items():
        if precision not in possible:
            raise UsageError(
                f"{name!r} cannot be {precision!r} in this build; expected {' or '.join(sorted(possible))}"
            )


def _with_plugins(
    fused: Graph, backend: str, config: BuildConfig, ranges: Ranges | None
) -> tuple[BuildConfig, dict[str, Measured], tuple[str, ...]]:
    """Choose the attentions that TensorRT runs as plugins: those that are faster so, where it is left to `auto`.

    Returns:
        The settings with the forms that were chosen, what was measured, and notes: that, and why others stay functions.
    """
    if backend != "tensorrt":
        return config, {}, ()
    chosen, notes = choose(fused, config.attention, floating(config))
    measured: dict[str, Measured] = {}
    if config.attention == "auto":
        able, _ = choose(fused, "plugin", floating(config))
        ways = {name: (PLUGIN, BODY) if name in chosen else (BODY, PLUGIN) for name in able if name not in config.forms}
        measured, timings = fastest_forms(fused, backend, config, ways, ranges)
        chosen |= {name: item.form for name, item in measured.items()}
        notes = (*notes, *timings)
    return dataclasses.replace(config, forms={**chosen, **config.forms}), measured, notes


def _with_form(
    item: AttentionInfo, backend: str, forms: Mapping[str, str], measured: Mapping[str, Measured]
) -> AttentionInfo:
    """What is said of an attention once its form was chosen."""
    name, planned = item.found.name, item.plans[backend]
    if name not in forms:
        return item
    natively = backend == "tensorrt" and forms[name] == BODY  # what that comes to, its plan says
    runs = planned.runs if natively else forms[name]
    chosen = Plan(runs, str(measured.get(name, "as chosen")))
    return dataclasses.replace(item, plans={**item.plans, backend: chosen})


def _unused(config: BuildConfig, backend: str) -> tuple[str, ...]:
    """What was asked for that the backend does not have, in words."""
    if backend.startswith("tensorrt"):
        return ("threads are a setting of the CPU backends: not used",) if config.threads else ()
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
    said = report.to_json()
    verified = {"against": "graph", "outputs": said["outputs"], "metrics": said["metrics"]}
    return dataclasses.replace(sidecar, precision=precision, verified=verified)


def _judging(samples: Iterable[Sample] | None, max_drop: Mapping[str, float], task: str | None) -> list[str]:
    """What real samples said to a build, as options of another one."""
    if not isinstance(samples, Dataset):
        return []
    drops = ",".join(f"{metric}={drop:g}" for metric, drop in max_drop.items())
    return [
        *["--data", str(samples.folder)],
        *(["--recipe", "RECIPE.toml"] if samples.recipe else []),
        *(["--max-drop", drops] if drops else []),
        *(["--task", task] if task else []),
    ]


def _described(engine: Engine, plan: BuildPlan, rebuild: str, ranges: Ranges | None) -> Engine:
    """Add to a backend's sidecar what only the whole build knows."""
    source = plan.source
    settings = {
        item.name: getattr(plan.config, item.name)
        for item in dataclasses.fields(plan.config)
        if item.name not in _PRIVATE
    }
    precision = engine.sidecar.precision
    observed = [item for item in dataclasses.fields(ranges) if item.name != "tensors"] if ranges is not None else []
    sidecar = dataclasses.replace(
        engine.sidecar,
        precision=dataclasses.replace(precision, notes=(*plan.notes, *precision.notes)),
        calibration={item.name: getattr(ranges, item.name) for item in observed},
        graph={
            "path": str(source.path or ""),
            "name": source.model.graph.name or "",
            "sha256": source.sha256,
            **{key: text for key, text in source.model.metadata_props.items() if key.startswith("edgeattn.")},
        },
        config={**settings, **engine.sidecar.config},
        rebuild=rebuild,
        provenance=record(source, plan.typed, plan.attention, plan.backend),
        edgeattn_version=__version__,
    )
    return dataclasses.replace(engine, sidecar=sidecar)


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


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = time.perf_counter() - start
