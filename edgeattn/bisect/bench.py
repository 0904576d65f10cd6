"""Sections of an engine, built as it was and fed what the original computes there, so that errors do not add up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from edgeattn.backends.base import Session
from edgeattn.bisect.cuts import Layout, Section, label
from edgeattn.bisect.report import SectionParity
from edgeattn.calibrate import observed_graph
from edgeattn.errors import EdgeAttnError, InferenceError, one_line
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import ATTENTION
from edgeattn.maps.rebuilt import Rebuilt
from edgeattn.normalise import infer_types
from edgeattn.parity import reference_from_graph
from edgeattn.parity.deviation import Deviation
from edgeattn.precision.int8.improve import EQUALISED
from edgeattn.tensors import ShapeRange, random_feeds
from edgeattn.tolerance import FINITE, Tolerance, tolerance_for

if TYPE_CHECKING:
    from edgeattn.parity.report import OutputParity
    from edgeattn.tensors import Array, Feeds, Profile, Shape

LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True, eq=False)
class Case:
    """A batch to compare on: names of its samples, the engine's feeds, and where it stands, in words."""

    names: tuple[str, ...]
    feeds: Mapping[str, Array]
    where: str
    real: bool


class Bench:
    """Builds sections and judges them; `left` counts the builds that it may still spend.

    `layout` is the engine's graph, its attentions expanded, with cuts where its values are those of `truth`, which is
    the original.
    """

    def __init__(self, parts: Rebuilt, truth: Graph, cases: Sequence[Case], builds: int) -> None:
        self.parts, self.cases, self.left = parts, cases, builds
        self.typed, ours = typed_values(parts.typed), observed_graph(parts.graph)
        self.truth = aligned(truth, ours)
        self.layout = Layout(ours, set(_comparable(ours, self.truth, parts)))
        run = run_as_written(self.truth, every=True)
        self.values = [_values(run, case.feeds, self.truth) for case in cases]
        self.shapes = [{name: array.shape for name, array in values.items()} for values in self.values]
        sidecar = parts.sidecar
        for end in ("max", "opt", "min"):
            shapes = {name: getattr(spread, end) for name, spread in sidecar.profile.items()}
            found = _values(run, random_feeds(sidecar.inputs, shapes, seed=0), self.truth)
            self.shapes.insert(0, {name: array.shape for name, array in found.items()})
        self.known: dict[tuple[int, int], SectionParity] = {}

    def fails(self, first: int, last: int) -> bool:
        """Whether a stretch of steps fails by itself."""
        return bool(self.judge(self.layout.section(first, last)).failures)

    def judge(self, section: Section) -> SectionParity:
        """Build a section, feed it what the original computes there, and hold what it says to the tolerance table."""
        key = (section.first, section.last)
        if key not in self.known:
            nodes = self.layout.steps[section.first : section.last]
            names = tuple(dict.fromkeys(map(label, nodes)))
            kind = "attention" if all(ATTENTION in node.metadata_props for node in nodes) else "between"
            found = SectionParity(self.layout.name(section), kind, names, section.inputs, section.outputs)
            self.known[key] = self._judged(section, found)
        return self.known[key]

    def _judged(self, section: Section, found: SectionParity) -> SectionParity:
        if self.left <= 0:
            return dataclasses.replace(found, unknown="no builds are left")
        engine = part(self.typed, section.inputs, section.outputs)
        original = part(self.truth, section.inputs, section.outputs)
        if engine is None or original is None:
            return dataclasses.replace(found, unknown="its values are others in the engine")
        self.left -= 1
        try:
            config = dataclasses.replace(self.parts.config, profile=self._profile(section.inputs))
            with self.parts.session(engine, config) as session:
                outputs, broken = self._compared(session, original, section)
        except EdgeAttnError as err:
            return dataclasses.replace(found, unknown=f"it cannot be built alone: {err}")
        failures = (*broken, *(failure for output in outputs for failure in output.failures))
        if not outputs:
            return dataclasses.replace(found, failures=failures)
        worst = max(outputs, key=_excess)
        return dataclasses.replace(
            found,
            relative_l2=error_of(worst),
            limit_l2=worst.limit_l2,
            relative_max=worst.relative_max,
            limit_max=worst.limit_max,
            failures=failures,
        )

    def _compared(
        self, session: Session, original: Graph, section: Section
    ) -> tuple[tuple[OutputParity, ...], tuple[str, ...]]:
        precision = self.parts.sidecar.precision.asked
        low = reference_from_graph(original).low
        deviations, broken = [Deviation(name) for name in section.outputs], []
        for case, values in zip(self.cases, self.values, strict=True):
            feeds = {spec.name: _as(values[spec.name], spec.dtype) for spec in session.inputs}
            truth = [values[name] for name in section.outputs]
            try:
                got = [*session.run(feeds).values()]
            except InferenceError as err:
                broken.append(f"at {case.where}: {err}")
                continue
            own = None if tolerance_for(precision).noise else low(renamed(feeds, original), precision)
            for place, deviation in enumerate(deviations):
                deviation.add(case.names, got[place], truth[place], own[place] if own else None)
        return tuple(item.judged(self.tolerance) for item in deviations if item.elements or item.mismatches), (*broken,)

    @property
    def tolerance(self) -> Tolerance:
        """What a section is held to: as parity holds an output."""
        return tolerance_at(self.parts.sidecar.precision.asked, self.cases)

    def accumulated(self, names: Sequence[str]) -> dict[str, float]:
        """The relative L2 error of the whole engine at each of these values, by one build with them as outputs.

        More outputs may keep the backend from fusing, so this is a sketch of the engine; empty where it is none.
        """
        inputs = [value.name or "" for value in self.typed.model.graph.inputs]
        marked = part(self.typed, inputs, names)
        if marked is None or self.left <= 0 or not set(names) <= set(self.values[0]):
            return {}
        self.left -= 1
        deviations = [Deviation(name) for name in names]
        try:
            with self.parts.session(marked) as session:
                for case, values in zip(self.cases, self.values, strict=True):
                    for deviation, got in zip(deviations, session.run(case.feeds).values(), strict=True):
                        deviation.add(case.names, got, values[deviation.name], None)
        except EdgeAttnError:
            return {}
        return {item.name: error_of(item.judged(FINITE)) for item in deviations}

    def _profile(self, names: Iterable[str]) -> Profile:
        """The ranges of a section's inputs, by what they are at the corners of the engine's."""
        return {name: _range([shapes[name] for shapes in self.shapes]) for name in names}


