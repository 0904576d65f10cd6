"""Is an engine still the model it came from? Numbers, task metric and time, at every shape it accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.backends import open_session
from edgeattn.backends.base import Session
from edgeattn.data import batches as batched
from edgeattn.data import load_recipe, open_data
from edgeattn.engine import read_sidecar
from edgeattn.errors import InferenceError, InputError, UsageError
from edgeattn.folding import feeding_recipe, folded_recipe
from edgeattn.parity.deviation import Deviation
from edgeattn.parity.reference import Reference, load_reference, on_pixels
from edgeattn.parity.report import LatencyPair, MetricParity, OutputParity, ParityReport, ShapeParity
from edgeattn.parity.task import TaskParity
from edgeattn.profile import environment, measure
from edgeattn.tensors import Profile, TensorSpec, corners, format_shape, numpy_dtype, random_feeds
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

    Raises:
        UsageError: no data and no seed, a task or metric that nobody knows or the data do not fit, other inputs.
        InputError: there are no samples, or they do not fit the engine.
        InferenceError: the engine or the reference failed on the samples.
    """
    metrics = TaskParity(task, max_drop or {})
    if batches is None and seed is None:
        raise UsageError("nothing to compare on: give real samples, or a seed for random input")
    check = _Check(session, reference, precision, seed or 0)
    totals, samples = check.deviations(), 0
    for names, feeds, labels in batches or ():
        samples += len(names)
        check.keep(names, feeds)
        check.compare_batch(totals, metrics, names, feeds, labels)
    if batches is not None and not samples:
        raise InputError("no samples to compare on: the data is empty")
    judged = metrics.result()
    shapes = tuple(check.compare_corner(corner, *([] if samples else [totals])) for corner in corners(session.profile))
    outputs = tuple(check.judged(total, bool(samples)) for total in totals)
    parts: list[OutputParity | ShapeParity | MetricParity] = [*outputs, *shapes, *judged]
    told = {"data": "" if samples else check.random, "task": metrics.task}
    return ParityReport(
        precision=precision,
        compared={"reference": reference.source, **(compared or {}), **{key: told[key] for key in told if told[key]}},
        samples=samples,
        outputs=outputs,
        shapes=shapes,
        metrics=judged,
        latency=tuple(check.latency()) if latency else (),
        environment={**environment(), "device": session.device},
        reasons=tuple(dict.fromkeys(chain(*(part.failures for part in parts)))),
    )


def compare_files(
    engine: str | Path,
    against: str,
    *,
    weights: Path | None = None,
    data: Path | None = None,
    recipe: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    task: str | None = None,
    max_drop: Mapping[str, float] | None = None,
    latency: bool = True,
    trust: bool = False,
) -> ParityReport:
    """Check an engine file against `model.onnx` or `FILE.py:FACTORY`, on a folder of samples or on random input.

    Raises:
        EdgeAttnError: as `open_session`, `load_reference`, `open_data` and `check_parity` say.
    """
    sidecar = read_sidecar(engine, trust)
    compared = {
        "engine": f"{engine} ({sidecar.backend} {sidecar.backend_version})",
        "engine sha256": sidecar.plan_sha256,
        "graph sha256": str(sidecar.graph.get("sha256", "")),
        **({"weights": str(weights)} if weights else {}),
        **({"data": str(data), "recipe": str(recipe or "from the input's shape")} if data else {}),
    }
    reference = load_reference(against, weights)
    if folded := folded_recipe(sidecar.graph):
        reference = on_pixels(reference, folded)
    with open_session(engine, trust) as session:
        groups = dataset = None
        if data:
            specs = [TensorSpec(spec.name, spec.dtype, session.profile[spec.name].opt) for spec in session.inputs]
            boxes = task == "detection" if task else any(_is_detection(spec) for spec in session.outputs)
            chosen = feeding_recipe(sidecar.graph, load_recipe(recipe) if recipe else None)
            dataset = open_data(data, specs, chosen, prefer="boxes" if boxes else "masks")
            groups = batched(islice(dataset, limit), _size(_at_opt(session.profile), session.profile))
        report = check_parity(
            session,
            reference,
            groups,
            sidecar.precision.asked,
            seed=seed,
            task=task,
            max_drop=max_drop,
            latency=latency,
            compared=compared,
        )
    skipped = {"skipped files": "; ".join(dataset.bad)} if dataset and dataset.bad else {}
    return replace(report, compared={**report.compared, **skipped})


