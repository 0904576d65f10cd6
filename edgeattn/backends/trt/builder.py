"""Builds a typed graph with TensorRT or TensorRT-RTX: settings, targets, progress, and the audit of the result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.backends.base import BuildConfig
from edgeattn.backends.trt import library as lib
from edgeattn.backends.trt import network as net
from edgeattn.backends.trt import registry, timing
from edgeattn.backends.trt.device import gpus
from edgeattn.backends.trt.progress import Progress
from edgeattn.engine import Engine, Precision, Sidecar, this_platform
from edgeattn.errors import BuildError, EdgeAttnError, UnsupportedError, UsageError
from edgeattn.graph import Graph

AMPERE_PLUS = "sm_80+"  # every compute capability from 8.0 on


@dataclass(frozen=True)
class Targets:
    """What a plan will run on: compute capabilities, and whether they have to be set or are TensorRT's own choice."""

    names: tuple[str, ...]
    explicit: bool = False
    note: str = ""


def unsupported(flavour: lib.Flavour, graph: Graph) -> list[str]:
    """Everything in a graph that TensorRT lacks, node by node."""
    library = lib.library(flavour)
    try:
        provided, _ = registry.provide(library, graph)
    except UnsupportedError as err:
        return list(err.reasons or [str(err)])
    return list(net.parse(library, provided).problems)


def build(flavour: lib.Flavour, graph: Graph, config: BuildConfig) -> Engine:
    """Build a typed graph into a plan and the record of what is in it.

    The builder works in a thread of its own: Ctrl-C reaches this one, which cancels it and waits for it to stop.

    What `config.progress` raises comes out of here, after the build has stopped.

    Raises:
        UnsupportedError: this machine or version cannot, or the graph holds what TensorRT does not support.
        UsageError: a setting cannot be meant.
        BuildError: the graph contradicts itself, or TensorRT failed.
    """
    reasons = lib.missing(flavour, running=False)
    if reasons:
        raise UnsupportedError(f"{flavour.title} cannot build here", reasons)
    library = lib.library(flavour)
    _check_settings(library, config)
    targets = choose_targets(library, config)
    progress = Progress(config.progress)
    config.progress("parsing", None)
    provided, plugins = registry.provide(library, graph)
    with lib.messages() as heard, lib.quiet_polygraphy():
        parsed = net.parse(library, provided)
        if parsed.problems:
            raise UnsupportedError(f"{library} cannot build the graph", parsed.problems)
        if parsed.faults:
            raise BuildError(f"{library} finds the graph wrong: {'; '.join(parsed.faults)}")
        try:
            plan, notes = _compile(library, parsed, config, targets, progress)
        except EdgeAttnError:
            raise
        except Exception as err:
            if progress.failure is None:
                raise BuildError(f"{library} cannot build the graph: {lib.errors_in(heard, err)}") from err
    if progress.failure is not None:
        raise progress.failure
    compute = net.count_compute(parsed.network)
    notes += _precision_notes(graph, config, compute)
    notes += [targets.note] if targets.note else []
    notes += [f"{flavour.title}: {text}" for text in lib.warnings_in(heard)]
    sidecar = Sidecar(
        backend=flavour.name,
        backend_version=library.version,
        inputs=graph.inputs,
        outputs=graph.outputs,
        profile=dict(config.profile),
        precision=Precision(config.precision, graph.weight_bytes(), compute, tuple(notes)),
        targets=targets.names,
        platform=this_platform(),
        plugins=plugins,
    )
    return Engine(plan, sidecar)


def choose_targets(library: lib.Library, config: BuildConfig) -> Targets:
    """Decide what the plan will run on.

    TensorRT times kernels on the GPU it builds for, so that has to be this machine's. TensorRT-RTX builds for any
    list of GPUs; given none, for this machine's, and where there is none, for all from compute capability 8.0 on.

    Raises:
        UnsupportedError: a target that this flavour, version or machine cannot build for.
    """
    asked = tuple(dict.fromkeys(config.targets))
    here = [gpu.compute_capability for gpu in gpus()][:1]
    if not library.can.targets:
        if asked and list(asked) != here:
            raise UnsupportedError(
                f"{library} builds only for the GPU it runs on ({here[0]}), not for {', '.join(asked)}: "
                f"run the same build on that device"
            )
        return Targets((AMPERE_PLUS,) if config.hardware_compatibility == "ampere_plus" else (here[0],))
    known = [f"sm_{name[2:]}" for name in library.trt.ComputeCapability.__members__ if name.startswith("SM")]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise UnsupportedError(
            f"{library} has no target {', '.join(unknown)}; it has {', '.join(known)}"
            "; a Jetson's engine is built on the Jetson, with --backend tensorrt"
        )
    if asked or (here and here[0] in known):
        return Targets(asked or tuple(here), explicit=True)
    gpu = f"{library} has no target for this machine's {here[0]}" if here else "there is no GPU"
    note = f"no target was given and {gpu}: built for every GPU from compute capability 8.0 on"
    return Targets((AMPERE_PLUS,), note=note)


