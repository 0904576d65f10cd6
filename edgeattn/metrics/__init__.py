"""How well a model does its task: running figures of merit, one task a file.

A metric is made, fed batch by batch, and asked once: `metric.add(outputs, labels)`, `metric.result()`. Labels are as
`edgeattn.data` reads them; a class below 0 in a mask marks pixels that count nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgeattn.errors import UsageError, did_you_mean
from edgeattn.metrics.base import Label, Metric
from edgeattn.metrics.classification import Classification
from edgeattn.metrics.detection import Detection
from edgeattn.metrics.saliency import Saliency
from edgeattn.metrics.segmentation import Segmentation

if TYPE_CHECKING:
    from edgeattn.tensors import Array

__all__ = ["ERRORS", "TASKS", "Label", "Metric", "find_task", "task_named", "task_with"]

# In the order in which `find_task` tries them: one channel is a saliency map unless segmentation is asked for.
TASKS: Mapping[str, type[Metric]] = {
    "classification": Classification,
    "saliency": Saliency,
    "segmentation": Segmentation,
    "detection": Detection,
}
ERRORS = frozenset({"mae"})  # of these metrics, less is better


def find_task(label: Label, outputs: Sequence[Array], asked: str | None = None) -> tuple[str, int] | None:
    """The task that a label and a model's outputs (each with its batch axis) speak of, and the index of its output.

    Args:
        label: of any one sample.
        outputs: of a model that is right: what they hold decides too.
        asked: the only task to think of.

    Returns:
        The first of `TASKS` that fits, with the first output that does; None where there is none.

    Raises:
        UsageError: nobody knows the task that is asked for.
    """
    for name in TASKS if asked is None else [asked]:
        for index, output in enumerate(outputs):
            if task_named(name).fits(label, output):
                return name, index
    return None


def task_named(name: str) -> type[Metric]:
    """The metric of a task.

    Raises:
        UsageError: there is no such task.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}; {did_you_mean(name, TASKS)}")
    return TASKS[name]


def task_with(metric: str) -> str:
    """The task that a metric belongs to.

    Raises:
        UsageError: there is no such metric.
    """
    home = {name: task for task, kind in TASKS.items() for name in kind.NAMES}
    if metric not in home:
        raise UsageError(f"unknown metric {metric!r}; {did_you_mean(metric, home)}")
    return home[metric]
