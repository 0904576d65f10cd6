"""How near outputs are to the original's, as one number for all of them: what accuracy may cost without labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from edgeattn.data import Sample, spread
from edgeattn.errors import UsageError
from edgeattn.metrics import task_named, task_with
from edgeattn.parity.findings import OutputParity
from edgeattn.reports.text import number

__all__ = ["CLOSENESS", "closeness", "require_judgeable", "task_drops", "too_far"]

CLOSENESS = ("cosine", "sqnr")
LOOKED_AT = 64  # samples, for a label


def closeness(outputs: Sequence[OutputParity]) -> dict[str, float]:
    """Cosine and SQNR in dB of the output that is worst off."""
    return {
        "cosine": min((output.cosine for output in outputs), default=1.0),
        "sqnr": min((output.sqnr_db for output in outputs), default=math.inf),
    }


def too_far(near: Mapping[str, float], max_drop: Mapping[str, float]) -> Iterator[str]:
    """In words, by how much closeness is beyond what is allowed: drops by metric, of `sqnr` the least dB."""
    if "cosine" in max_drop and not 1 - near["cosine"] <= max_drop["cosine"]:
        yield f"cosine drops by {number(1 - near['cosine'])}, at most {number(max_drop['cosine'])} is allowed"
    if "sqnr" in max_drop and not near["sqnr"] >= max_drop["sqnr"]:
        yield f"sqnr is {near['sqnr']:.1f} dB, at least {number(max_drop['sqnr'])} dB is asked for"


def task_drops(max_drop: Mapping[str, float]) -> dict[str, float]:
    """What metrics of a task may drop by: all but closeness."""
    return {metric: drop for metric, drop in max_drop.items() if metric not in CLOSENESS}


def require_judgeable(max_drop: Mapping[str, float], samples: Iterable[Sample] | None) -> None:
    """Refuse drops that samples cannot show, before any work.

    Raises:
        UsageError: there are no samples; a metric is of no task, or needs labels, and none of 64 samples has one.
    """
    if max_drop and samples is None:
        raise UsageError("how much accuracy drops is seen on real samples: give some")
    tasks = {metric: task_named(task_with(metric)) for metric in task_drops(max_drop)}
    if samples is not None and tasks and all(sample.label is None for sample in spread(samples, LOOKED_AT)):
        metric, task = next(iter(tasks.items()))
        raise UsageError(f"a {metric} drop cannot be judged: it needs {task.NEEDS}, and the samples have no labels")