def _check_settings(library: lib.Library, config: BuildConfig) -> None:
    can = library.can
    level = config.hardware_compatibility
    if level != "none" and level not in can.hardware_compatibility:
        has = ", ".join(("none", *can.hardware_compatibility))
        hint = "; choose GPUs with --target" if can.targets else ""
        raise UnsupportedError(f"{library} has no hardware compatibility level {level!r}; it has {has}{hint}")
    if config.version_compatible and not can.version_compatible:
        raise UnsupportedError(
            f"{library} has no version-compatible engines: build one for each version it will run on"
        )
    if config.opt_level is not None and not 0 <= config.opt_level <= 5:
        raise UsageError(f"optimisation level {config.opt_level}; expected 0 to 5")


def _compile(
    library: lib.Library, parsed: net.Parsed, config: BuildConfig, targets: Targets, progress: Progress
) -> tuple[bytes, list[str]]:
    """Run the builder; the plan, and what is to be said of the timing cache."""
    from polygraphy.backend.trt import engine_bytes_from_network

    trt = library.trt
    if library.can.attention:
        net.make_attention_decomposable(trt, parsed.network)
    trt_config = _trt_config(trt, parsed, config, progress)
    if targets.explicit:
        trt_config.num_compute_capabilities = len(targets.names)
        for index, name in enumerate(targets.names):
            trt_config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{name[3:]}"), index)
    key, notes = _start_cache(library, trt_config, config)
    plan = _in_thread(
        lambda: bytes(engine_bytes_from_network((parsed.builder, parsed.network), trt_config)), progress.cancel
    )
    if key and progress.failure is None:
        timing.write_cache(Path(str(config.timing_cache)), key, bytes(trt_config.get_timing_cache().serialize()))
    return plan, notes


def _in_thread(work: Callable[[], bytes], cancel: Callable[[], None]) -> bytes:
    """Run `work` in a thread, since Ctrl-C reaches only a main thread that is in Python: then cancel it and wait."""
    outcome: Future[bytes] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as err:
            outcome.set_exception(err)

    thread = threading.Thread(target=run)
    try:
        thread.start()
        return outcome.result()
    except BaseException:
        cancel()
        if thread.is_alive():
            thread.join()
        raise


def _trt_config(trt: Any, parsed: net.Parsed, config: BuildConfig, progress: Progress) -> Any:
    from polygraphy.backend.trt import create_config

    level = config.hardware_compatibility.upper()
    trt_config = create_config(
        parsed.builder,
        parsed.network,
        profiles=[],
        tf32=config.tf32,
        memory_pool_limits=None if config.workspace is None else {trt.MemoryPoolType.WORKSPACE: config.workspace},
        builder_optimization_level=config.opt_level,
        hardware_compatibility_level=None if level == "NONE" else getattr(trt.HardwareCompatibilityLevel, level),
        version_compatible=config.version_compatible,
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        progress_monitor=progress.monitor(trt),
    )
    # polygraphy's profiles match input names as wildcards, so that `x[0]` is not found.
    profile = parsed.builder.create_optimization_profile()
    for name, spread in config.profile.items():
        profile.set_shape(name, spread.min, spread.opt, spread.max)
    if not profile or trt_config.add_optimization_profile(profile) < 0:
        ranges = ", ".join(f"{name}: {spread}" for name, spread in config.profile.items())
        raise BuildError(f"TensorRT refuses the shapes {ranges}")
    return trt_config


def _start_cache(library: lib.Library, trt_config: Any, config: BuildConfig) -> tuple[str, list[str]]:
    """Give the builder its timing cache; the key to save it under, empty for none."""
    if config.timing_cache is None:
        return "", []
    if not library.can.timing_cache:
        return "", [f"{library} has no timing cache, since it times kernels on the device: not used"]
    gpu = gpus()[0]
    key = f"{gpu.compute_capability} {gpu.name}, {library}, CUDA {gpu.cuda}"
    path = Path(config.timing_cache)
    data, notes = timing.read_cache(path, key)
    if data:
        cache = trt_config.create_timing_cache(data)
        if not cache or not trt_config.set_timing_cache(cache, ignore_mismatch=False):
            trt_config.set_timing_cache(trt_config.create_timing_cache(b""), ignore_mismatch=False)
            notes.append(timing.set_aside(path, "is not one that TensorRT accepts here"))
    return key, notes


def _precision_notes(graph: Graph, config: BuildConfig, compute: dict[str, int]) -> list[str]:
    notes = []
    if config.precision and compute and config.precision not in compute:
        notes.append(f"asked for {config.precision}, but every layer computes in {' or '.join(compute)}")
    if "float64" in graph.weight_bytes():
        notes.append("TensorRT computes in float32 what the graph holds in float64")
    return notes
