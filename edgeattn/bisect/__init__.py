"""Where an engine departs from its original, and what cures it: sections fed reference activations, then a ladder.

What the engine computes is cut where attention blocks begin and end, and each section is built alone as the engine was
and fed what the original computes there. So errors do not add up, and what fails is what breaks.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.backends import open_session
from edgeattn.backends.base import Progress, Session, silent
from edgeattn.batches import at_opt, batch_size, take_rows
from edgeattn.bisect.bench import LOW, Bench, Case, error_of, renamed, tolerance_at
from edgeattn.bisect.cuts import label
from edgeattn.bisect.remedies import Known, climb
from edgeattn.bisect.report import BisectReport, Culprit, Rung, SectionParity
from edgeattn.bisect.search import MOST_CULPRITS, culprit_in, failing_across, judged_sections
from edgeattn.calibrate import observed_graph
from edgeattn.data import Sample, batches
from edgeattn.engine import Sidecar, read_sidecar
from edgeattn.errors import InferenceError, InputError, UsageError
from edgeattn.export import export_model
from edgeattn.folding import fold_preprocess, folded_recipe
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.maps.rebuilt import Rebuilt, rebuilt
from edgeattn.model import Model, load_model
from edgeattn.parity import Reference, load_reference, reference_from_graph
from edgeattn.parity.deviation import Deviation
from edgeattn.parity.files import samples_for, spread
from edgeattn.parity.reference import on_pixels
from edgeattn.profile import environment
from edgeattn.tensors import TensorSpec, corners, format_shape, numpy_dtype, random_feeds
from edgeattn.tolerance import FINITE, tolerance_for

if TYPE_CHECKING:
    from edgeattn.tensors import Array

__all__ = ["BisectReport", "Culprit", "Rung", "SectionParity", "bisect_engine"]

LADDER = 8  # builds that are left for remedies
MOST_CASES = 4  # that fail, and are looked into
KEPT = 16  # that remedies are judged on as well


def bisect_engine(
    engine: str | Path,
    against: str,
    *,
    weights: Path | None = None,
    data: Path | None = None,
    recipe: Path | None = None,
    ranges: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    max_builds: int = 64,
    output: Path | None = None,
    trust: bool = False,
    progress: Progress = silent,
) -> BisectReport:
    """Find the first section of an engine that fails, the fewest nodes of it that do, and the cheapest remedy.

    Args:
        engine: an engine that runs here.
        against: its original: `model.onnx`, `FILE.py:FACTORY` or `zoo:NAME`.
        weights: of a PyTorch model, as in `load_model`.
        data: samples; without them, random input.
        recipe: how images become inputs.
        ranges: the table of ranges that an INT8 engine was built with, if it was.
        limit: samples to look at, from all over the folder; without it all, until a few fail.
        seed: of random input.
        max_builds: sections and engines to build at most.
        output: where the graph goes that the chosen remedy is built from, if it is another than the engine's.
        trust: as in `open_session`.
        progress: called with a phase and its fraction.

    Raises:
        InputError: the engine's graph, its ranges or the samples are refused, or the two have nothing to compare.
        UnsupportedError: the engine cannot run here.
    """
    sidecar = read_sidecar(engine, trust)
    with open_session(engine, trust) as session:
        dataset = samples_for(sidecar, data, recipe) if data else None
        progress("reading", None)
        parts = rebuilt(engine, sidecar, ranges=ranges, data=dataset)
        whole = _Whole(session, sidecar, load_reference(against, weights))
        about = BisectReport(str(engine), against, sidecar.backend, whole.precision, environment=environment())
        progress("comparing the whole", None)
        failing, reasons = whole.failing(spread(dataset, limit) if dataset else (), seed)
        if not failing:
            return dataclasses.replace(about, notes=parts.notes)
        departs = _departs(parts, whole, failing)
        original = _original_graph(parts, against, weights) if departs else None
        known = Known(parts, data=dataset, folder=data, recipe=recipe, table=ranges, fixed=str(output or "FIXED.onnx"))
        if original is not None:
            model = against if against.lower().endswith(".onnx") else known.fixed
            known = dataclasses.replace(known, parts=dataclasses.replace(parts, graph=original), model=model)
        bench = Bench(parts, observed_graph(original or parts.graph), failing, max_builds)
        report, graph = _climbed(bench, known, whole, about, progress)
    if output is not None and graph is not None:
        save_graph(graph, output)
    unwritten = "" if output or graph is None else f"bisect -o {known.fixed} writes the graph that the remedy builds"
    notes = (*parts.notes, *filter(None, (departs, unwritten)))
    return dataclasses.replace(report, where=tuple(case.where for case in failing), reasons=reasons, notes=notes)


def _climbed(
    bench: Bench, known: Known, whole: _Whole, about: BisectReport, progress: Progress
) -> tuple[BisectReport, Graph | None]:
    """The sections, what breaks in those that fail, and the ladder; and the graph of the remedy, if it needs a file."""
    builds, reserve = bench.left, min(LADDER, bench.left // 4)
    progress("building sections", None)
    sections = judged_sections(bench)
    if (across := failing_across(bench, sections)) is not None:
        sections[across] = bench.judge(across)
    broken = [section for section, found in sections.items() if found.failures]
    progress("halving what fails", None)
    culprits = tuple(culprit_in(bench, section, reserve) for section in broken[:MOST_CULPRITS])
    progress("trying remedies", None)
    most = [{node.name for node in bench.layout.steps[section.first : section.last]} for section in broken]
    known = dataclasses.replace(
        known, least=_kept_names(bench, [set(item.nodes) for item in culprits]), most=_kept_names(bench, most)
    )
    beside = (whole.session, bench.cases[0].feeds)
    rungs = list(climb(known, about.engine, whole.judge, beside, max(bench.left, reserve)))
    report = dataclasses.replace(
        about,
        sections=tuple(sections.values()),
        culprits=culprits,
        ladder=tuple(rung for rung, _ in rungs),
        builds=builds - bench.left + len(rungs),
    )
    return report, next((graph for rung, graph in rungs if rung is report.remedy), None)


class _Whole:
    """The whole engine, or another of its graph, against its original: on `cases`, those that fail and a few more."""

    def __init__(self, session: Session, sidecar: Sidecar, reference: Reference) -> None:
        folded = folded_recipe(sidecar.graph)
        self.session, self.precision = session, sidecar.precision.asked
        self.reference = on_pixels(reference, folded) if folded else reference
        self.cases: list[Case] = []
        self.truth: list[list[Array]] = []
        self._own: dict[tuple[int, str], list[Array] | None] = {}

    def fed(self, case: Case) -> dict[str, Array]:
        """A case under the original's names of its inputs, and in its dtypes."""
        specs = self.reference.inputs
        if not specs:  # a PyTorch model in float32
            floats = {name for name, array in case.feeds.items() if array.dtype.kind in "fV"}
            return {n: array.astype(np.float32) if n in floats else array for n, array in case.feeds.items()}
        names = [spec.name for spec in specs]
        ours = names if set(names) == set(case.feeds) else list(case.feeds)
        if len(ours) != len(names):
            raise UsageError(f"the engine takes {len(ours)} inputs, {self.reference.source} {len(names)}")
        return {
            spec.name: case.feeds[old].astype(numpy_dtype(spec.dtype)) for spec, old in zip(specs, ours, strict=True)
        }

    def failing(self, samples: Iterable[Sample], seed: int) -> tuple[list[Case], tuple[str, ...]]:
        """The cases at which the engine fails, few of many, and why: samples until enough do, then corners."""
        why: dict[Case, str] = {}
        for case in takewhile(lambda case: len(why) < MOST_CASES, _filled(self.session, samples)):
            if found := self._looked_at(case):
                why[case] = found[0]
            elif len(self.cases) > KEPT:
                self.cases.pop()
                self.truth.pop()
                self._own.pop((len(self.cases), self.precision), None)
        for case in _corners(self.session, self.cases[0] if self.cases else None, seed):
            if found := self._looked_at(case):
                why[case] = found[0]
        few = list(why)[:MOST_CASES]
        return few, tuple(dict.fromkeys(f"at {case.where}: {why[case]}" for case in few))

    def _looked_at(self, case: Case) -> tuple[str, ...]:
        """Add a case, and say what is wrong there."""
        self.truth.append(self.reference.oracle(self.fed(case)))
        self.cases.append(case)
        return self._judged(self.session, len(self.cases) - 1, self.precision)[1]

    def judge(self, session: Session, precision: str) -> tuple[float, tuple[str, ...]]:
        """The relative L2 error of the worst output over all cases, and what is wrong at any of them."""
        found = [self._judged(session, place, precision) for place in range(len(self.cases))]
        return max(error for error, _ in found), tuple(chain.from_iterable(why for _, why in found))

    def _judged(self, session: Session, place: int, precision: str) -> tuple[float, tuple[str, ...]]:
        case, names = self.cases[place], [spec.name for spec in session.inputs]
        try:
            got = [*session.run(dict(zip(names, case.feeds.values(), strict=True))).values()]
        except (InferenceError, InputError) as err:
            return math.inf, (str(err),)
        own, outputs = self._rounded(place, precision), []
        for index, spec in enumerate(session.outputs):
            deviation = Deviation(spec.name)
            deviation.add(case.names, got[index], self.truth[place][index], own[index] if own else None)
            row = tolerance_at(precision, [case])
            swaps = row.noise and deviation.shape[2:] == (6,)  # detections change places where scores nearly tie
            outputs.append(deviation.judged(FINITE if swaps else row))
        return max(map(error_of, outputs)), tuple(chain.from_iterable(output.failures for output in outputs))

    def _rounded(self, place: int, precision: str) -> list[Array] | None:
        """What the original says itself in a precision; None for INT8."""
        if tolerance_for(precision).noise:
            return None
        if (place, precision) not in self._own:
            self._own[place, precision] = self.reference.low(self.fed(self.cases[place]), precision)
        return self._own[place, precision]


