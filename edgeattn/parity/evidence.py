"""Which samples differ most, what each side says of them, and how often they decide alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.parity.decisions import decision, guess, moved, said
from edgeattn.parity.detections import are_detections, beside
from edgeattn.parity.findings import SampleParity
from edgeattn.parity.pictures import drawn, input_picture

if TYPE_CHECKING:
    from edgeattn.images import Recipe
    from edgeattn.metrics import Label
    from edgeattn.tensors import Array, Feeds

__all__ = ["Evidence"]

_ORDERS: dict[str, Callable[[SampleParity], tuple[float, float]]] = {
    "decision": lambda found: (found.decision, found.relative_l2),
    "error": lambda found: (found.relative_l2, found.decision),
}


@dataclass
class Evidence:
    """Looks at the samples as they come, and keeps `count` of the worst by error and `count` by decision.

    They are drawn when they are met, so that memory does not grow. `recipe` says what the inputs were made from, `task`
    what is asked for, if anything is. Of a model with several outputs, the one of the task is looked at.
    """

    count: int = 6
    recipe: Recipe | None = None
    task: str = ""
    output: int = 0
    samples: int = 0
    squares: float = 0.0  # of the truth
    counted: bool = False  # the error is a share of what differs
    answers: Counter[tuple[int, int]] = field(default_factory=Counter)  # classes of the original and of the engine
    kept: dict[str, list[SampleParity]] = field(default_factory=lambda: {by: [] for by in _ORDERS})

    def add(
        self,
        names: Sequence[str],
        feeds: Feeds,
        got: Sequence[Array],
        truth: Sequence[Array],
        *,
        labels: Sequence[Label] | None,
        found: tuple[str, int] | None,
    ) -> None:
        """Look at a batch; rows beyond the names only fill it. `found` is the task and its output, if labels tell."""
        if not self.samples:
            self.task, self.output = found or guess(truth, self.task or None)
        ours, theirs = got[self.output], truth[self.output]
        alike = ours.ndim == theirs.ndim and (ours.shape == theirs.shape or self.task == "detection")
        if not alike or ours.ndim == 0 or len(ours) < len(names):
            return
        for row, name in enumerate(names):
            label = "" if labels is None or not isinstance(labels[row], int) else f"class {labels[row]}"
            one = {key: array[row : row + 1] for key, array in feeds.items() if array.ndim}
            self._look(name, one, ours[row], theirs[row], label)

    def _look(self, name: str, feeds: Feeds, ours: Array, theirs: Array, label: str) -> None:
        self.samples += 1
        self.counted = self.task == "detection" or theirs.dtype.kind in "iub"
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        self.squares += float(np.square(theirs[np.isfinite(theirs)]).sum())
        differs = decision(self.task, ours, theirs)
        if self.task == "classification":
            self.answers[int(theirs.argmax()), int(ours.argmax())] += 1
        gap = _gap(ours, theirs) if ours.shape == theirs.shape else np.zeros(1)
        error = float((gap > 0).mean()) if self.counted else float(np.linalg.norm(gap))
        error = moved(ours, theirs) if self.task == "detection" else error
        found = SampleParity(name, error, differs, float(gap.max(initial=0.0)), label, "", "")
        places = [by for by in _ORDERS if self._belongs(found, by)]
        if not places:
            return
        found = replace(
            found,
            reference=said(self.task, theirs),
            engine=said(self.task, ours),
            pictures=drawn(self.task, input_picture(feeds, self.recipe), ours, theirs),
        )
        for by in places:
            self.kept[by] = sorted([*self.kept[by], found], key=_ORDERS[by], reverse=True)[: self.count]

    def _belongs(self, found: SampleParity, by: str) -> bool:
        """Whether a sample is among the worst so far, of those that differ at all."""
        key, ranked = _ORDERS[by], self.kept[by]
        return key(found)[0] > 0 and (len(ranked) < self.count or bool(ranked and key(found) > key(ranked[-1])))

    def worst(self) -> tuple[SampleParity, ...]:
        """The samples that decide most differently, then those with the largest errors, each once."""
        scale = 1.0 if self.counted else float(np.sqrt(self.squares / max(1, self.samples)))
        chosen = {id(found): found for ranked in self.kept.values() for found in ranked}
        return tuple(replace(found, relative_l2=found.relative_l2 / (scale or 1.0)) for found in chosen.values())

    def agreement(self) -> tuple[tuple[int, int, int], ...]:
        """(the original's class, the engine's class, samples), of the pairs that occur."""
        return tuple((*pair, count) for pair, count in sorted(self.answers.items()))


def _gap(ours: Array, theirs: Array) -> Array:
    """The absolute error; infinite where only one side is a number, or neither is and they differ."""
    if are_detections(theirs[None]):
        ours = beside(ours[None], theirs[None])[0]
    with np.errstate(invalid="ignore"):
        gap = np.abs(ours - theirs)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    return np.where(same, 0.0, np.where(np.isnan(gap), np.inf, gap))
