"""Ways to build an engine otherwise, cheapest first, each tried on the whole engine: does it cure, at what cost?"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.backends.base import BuildConfig, Session
from edgeattn.bisect.report import Rung
from edgeattn.build_report import BuildPlan, rebuild_command
from edgeattn.calibrate import CalibrationSettings, calibrate, load_calibration
from edgeattn.data import Dataset
from edgeattn.errors import EdgeAttnError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.lowering import forms
from edgeattn.lowering.tensorrt import PLUGIN
from edgeattn.maps.rebuilt import Rebuilt, typed_again
from edgeattn.normalise import infer_types, upgraded
from edgeattn.ops.base import DOMAIN
from edgeattn.precision.ranges import Ranges
from edgeattn.profile import measure

if TYPE_CHECKING:
    from edgeattn.tensors import Feeds

NEWER_OPSET = 21
TIMED_S = 0.3
FOLD = "--fold-preprocess"
HIGHER = {
    "float32": (),
    "bfloat16": ("float32",),
    "float16": ("bfloat16", "float32"),
    "int8": ("bfloat16", "float32"),
}
MOST_METHODS = 2
MOST_CURES = 3  # that are compared
METHODS = ("mse", "percentile", "entropy", "minmax")


@dataclass(frozen=True)
class Remedy:
    """One way to build.

    `graph` makes the graph to build from, where it is not the engine's own, and `model` says what file that is;
    `ranges` makes what calibration observed, where that is new. `flags` are what `edgeattn build` needs beside
    the `config`. `by` says what does it where no command line can.
    """

    words: str
    config: BuildConfig
    flags: tuple[str, ...] = ()
    graph: Callable[[], Graph] | None = None
    model: str = ""
    ranges: Callable[[], Ranges] | None = None
    by: str = ""


@dataclass(frozen=True)
class Known:
    """What remedies are made of.

    `parts` are the engine's, with the original's own graph where the engine's is another; then `model` is its file.
    `least` are the nodes that fail, by their names in the fused graph, and `most` those of all sections that fail.
    `data` are samples to calibrate on, of `folder` by `recipe`; `table` has the ranges of the engine. `fixed` is the
    file that a graph goes to which is no file yet.
    """

    parts: Rebuilt
    least: tuple[str, ...] = ()
    most: tuple[str, ...] = ()
    data: Dataset | None = None
    folder: Path | None = None
    recipe: Path | None = None
    table: Path | None = None
    model: str = ""
    fixed: str = ""

    @property
    def data_flags(self) -> tuple[str, ...]:
        """How `edgeattn build` gets the samples."""
        recipe = ("--recipe", str(self.recipe)) if self.recipe else ()
        return ("--data", str(self.folder), *recipe) if self.folder else ()

    @property
    def range_flags(self) -> tuple[str, ...]:
        """How `edgeattn build` gets the ranges of the engine, where they are known."""
        if self.parts.ranges is None:
            return ()
        return ("--ranges", str(self.table)) if self.table else self.data_flags


def remedies(known: Known) -> Iterator[Remedy]:
    """What may cure an engine, that which should cost least first."""
    parts, config = known.parts, known.parts.config
    yield Remedy("the original's own graph" if known.model else "built again as it was", config)
    yield from _other_forms(parts, known.least)
    yield from _calibrations(known)
    yield from _kept_high(known)
    yield from _other_graphs(known)
    for higher in HIGHER.get(parts.sidecar.precision.asked, ()):
        plain = dataclasses.replace(config, precision=higher, rest="float32", layer_precisions={})
        yield Remedy(f"{higher} for all", plain)


def _calibrations(known: Known) -> Iterator[Remedy]:
    """Ranges that were not there, or by other methods; the engine's own anew, where they came from a file."""
    parts, data = known.parts, known.data
    if data is None or parts.sidecar.precision.asked == "float32":
        return
    settings = load_calibration(known.recipe) if known.recipe else CalibrationSettings()
    used = parts.sidecar.calibration.get("method")
    methods = [method for method in METHODS if method != used][:MOST_METHODS] if used else [settings.method]
    if used and (parts.ranges is None or known.table):
        methods.append(used)
    for method in methods:
        observe = partial(calibrate, parts.graph, data, dataclasses.replace(settings, method=method))
        flags = ("--calibration-method", method) if method != settings.method else ()
        yield Remedy(f"calibration by {method}", parts.config, (*known.data_flags, *flags), ranges=observe)


def _kept_high(known: Known) -> Iterator[Remedy]:
    """An island of float32 around what fails: as few nodes as possible, then all of the failing sections."""
    parts, config = known.parts, known.parts.config
    if parts.sidecar.precision.asked == "float32":
        return
    high = config.rest if config.precision == "int8" else "float32"
    islands = {"the failing nodes": known.least, "the failing sections": known.most}
    for words, names in islands.items():
        if names and (words == "the failing nodes" or set(names) != set(known.least)):
            kept = {**config.layer_precisions, **dict.fromkeys(names, high)}
            yield Remedy(f"{high} for {words}", dataclasses.replace(config, layer_precisions=kept))


def _other_graphs(known: Known) -> Iterator[Remedy]:
    """The same computation, written so that a backend takes it otherwise."""
    graph, config = known.parts.graph, known.parts.config
    if (barred := barriers(graph, known.least)) is not None:
        yield Remedy("no fusion across the failing nodes", config, graph=lambda: barred, model=known.fixed)
    if graph.opset < NEWER_OPSET:
        newer = partial(_upgraded, graph)
        yield Remedy(f"operator set {NEWER_OPSET}", config, graph=newer, model=known.fixed)


