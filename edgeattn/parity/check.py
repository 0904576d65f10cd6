"""Is an engine still the model it came from? Numbers, task metric and time, at every shape it accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.backends.base import Session
from edgeattn.batches import at_opt, batch_range, batch_size, batched_inputs, take_rows
from edgeattn.errors import InferenceError, InputError, UsageError
from edgeattn.parity.bootstrap import RESAMPLES
from edgeattn.parity.deviation import Deviation
from edgeattn.parity.evidence import Evidence
from edgeattn.parity.rebuilds import Rebuilt
from edgeattn.parity.reference import Reference
from edgeattn.parity.report import LatencyPair, MetricParity, OutputParity, ParityReport, RebuildParity, ShapeParity
from edgeattn.parity.task import TaskParity
from edgeattn.profile import environment, measure
from edgeattn.tensors import TensorSpec, corners, format_shape, numpy_dtype, random_feeds
from edgeattn.tolerance import FINITE, tolerance_for

if TYPE_CHECKING:
    from edgeattn.metrics import Label
    from edgeattn.tensors import Array, Feeds, Shape

    Batch = tuple[Sequence[str], Feeds, Sequence[Label] | None]


def check_parity(
    session: Session,
    reference: Reference,
    batches: Iterable[Batch] | None,
    precision: str,
    *,
    seed: int | None = None,
    task: str | None = None,
    max_drop: Mapping[str, float] | None = None,
    latency: bool = True,
    compared: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    evidence: Evidence | None = None,
    rebuilds: Sequence[tuple[str, Session]] = (),
) -> ParityReport:
    """Run engine and reference on the same data and judge every output by the tolerance table.

    All samples are compared, then every corner of the engine's range: real samples are repeated to fill a batch, and
    a corner of another size than theirs gets seeded random input, which the report says. There INT8 is not judged.

    Args:
        session: the engine; inputs that are named otherwise than the reference's are matched by order.
        reference: what is right.
        batches: (names, feeds, labels or None), of any size; None to check on random input alone.
        precision: the engine's dtype, a row of the tolerance table.
        seed: of the random input; needed where there are no batches.
        task: what the model is for, one of `edgeattn.metrics.TASKS`; None to see it in the labels and the outputs.
        max_drop: largest drop by metric (`top1`, `miou`), as a fraction; a metric without one is only reported.
        latency: also time the two against each other, at batch 1 and at the optimal shape.
        compared: what stands against what, in words, for the report.
        resamples: of the metrics' confidence intervals; 0 for none.
        evidence: what looks for the samples that differ most; None not to look.
        rebuilds: further builds of the engine, the SHA-256 of each one's plan and its session, to run beside it.

    Raises:
        UsageError: no data and no seed, a task or metric that nobody knows or the data do not fit, other inputs.
        InputError: there are no samples, or they do not fit the engine.
        InferenceError: the engine or the reference failed on the samples.
    """
    metrics = TaskParity(task, max_drop or {})
    if batches is None and seed is None:
        raise UsageError("nothing to compare on: give real samples, or a seed for random input")
    others = [
        Rebuilt(f"rebuild {number}", plan, other, TaskParity(task, max_drop or {}))
        for number, (plan, other) in enumerate(rebuilds, start=1)
    ]
    check = _Check(session, reference, precision, seed or 0, metrics, evidence, others)
    for names, feeds, labels in batches or ():
        check.compare_batch(names, feeds, labels)
    if batches is not None and not check.samples:
        raise InputError("no samples to compare on: the data is empty")
    return check.report({"reference": reference.source, **(compared or {})}, latency, resamples)


@dataclass
class _Check:
    """One engine against one reference, and the samples kept to fill the corners with."""

    session: Session
    reference: Reference
    precision: str
    seed: int
    metrics: TaskParity
    evidence: Evidence | None
    rebuilds: Sequence[Rebuilt]
    samples: int = 0
    kept_names: list[str] = field(default_factory=list)
    kept: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tolerance = tolerance_for(self.precision)
        self.renamed = _matched(self.session.inputs, self.reference.inputs)
        self.random = f"random, seed {self.seed}"
        self.totals = self.deviations()

    def report(self, compared: Mapping[str, str], latency: bool, resamples: int) -> ParityReport:
        """What was found on the samples, and now at every corner."""
        found = self.metrics.result(resamples)
        shapes = tuple(self.compare_corner(corner) for corner in corners(self.session.profile))
        judge = partial(self.judged, real=bool(self.samples))
        outputs = tuple(judge(total) for total in self.totals)
        rebuilds = tuple(rebuilt.judged(judge) for rebuilt in self.rebuilds)
        parts: list[OutputParity | ShapeParity | MetricParity | RebuildParity] = [*outputs, *shapes, *found, *rebuilds]
        told = {"data": "" if self.samples else self.random, "task": self.metrics.task}
        evidence = self.evidence or Evidence(0)
        return ParityReport(
            precision=self.precision,
            compared={**compared, **{key: told[key] for key in told if told[key]}},
            samples=self.samples,
            outputs=outputs,
            shapes=shapes,
            metrics=found,
            latency=tuple(self.latency()) if latency else (),
            environment={**environment(), "device": self.session.device},
            reasons=tuple(dict.fromkeys(chain(*(part.failures for part in parts)))),
            classes=self.metrics.classes(),
            curves=self.metrics.curves(),
            agreement=evidence.agreement(),
            worst=evidence.worst(),
            rebuilds=rebuilds,
        )

    def judged(self, deviation: Deviation, real: bool) -> OutputParity:
        """The verdict on an output.

        INT8 was calibrated for real samples, so random input says nothing of it; and of its detections, more come and
        go at the threshold than any limit could tell from a fault: only the task's metric can judge them.
        """
        unjudged = self.tolerance.noise and (not real or (len(deviation.shape) == 3 and deviation.shape[2] == 6))
        return deviation.judged(FINITE if unjudged else self.tolerance)

    def deviations(self) -> list[Deviation]:
        return [Deviation(spec.name) for spec in self.session.outputs]

    def keep(self, names: Sequence[str], feeds: Feeds) -> None:
        """Keep as many samples as the largest batch holds, all of one size."""
        missing = batch_range(self.session.profile)[1] - len(self.kept_names)
        if missing <= 0 or (self.kept and any(self.kept[name].shape[1:] != feeds[name].shape[1:] for name in feeds)):
            return
        for name, array in feeds.items():
            rows = array[:missing]
            if name not in self.kept:
                self.kept[name] = rows
            elif name in batched_inputs(self.session.profile):
                self.kept[name] = np.concatenate([self.kept[name], rows])
        self.kept_names += names[:missing]

    def compare(
        self, names: Sequence[str], feeds: Feeds, here: Sequence[Deviation] = (), counts: bool = True
    ) -> tuple[list[Array], list[Array], list[list[Array]]]:
        """Run both on the same values and add the errors to those `here`.

        Where it counts they are added to the totals as well, and the rebuilds run too.

        Returns:
            The outputs of the engine, of the original, and of each rebuild.
        """
        results = self.session.run(feeds)
        got = [results[spec.name] for spec in self.session.outputs]
        same = self._translated(feeds)
        truth = self.reference.oracle(same)
        if len(got) != len(truth):
            raise UsageError(f"the engine has {len(got)} outputs, {self.reference.source} has {len(truth)}")
        own = None if self.tolerance.noise else self.reference.low(same, self.precision)
        for sums in (here, self.totals if counts else ()):
            for index, deviation in enumerate(sums):
                deviation.add(names, got[index], truth[index], own[index] if own else None)
        return got, truth, [other.add(names, feeds, got, truth, own) for other in self.rebuilds if counts]

    def compare_batch(self, names: Sequence[str], feeds: Feeds, labels: Sequence[Label] | None) -> None:
        """Compare a batch of any size, cut and filled up to what the engine accepts."""
        self.keep(names, feeds)
        self.samples += len(names)
        low, high = batch_range(self.session.profile)
        for start in range(0, len(names), high):
            rows = list(range(start, min(start + high, len(names))))
            filled = [rows[index % len(rows)] for index in range(max(len(rows), low))]
            piece = take_rows(self.session.profile, feeds, filled)
            got, truth, again = self.compare([names[row] for row in filled], piece)
            own, said = [names[row] for row in rows], None if labels is None else [labels[row] for row in rows]
            if said is not None:
                self.metrics.add(got, truth, own, said)
                for other, outputs in zip(self.rebuilds, again, strict=True):
                    other.metrics.add(outputs, truth, own, said)
            if self.evidence:
                self.evidence.add(own, piece, got, truth, labels=said, found=self.metrics.found)

    def compare_corner(self, shapes: Mapping[str, Shape]) -> ShapeParity:
        """The verdict at one corner; without samples, what is found there counts for the whole."""
        names, feeds, origin = self.feeds_at(shapes)
        here = self.deviations()
        where = ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
        try:
            self.compare(names, feeds, here, counts=not self.samples)
        except InferenceError as err:
            self._require_reference(feeds, where)
            return ShapeParity(shapes, origin, np.inf, np.inf, (f"at {where}: {err}",))
        judged = [self.judged(deviation, origin == "real") for deviation in here]
        return ShapeParity(
            shapes,
            origin,
            max((output.relative_max for output in judged), default=0.0),
            max((output.relative_l2 for output in judged), default=0.0),
            tuple(f"at {where}: {reason}" for output in judged for reason in output.failures),
        )

    def _require_reference(self, feeds: Feeds, where: str) -> None:
        """Raise where the reference fails as well: then the values are at fault, and nothing can be judged."""
        try:
            self.reference.oracle(self._translated(feeds))
        except InferenceError as err:
            raise InferenceError(
                f"nothing can be compared at {where}, where the original fails itself: {err}; narrow the shapes, or "
                "give data that the model admits (edgeattn build --no-check, then edgeattn parity --data)"
            ) from err

    def _translated(self, feeds: Feeds) -> dict[str, Array]:
        """The same values under the reference's names and in its dtypes."""
        return {name: np.asarray(feeds[old]).astype(dtype) for old, (name, dtype) in self.renamed.items()}

    def feeds_at(self, shapes: Mapping[str, Shape]) -> tuple[list[str], dict[str, Array], str]:
        """Names, feeds and their origin: real samples, repeated as need be, where they have the right size."""
        size = batch_size(shapes, self.session.profile)
        if self.kept:
            rows = [row % len(self.kept_names) for row in range(size)]
            feeds = take_rows(self.session.profile, self.kept, rows)
            if all(feeds[name].shape == shape for name, shape in shapes.items()):
                return [self.kept_names[row] for row in rows], feeds, "real"
        return (
            [f"random {row}" for row in range(size)],
            random_feeds(self.session.inputs, shapes, self.seed),
            self.random,
        )

    def latency(self) -> Iterator[LatencyPair]:
        """Both in turn at batch 1, where the engine takes that, and at the optimal shape."""
        opt = at_opt(self.session.profile)
        one = {
            name: (1, *shape[1:]) if name in batched_inputs(self.session.profile) else shape
            for name, shape in opt.items()
        }
        allowed = all(self.session.profile[name].contains(shape) for name, shape in one.items())
        for shapes in [one, opt] if allowed and one != opt else [opt]:
            _, feeds, _ = self.feeds_at(shapes)
            same = self._translated(feeds)
            batch = batch_size(shapes, self.session.profile)
            sides: dict[str, Callable[[], object]] = {
                "reference": partial(self.reference.run, same),
                "engine": partial(self.session.run, feeds),
            }
            yield LatencyPair(batch, **measure(sides, batch=batch))


def _matched(engine: Sequence[TensorSpec], reference: Sequence[TensorSpec]) -> dict[str, tuple[str, np.dtype[Any]]]:
    """Name and dtype that each of the engine's inputs has at the reference."""
    theirs = {spec.name: spec for spec in reference}
    if not reference:
        # A model in float32 is fed float32, whatever the engine takes.
        pairs = {spec.name: replace(spec, dtype="float32") if "float" in spec.dtype else spec for spec in engine}
    elif set(theirs) == {spec.name for spec in engine}:
        pairs = {spec.name: theirs[spec.name] for spec in engine}
    elif len(engine) == len(reference):
        pairs = {ours.name: other for ours, other in zip(engine, reference, strict=True)}
    else:
        ours = ", ".join(spec.name for spec in engine)
        raise UsageError(
            f"the engine takes {len(engine)} inputs ({ours}), the reference {len(theirs)}: {', '.join(theirs)}"
        )
    return {name: (spec.name, numpy_dtype(spec.dtype)) for name, spec in pairs.items()}
