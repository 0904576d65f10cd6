"""How well the original and its engine do their task, on labelled samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgeattn.errors import InputError, UsageError
from edgeattn.metrics import TASKS, Label, Metric, find_task, task_named, task_with
from edgeattn.parity.bootstrap import intervals
from edgeattn.parity.findings import ClassParity, MetricParity

if TYPE_CHECKING:
    from edgeattn.tensors import Array

__all__ = ["TaskParity"]


@dataclass
class TaskParity:
    """The metrics of both sides, and those of the engine if the original's answers were the labels: the agreement.

    `asked` is the task, None to find it by the first label and the original's outputs. Where none fits, nothing is
    counted, and `task` says so.
    """

    asked: str | None = None
    max_drop: Mapping[str, float] = field(default_factory=dict)
    task: str = ""
    output: int = 0
    samples: int = 0
    sides: tuple[Metric, Metric, Metric] | None = None  # reference, engine, agreement

    def __post_init__(self) -> None:
        for metric in self.max_drop:
            task_with(metric)
        if self.asked is not None:
            task_named(self.asked)

    def add(self, got: Sequence[Array], truth: Sequence[Array], names: Sequence[str], labels: Sequence[Label]) -> None:
        """Count one batch; rows beyond the labels only fill it.

        Raises:
            InputError: a label does not fit the model's output.
            UsageError: the outputs or labels are not those of the task that was asked for.
        """
        if not self.task:
            self._begin(labels[0], truth)
        if self.sides is None:
            return
        reference, engine, agreement = self.sides
        theirs, ours = truth[self.output], got[self.output]
        alike = _form(ours, self.task) == _form(theirs, self.task)
        for row, (name, label) in enumerate(zip(names, labels, strict=True)):
            one = slice(row, row + 1)
            try:
                reference.add(theirs[one], [label])
            except InputError as err:
                raise InputError(f"sample {name!r}: {err}") from err
            if alike:
                engine.add(ours[one], [label])
                if answers := agreement.answers(theirs[one]):
                    agreement.add(ours[one], answers)
        self.samples += len(labels)

    def _begin(self, label: Label, truth: Sequence[Array]) -> None:
        found = find_task(label, truth, self.asked)
        if found is None and self.asked is not None:
            raise UsageError(f"{self.asked} needs {task_named(self.asked).NEEDS}; this model or data have others")
        if found is None:
            self.task = f"none of {', '.join(TASKS)} fits the labels and outputs; nothing is measured"
            return
        self.task, self.output = found
        metric = task_named(self.task)
        self.sides = metric(), metric(), metric()

    @property
    def found(self) -> tuple[str, int] | None:
        """The task and the index of its output, if labels tell."""
        return (self.task, self.output) if self.sides else None

    def result(self, resamples: int = 0) -> tuple[MetricParity, ...]:
        """The metrics, each with its bound, and with intervals from so many resamples.

        Raises:
            UsageError: a metric with a bound was not measured.
        """
        reference, engine, agreement = (side.result() for side in self.sides) if self.sides else ({}, {}, {})
        for metric in self.max_drop:
            if metric not in reference:
                needs = task_named(task_with(metric)).NEEDS
                raise UsageError(f"a {metric} drop cannot be judged: it needs {needs}")
        ranges = intervals(*self.sides[:2], resamples) if self.sides and resamples else {}
        return tuple(
            MetricParity(
                name,
                value,
                engine.get(name, math.nan),  # an engine whose output has another shape
                agreement.get(name),
                self.samples,
                self.max_drop.get(name),
                ranges.get(name, {}),
            )
            for name, value in reference.items()
        )

    def classes(self) -> tuple[ClassParity, ...]:
        """What the task tells of each class, on both sides."""
        if self.sides is None:
            return ()
        theirs, ours = (side.by_class() for side in self.sides[:2])
        named = self.sides[0].BY_CLASS
        numbers = sorted({*theirs, *ours})
        return tuple(ClassParity(number, named, theirs.get(number), ours.get(number)) for number in numbers)

    def curves(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """Precision over recall of both sides, where the task has it."""
        sides = zip(("reference", "engine"), self.sides or (), strict=False)
        return {name: tuple(points) for name, side in sides if (points := side.curve())}


def _form(output: Array, task: str) -> tuple[int, ...]:
    """The shape, without how many detections there are: a score that rounding moves across a threshold is no error."""
    return output.shape[:1] + output.shape[2:] if task == "detection" else output.shape
