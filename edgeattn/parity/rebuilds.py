"""Further builds of an engine, run beside it: what one build says of the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeattn.backends.base import Session
from edgeattn.parity.deviation import Deviation
from edgeattn.parity.findings import OutputParity, RebuildParity
from edgeattn.parity.task import TaskParity
from edgeattn.tolerance import FINITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeattn.tensors import Array, Feeds

__all__ = ["Rebuilt"]


@dataclass
class Rebuilt:
    """One further build: how far it is from the truth and from the engine, and how well it does the task."""

    name: str
    plan_sha256: str
    session: Session
    metrics: TaskParity

    def __post_init__(self) -> None:
        self.errors, self.spread = ([Deviation(spec.name) for spec in self.session.outputs] for _ in range(2))

    def add(
        self,
        names: Sequence[str],
        feeds: Feeds,
        first: Sequence[Array],
        truth: Sequence[Array],
        own: Sequence[Array] | None,
    ) -> list[Array]:
        """Run it on what the engine answered with `first`, and return its outputs.

        Raises:
            InputError: its inputs are others.
            InferenceError: it failed.
        """
        results = self.session.run(feeds)
        got = [results[spec.name] for spec in self.session.outputs]
        for index, output in enumerate(got):
            self.errors[index].add(names, output, truth[index], own[index] if own else None)
            self.spread[index].add(names, output, first[index], None)
        return got

    def judged(self, judge: Callable[[Deviation], OutputParity]) -> RebuildParity:
        """The verdict, by the judge of the engine's own outputs."""
        outputs = [judge(deviation) for deviation in self.errors]
        spread = [deviation.judged(FINITE) for deviation in self.spread]
        figures = self.metrics.result()
        failures = [reason for output in outputs for reason in output.failures]
        failures += [reason for figure in figures for reason in figure.failures]
        return RebuildParity(
            self.name,
            self.plan_sha256,
            max((output.relative_l2 for output in outputs), default=0.0),
            max((output.relative_l2 for output in spread), default=0.0),
            max((output.relative_max for output in spread), default=0.0),
            {figure.name: figure.engine for figure in figures},
            tuple(f"{self.name}: {reason}" for reason in failures),
        )