def tolerance_at(precision: str, cases: Sequence[Case]) -> Tolerance:
    """A precision's row of the tolerance table; random input says nothing of INT8."""
    row = tolerance_for(precision)
    return row if any(case.real for case in cases) or not row.noise else FINITE


def typed_values(graph: Graph) -> Graph:
    """A copy in which every value has a type."""
    copied = graph.copy()
    infer_types(copied.model)
    return copied


def part(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Graph | None:
    """The nodes between some values, as a graph from and to float32; None where these do not bound it."""
    try:
        found = ir.convenience.extract(graph.model.graph, inputs, outputs)
    except ValueError:
        return None
    for index, value in enumerate(list(found.inputs)):
        if value.dtype in LOW:
            fed = ir.Value(name=value.name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
            cast = ir.node("Cast", [fed], {"to": value.dtype}, name=f"{value.name}/fed")
            ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
            cast.outputs[0].name, cast.outputs[0].type = f"{value.name}/low", value.type
            cast.outputs[0].shape = value.shape
            found.inputs[index] = fed
            found.insert_before(found[0], cast)
    for index, value in enumerate(list(found.outputs)):
        if value.dtype in LOW:
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}/given")
            name, value.name = value.name, f"{value.name}/low_output"
            cast.outputs[0].name, cast.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
            cast.outputs[0].shape = value.shape
            found.append(cast)
            found.outputs[index] = cast.outputs[0]
    return Graph(ir.Model(found, ir_version=graph.model.ir_version))


def renamed(feeds: Feeds, graph: Graph) -> dict[str, Array]:
    """Feeds under a graph's own names of its inputs, in their order where these are others, and in its dtypes."""
    names = [spec.name for spec in graph.inputs]
    theirs = names if set(names) == set(feeds) else list(feeds)
    return {spec.name: _as(feeds[name], spec.dtype) for spec, name in zip(graph.inputs, theirs, strict=True)}


def _as(array: Array, dtype: str) -> Array:
    return np.asarray(array).astype(dtype, copy=False) if "bfloat" not in dtype else array


def aligned(theirs: Graph, ours: Graph) -> Graph:
    """The original's graph, its inputs and outputs named as the engine's, and all it makes where it has the same nodes.

    Another export names things otherwise; the same operators in the same order are the same graph.
    """
    copied = theirs.copy()
    main, like = copied.model.graph, ours.model.graph
    pairs = [*zip(main.inputs, like.inputs, strict=False), *zip(main.outputs, like.outputs, strict=False)]
    if [node.op_type for node in main] == [node.op_type for node in like]:
        made = ([value for node in graph for value in node.outputs] for graph in (main, like))
        pairs += zip(*made, strict=False)
    names = {value: own.name or "" for value, own in pairs}
    taken = set(names.values())
    others = (*main.initializers.values(), *(value for node in main for value in node.outputs))
    names |= {value: f"original/{value.name}" for value in others if value not in names and value.name in taken}
    ir.convenience.rename_values(list(names), list(names.values()))
    return copied


def _values(run: Callable[[Feeds], dict[str, Array]], feeds: Feeds, truth: Graph) -> dict[str, Array]:
    """All that the original computes of some feeds, and these."""
    try:
        return {**feeds, **run(renamed(feeds, truth))}
    except Exception as err:
        raise InferenceError(f"the original fails on what the engine is to be compared on: {one_line(err)}") from err


def _comparable(ours: Graph, truth: Graph, parts: Rebuilt) -> Iterator[str]:
    """The values that mean the same in engine and original: made by the same operator under the same name."""
    makers = {value.name: node.op_type for node in truth.model.graph for value in node.outputs}
    typed = {value.name: value for node in parts.typed.model.graph for value in node.outputs}
    scaled = set(_scaled(parts))
    for node in ours.model.graph:
        for value in node.outputs:
            if value.name in typed and makers.get(value.name) == node.op_type and value.name not in scaled:
                yield value.name or ""


def _scaled(parts: Rebuilt) -> Iterator[str | None]:
    """The values whose channels an INT8 engine may have equalised: what is rounded, and what that is made of."""
    if EQUALISED not in (parts.config.improve or ()):
        return
    for node in parts.typed.model.graph:
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        while value is not None and (maker := value.producer()) is not None:
            yield value.name
            value = maker.inputs[0] if maker.op_type in ("Relu", "LeakyRelu", "Add") else None


def _range(shapes: Sequence[Shape]) -> ShapeRange:
    opt = shapes[1]
    low, high = (
        zip(*((min(sizes), max(sizes)) for sizes in zip(*shapes, strict=True)), strict=True) if opt else ((), ())
    )
    return ShapeRange(tuple(low), opt, tuple(high))


def error_of(output: OutputParity) -> float:
    """The relative L2 error of an output; infinite where values are not even finite, or of another shape."""
    return output.relative_l2 if output.elements and not output.non_finite else math.inf


def _excess(output: OutputParity) -> tuple[bool, float]:
    """By how much an output is beyond its limit, those first that fail."""
    return not output.passed, error_of(output) / output.limit_l2 if output.limit_l2 else 0.0