def _filled(session: Session, samples: Iterable[Sample]) -> Iterator[Case]:
    """Samples at the optimal shapes, repeated where the last are too few."""
    size = batch_size(at_opt(session.profile), session.profile)
    for names, feeds, _ in batches(samples, size):
        rows = [row % len(names) for row in range(size)]
        filled = take_rows(session.profile, feeds, rows)
        yield Case(tuple(names[row] for row in rows), filled, ", ".join(names), True)


def _corners(session: Session, sample: Case | None, seed: int) -> Iterator[Case]:
    """Every corner: a sample repeated where it fits, else random input."""
    for shapes in corners(session.profile):
        if sample and shapes == at_opt(session.profile):
            continue
        where = ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
        size = batch_size(shapes, session.profile)
        names = tuple(f"row {row}" for row in range(size))
        if sample:
            filled = take_rows(session.profile, sample.feeds, [row % len(sample.names) for row in range(size)])
            if all(filled[name].shape == shape for name, shape in shapes.items()):
                yield Case(names, filled, f"{where} (samples)", True)
                continue
        yield Case(names, random_feeds(session.inputs, shapes, seed), f"{where} (random, seed {seed})", False)


def _departs(parts: Rebuilt, whole: _Whole, failing: Sequence[Case]) -> str:
    """Why the graph that an engine was built from is not the original, in words; empty where it is."""
    graph, row = reference_from_graph(parts.graph), tolerance_for("float32")
    if graph.source == whole.reference.source:
        return ""
    if any(value.dtype in LOW for node in parts.graph.nodes() for value in node.outputs):
        return f"the graph that the engine was built from is in a low precision itself, {whole.reference.source} is not"
    for case in failing:
        truth, got = whole.truth[whole.cases.index(case)], graph.run(renamed(case.feeds, parts.graph))
        for place, right in enumerate(truth):
            deviation = Deviation(str(place))
            deviation.add(case.names, got[place], right, None)
            if not deviation.judged(row).passed:
                return f"the graph that the engine was built from does not say what {whole.reference.source} says"
    return ""


