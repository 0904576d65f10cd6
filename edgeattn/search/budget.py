"""How much worse than the model an engine may be, and how much worse it is, on samples that did not calibrate it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.backends.base import Session
from edgeattn.batches import at_opt, batch_size, joined_range
from edgeattn.calibrate.settings import CalibrationSettings
from edgeattn.data import Dataset, Sample, batches, evenly
from edgeattn.errors import UsageError
from edgeattn.parity import Reference, check_parity
from edgeattn.parity.closeness import closeness, require_judgeable, task_drops, too_far
from edgeattn.parity.findings import ROUNDING, MetricParity, share

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Feeds

MOST_BYTES = 2 << 30  # of samples and answers that are kept in memory
CALIBRATING = 256  # samples at most
JUDGING = 1024
RESAMPLES = 200  # by which the standard error of a drop is known to a twentieth


@dataclass(frozen=True)
class Budget:
    """What accuracy may cost.

    Attributes:
        data: representative samples, with labels where `max_drop` names a metric of a task.
        max_drop: largest drop by metric, as a fraction (`top1`, `miou`, `map`, `cosine`), or for `sqnr` the least dB.
        task: see `check_parity`.
        builds: most engines to build.
        settings: how to calibrate.
        recipe: the file by which the samples were made, for the command that builds again.
    """

    data: Dataset
    max_drop: Mapping[str, float]
    task: str | None = None
    builds: int = 64
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    recipe: Path | None = None

    def __post_init__(self) -> None:
        if not self.max_drop:
            raise UsageError("how much may accuracy drop? say it, such as --max-drop top1=0.5% or cosine=0.1%")
        require_judgeable(self.max_drop, self.data)
        if len(self.data) < 2:
            raise UsageError(
                f"{self.data.folder} has one sample; at least two are needed: one half calibrates, the other judges"
            )

    def words(self) -> list[str]:
        """As options of `edgeattn build`."""
        drops = ",".join(f"{metric}={drop:g}" for metric, drop in self.max_drop.items())
        words = ["--data", str(self.data.folder)]
        words += ["--recipe", str(self.recipe)] if self.recipe else []
        words += ["--calibration-method", self.settings.method] if self.settings.method != "minmax" else []
        words += ["--max-drop", drops]
        words += ["--max-builds", str(self.builds)] if self.builds != Budget.builds else []
        return [*words, *(["--task", self.task] if self.task else [])]

    def halves(self) -> tuple[Dataset, Dataset]:
        """The samples that calibrate and those that judge: every other one, so that both have all classes."""
        return self._part(0, CALIBRATING), self._part(1, JUDGING)

    def _part(self, start: int, most: int) -> Dataset:
        return dataclasses.replace(self.data, files=evenly(self.data.files[start::2], most), bad=[])


@dataclass(frozen=True)
class Accuracy:
    """An engine's figures by metric and what they cost; `failures` says in words which are beyond the budget."""

    values: Mapping[str, float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


class Judge:
    """Compares engines with the model's answers, which are computed once."""

    def __init__(self, reference: Reference, samples: Dataset, budget: Budget) -> None:
        self.samples, self.budget = samples, budget
        self.reference = _remembering(reference)
        self.kept: list[Sample] | None = None

    def measure(self, session: Session, precision: str) -> Accuracy:
        """Run an engine over all samples.

        Raises:
            InputError: none of the samples can be used, or a label does not fit.
            UsageError: a metric of the budget is not measured on these samples.
            InferenceError: the engine failed.
        """
        least, most = joined_range(session.profile)
        size = max(least, min(most, batch_size(at_opt(session.profile), session.profile)))
        report = check_parity(
            session,
            self.reference,
            batches(self._samples(), size),
            precision,
            task=self.budget.task,
            max_drop=task_drops(self.budget.max_drop),
            latency=False,
            resamples=RESAMPLES,
        )
        near = closeness(report.outputs)
        broken = [f"output {output.name!r} is not finite" for output in report.outputs if output.non_finite]
        return Accuracy(
            {**{metric.name: metric.engine for metric in report.metrics}, **near},
            {**{metric.name: metric.drop for metric in report.metrics}, "cosine": 1 - near["cosine"]},
            (
                *broken,
                *(failure for metric in report.metrics for failure in _failures(metric)),
                *too_far(near, self.budget.max_drop),
            ),
        )

    def _samples(self) -> Iterator[Sample]:
        """The samples: from memory once they were read, where they are few enough."""
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[Sample] = []
        size = 0
        for sample in self.samples:
            size += sum(array.nbytes for array in sample.feeds.values())
            if size <= MOST_BYTES:
                kept.append(sample)
            yield sample
        self.kept = kept if size <= MOST_BYTES else None


def _failures(metric: MetricParity) -> Iterator[str]:
    """Why a metric is beyond its bound, or so near it that on other samples it would often be.

    Of several ways to build, the search takes one that happens to lose little on these samples. So a drop has to keep
    its bound by one standard error, that of paired samples: where the same ones are right, it is zero.
    """
    yield from metric.failures
    low, high = metric.intervals.get("drop", (0.0, 0.0))
    error = (high - low) / 4  # 95 % lie within two of them to each side
    if metric.max_drop is not None and not metric.failures and metric.drop + error > metric.max_drop + ROUNDING:
        yield (
            f"{metric.change} with a standard error of {share(error)} on {metric.samples} samples, "
            f"at most {share(metric.max_drop)} is allowed"
        )


def _remembering(reference: Reference) -> Reference:
    """The same reference, which does not compute an answer again."""
    answers: dict[bytes, list[Array]] = {}
    room = MOST_BYTES

    def run(feeds: Feeds) -> list[Array]:
        nonlocal room
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(feeds):
            digest.update(repr(feeds[name].shape).encode() + feeds[name].tobytes())
        key = digest.digest()
        if key in answers:
            return answers[key]
        answer = reference.oracle(feeds)
        size = sum(array.nbytes for array in answer)
        if size <= room:
            room -= size
            answers[key] = answer
        return answer

    return dataclasses.replace(reference, run=run, oracle=run, low=lambda feeds, dtype: None)