def _other_forms(parts: Rebuilt, names: Sequence[str]) -> Iterator[Remedy]:
    """The failing attentions in each other form that the backend has."""
    backend, config = parts.sidecar.backend, parts.config
    nodes = {node.name or "": node for node in fuse(parts.graph)[0].model.graph if node.domain == DOMAIN}
    others: dict[str, list[str]] = {}
    for name in names:
        for form in forms(nodes[name], backend) if name in nodes else ():
            if form != config.forms.get(name, forms(nodes[name], backend)[0]):
                others.setdefault(form, []).append(name)
    for form, chosen in others.items():
        flags = ("--attention", "plugin" if form == PLUGIN else "native") if backend == "tensorrt" else ()
        told = {**config.forms, **dict.fromkeys(chosen, form)}
        by = "" if flags else f"BuildConfig(forms={told!r}), or edgeattn build --best"
        yield Remedy(f"{form} for {', '.join(chosen)}", dataclasses.replace(config, forms=told), flags, by=by)


def barriers(graph: Graph, names: Sequence[str]) -> Graph | None:
    """A graph in which nothing can be fused across the borders of some nodes; None where it has none of them.

    What they read and give goes through Max(x, -inf), which changes no number and which no backend takes for nothing.
    An attention stands for the nodes that it was made of.
    """
    parts = {name for item in fuse(graph)[1].found if item.name in names for name in item.nodes}
    edited = graph.copy()
    main = edited.model.graph
    infer_types(edited.model)
    chosen = [node for node in main if node.name in parts or node.name in names]
    inside = {value for node in chosen for value in node.outputs}
    outer = [value for node in chosen for value in node.inputs if value is not None and value not in inside]
    values = [value for value in dict.fromkeys((*outer, *inside)) if _computed(value)]
    if not values:
        return None
    lowest = ir.Value(name="edgeattn/lowest", const_value=ir.tensor(np.array(-np.inf, np.float32)))
    lowest.type, lowest.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    main.register_initializer(lowest)
    for number, value in enumerate(values):
        producer = value.producer()
        assert producer is not None
        barrier = ir.node("Max", [value, lowest], name=f"edgeattn/barrier_{number}")
        barrier.outputs[0].name = f"{value.name}/barred"
        barrier.outputs[0].type, barrier.outputs[0].shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, barrier.outputs[0])
        barrier.replace_input_with(0, value)
        main.insert_after(producer, barrier)
    return edited


def _computed(value: ir.Value) -> bool:
    inner = value.producer() is not None and not value.is_graph_output()
    return inner and bool(value.uses()) and value.dtype == ir.DataType.FLOAT


def _upgraded(graph: Graph) -> Graph:
    return Graph(upgraded(graph.model.clone(), NEWER_OPSET), graph.path)


def climb(
    known: Known,
    engine: str,
    judge: Callable[[Session, str], tuple[float, tuple[str, ...]]],
    beside: tuple[Session, Feeds],
    builds: int,
) -> Iterator[tuple[Rung, Graph | None]]:
    """Build the whole engine by each remedy, judge it, and time it in turns with the engine as it is.

    `judge` gives, in a precision, the relative L2 error of the worst output, and what is wrong. With each rung comes
    the graph to build from, where its command needs a file of it.
    """
    parts, (session, feeds) = known.parts, beside
    cures = 0
    for place, remedy in enumerate(islice(remedies(known), builds)):
        if cures == (1 if place == 1 else MOST_CURES):  # what needs no other settings is cure enough
            return
        rung, graph = Rung(remedy.words, command(known, remedy, engine), False), parts.graph
        try:
            graph = remedy.graph() if remedy.graph else graph
            ranges = remedy.ranges() if remedy.ranges else parts.ranges
            samples = parts.samples if ranges is parts.ranges else None
            typed = typed_again(parts.sidecar, graph, remedy.config, ranges, samples)
            with parts.session(typed, remedy.config) as other:
                error, failures = judge(other, remedy.config.precision)
                same = dict(zip((spec.name for spec in other.inputs), feeds.values(), strict=True))
                runs: dict[str, Callable[[], object]] = {
                    "as it is": partial(session.run, feeds),
                    "otherwise": partial(other.run, same),
                }
                times = measure(runs, warmup_s=TIMED_S / 2, duration_s=TIMED_S)
        except EdgeAttnError as err:
            yield dataclasses.replace(rung, why=str(err)), None
            continue
        rung = dataclasses.replace(
            rung,
            cures=not failures,
            relative_l2=error,
            time_ratio=times["otherwise"].p50_ms / times["as it is"].p50_ms,
            why="; ".join(failures[:1]),
        )
        cures += rung.cures
        yield rung, graph if known.fixed in (remedy.model, known.model) else None


def command(known: Known, remedy: Remedy, engine: str) -> str:
    """The command line that builds by a remedy."""
    if remedy.by:
        return remedy.by
    parts, backend = known.parts, known.parts.sidecar.backend
    plan = BuildPlan(parts.graph, parts.typed, backend, "", remedy.config)
    words = shlex.split(rebuild_command(plan, Path(engine), ["--backend", backend]))
    flags = remedy.flags or (known.range_flags if HIGHER.get(remedy.config.precision) else ())
    model = remedy.model or known.model
    for flag in ("--ranges", "--recipe"):
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    if FOLD in words and model == known.fixed:  # its preprocessing is in it
        words.remove(FOLD)
    elif FOLD in words and "--recipe" not in flags:
        flags = (*flags, "--recipe", str(known.recipe or "RECIPE.toml"))
    words[2] = model or words[2]
    return shlex.join([*words, *flags])