def _original_graph(parts: Rebuilt, against: str, weights: Path | None) -> Graph:
    """The original as a graph: its own, or its export with the engine's inputs."""
    folded = folded_recipe(parts.sidecar.graph)
    if against.lower().endswith(".onnx"):
        graph = load_graph(against)
    else:
        model = load_model(against, weights)
        graph = _exported(model, load_graph(parts.graph.path) if folded and parts.graph.path else parts.graph, parts)
    takes_floats = all("float" in spec.dtype for spec in graph.inputs)
    return fold_preprocess(graph, folded) if folded and takes_floats else graph


def _exported(model: Model, like: Graph, parts: Rebuilt) -> Graph:
    profile = parts.config.profile
    specs, dynamic = [], {}
    for spec in like.inputs:
        dims = spec.shape or profile[spec.name].opt
        dynamic[spec.name] = {axis: dim for axis, dim in enumerate(dims) if isinstance(dim, str)}
        opt = profile[spec.name].opt if len(profile[spec.name].opt) == len(dims) else (2,) * len(dims)
        shape = tuple(dim if isinstance(dim, int) else max(2, size) for dim, size in zip(dims, opt, strict=True))
        specs.append(TensorSpec(spec.name, "float32" if "float" in spec.dtype else spec.dtype, shape))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "original.onnx"
        export_model(Model(model.module, tuple(specs), model.source), path, dynamic=dynamic, check=False)
        graph = load_graph(path)
        return Graph(graph.model, None, graph.source_sha256)


def _kept_names(bench: Bench, groups: Sequence[set[str | None]]) -> tuple[str, ...]:
    """The names by which a build keeps nodes high: their own, or of the attention that they are in."""
    chosen = set().union(*groups)
    return tuple(dict.fromkeys(label(node) for node in bench.layout.steps if node.name in chosen))