@dataclass
class _Check:
    """One engine against one reference, and the samples kept to fill the corners with."""

    session: Session
    reference: Reference
    precision: str
    seed: int
    kept_names: list[str] = field(default_factory=list)
    kept: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tolerance = tolerance_for(self.precision)
        self.renamed = _matched(self.session.inputs, self.reference.inputs)
        self.random = f"random, seed {self.seed}"

    def judged(self, deviation: Deviation, real: bool) -> OutputParity:
        """The verdict on an output.

        INT8 was calibrated for real samples, so random input says nothing of it; and detections, which are sorted by
        their scores, change places where these nearly tie: only the task's metric can judge them.
        """
        unjudged = self.tolerance.noise and (not real or (len(deviation.shape) == 3 and deviation.shape[2] == 6))
        return deviation.judged(FINITE if unjudged else self.tolerance)

    def deviations(self) -> list[Deviation]:
        return [Deviation(spec.name) for spec in self.session.outputs]

    def keep(self, names: Sequence[str], feeds: Feeds) -> None:
        """Keep as many samples as the largest batch holds, all of one size."""
        missing = _batch_range(self.session.profile)[1] - len(self.kept_names)
        if missing <= 0 or (self.kept and any(self.kept[name].shape[1:] != feeds[name].shape[1:] for name in feeds)):
            return
        for name, array in feeds.items():
            rows = array[:missing]
            if name not in self.kept:
                self.kept[name] = rows
            elif name in _batched_inputs(self.session.profile):
                self.kept[name] = np.concatenate([self.kept[name], rows])
        self.kept_names += names[:missing]

    def compare(
        self, names: Sequence[str], feeds: Feeds, *sums: Sequence[Deviation]
    ) -> tuple[list[Array], list[Array]]:
        """Run both on the same values, add the errors to every list of sums, and return both sides' outputs."""
        results = self.session.run(feeds)
        got = [results[spec.name] for spec in self.session.outputs]
        same = self._translated(feeds)
        truth = self.reference.oracle(same)
        if len(got) != len(truth):
            raise UsageError(f"the engine has {len(got)} outputs, {self.reference.source} has {len(truth)}")
        own = None if self.tolerance.noise else self.reference.low(same, self.precision)
        for group in sums:
            for index, deviation in enumerate(group):
                deviation.add(names, got[index], truth[index], own[index] if own else None)
        return got, truth

    def compare_batch(
        self,
        totals: list[Deviation],
        metrics: TaskParity,
        names: Sequence[str],
        feeds: Feeds,
        labels: Sequence[Label] | None,
    ) -> None:
        """Compare a batch of any size, cut and filled up to what the engine accepts."""
        low, high = _batch_range(self.session.profile)
        for start in range(0, len(names), high):
            rows = list(range(start, min(start + high, len(names))))
            filled = [rows[index % len(rows)] for index in range(max(len(rows), low))]
            piece = _rows(self.session.profile, feeds, filled)
            got, truth = self.compare([names[row] for row in filled], piece, totals)
            if labels is not None:
                metrics.add(got, truth, [names[row] for row in rows], [labels[row] for row in rows])

    def compare_corner(self, shapes: Mapping[str, Shape], *sums: Sequence[Deviation]) -> ShapeParity:
        """The verdict at one corner; what is found there is added to the sums too."""
        names, feeds, origin = self.feeds_at(shapes)
        here = self.deviations()
        where = ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
        try:
            self.compare(names, feeds, here, *sums)
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
        size = _size(shapes, self.session.profile)
        if self.kept:
            rows = [row % len(self.kept_names) for row in range(size)]
            feeds = _rows(self.session.profile, self.kept, rows)
            if all(feeds[name].shape == shape for name, shape in shapes.items()):
                return [self.kept_names[row] for row in rows], feeds, "real"
        return (
            [f"random {row}" for row in range(size)],
            random_feeds(self.session.inputs, shapes, self.seed),
            self.random,
        )

    def latency(self) -> Iterator[LatencyPair]:
        """Both in turn at batch 1, where the engine takes that, and at the optimal shape."""
        opt = _at_opt(self.session.profile)
        one = {
            name: (1, *shape[1:]) if name in _batched_inputs(self.session.profile) else shape
            for name, shape in opt.items()
        }
        allowed = all(self.session.profile[name].contains(shape) for name, shape in one.items())
        for shapes in [one, opt] if allowed and one != opt else [opt]:
            _, feeds, _ = self.feeds_at(shapes)
            same = self._translated(feeds)
            batch = _size(shapes, self.session.profile)
            sides: dict[str, Callable[[], object]] = {
                "reference": partial(self.reference.run, same),
                "engine": partial(self.session.run, feeds),
            }
            yield LatencyPair(batch, **measure(sides, batch=batch))


def _is_detection(spec: TensorSpec) -> bool:
    return spec.shape is not None and len(spec.shape) == 3 and spec.shape[2] == 6


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


def _batched_inputs(profile: Profile) -> list[str]:
    """The inputs whose first axis is the batch: those where it ranges, or all where none does."""
    ranging = [name for name, spread in profile.items() if spread.opt and spread.min[0] != spread.max[0]]
    return ranging or [name for name, spread in profile.items() if spread.opt]


def _batch_range(profile: Profile) -> tuple[int, int]:
    spreads = [profile[name] for name in _batched_inputs(profile)]
    return max((s.min[0] for s in spreads), default=1), min((s.max[0] for s in spreads), default=1)


def _size(shapes: Mapping[str, Shape], profile: Profile) -> int:
    return next((shapes[name][0] for name in _batched_inputs(profile)), 1)


def _at_opt(profile: Profile) -> dict[str, Shape]:
    return {name: spread.opt for name, spread in profile.items()}


def _rows(profile: Profile, feeds: Feeds, rows: Sequence[int]) -> dict[str, Array]:
    """The rows of every batched input; the others stay whole."""
    batched_inputs = _batched_inputs(profile)
    return {name: array[list(rows)] if name in batched_inputs else array for name, array in feeds.items()}
