"""Building candidates, judging them, and timing the good ones against each other."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgeattn.backends import open_session
from edgeattn.backends.base import Progress
from edgeattn.build import BuildReport
from edgeattn.engine import read_sidecar
from edgeattn.errors import EdgeAttnError, InputError, UsageError, one_line
from edgeattn.profile.paired import Times, beats, fastest
from edgeattn.search.budget import Accuracy, Judge
from edgeattn.search.candidates import Candidate
from edgeattn.search.journal import Journal
from edgeattn.search.timing import timed, verdict
from edgeattn.tensors import random_feeds


class Trial:
    """What came of each candidate so far.

    `best` is the fastest that keeps the budget, `ms` its and the others' times: medians, in proportion to the best of
    their own round of measuring, since a machine is not as fast in one minute as in the next.
    """

    def __init__(
        self,
        build: Callable[[Candidate, Path], BuildReport],
        judge: Judge | None,
        journal: Journal,
        builds: int,
        progress: Progress,
    ) -> None:
        self.build, self.judge, self.journal, self.left, self.progress = build, judge, journal, builds, progress
        self.candidates: dict[str, Candidate] = {}
        self.reports: dict[str, BuildReport] = {}
        self.paths: dict[str, Path] = {}
        self.accuracy: dict[str, Accuracy | None] = {}
        self.ms: dict[str, float] = {}
        self.faster: set[tuple[str, str]] = set()  # (one, other): beyond the noise, measured side by side
        self.rows: dict[str, dict[str, Any]] = {}
        self.errors: list[Exception] = []
        self.best = ""

    def run(self, candidates: Sequence[Candidate], beside: Sequence[str] = ()) -> None:
        """Build these, judge them, and time them beside the best so far and others that were built before.

        Raises:
            EdgeAttnError: none of all candidates so far is any good; the error of the first.
        """
        new = [item for item in candidates if item.name not in self.rows][: max(self.left, 0)]
        with contextlib.ExitStack() as stack:
            calls: dict[str, Callable[[], object]] = {}
            for candidate in new:
                if call := self._tried(candidate, stack):
                    calls[candidate.name] = call
            if not self.best and not calls:
                raise self.errors[0]
            if calls:
                known = dict.fromkeys(filter(None, [self.best, *beside]))
                self._measure({**{name: self._opened(name, stack) for name in known}, **calls})

    def keeps(self, name: str) -> bool:
        """Whether a candidate is within the budget; what is not lowered at all is what the others are held against."""
        accuracy = self.accuracy.get(name)
        return accuracy is None or not accuracy.failures or not self.candidates[name].precision

    def improved(self, name: str) -> tuple[str, ...]:
        """The steps that improve the INT8 of a candidate that was built."""
        return tuple(read_sidecar(self.paths[name]).config["improve"])

    def _tried(self, candidate: Candidate, stack: contextlib.ExitStack) -> Callable[[], object] | None:
        """Build, judge and open a candidate; None where that fails."""
        try:
            self._settle(candidate)
            return self._opened(candidate.name, stack)
        except Exception as err:  # a fault in one way costs that way, not the search
            if isinstance(err, (UsageError, InputError)) and not self.best:
                raise
            known = isinstance(err, EdgeAttnError)
            self.errors.append(err)
            self._note(candidate, f"failed: {err}" if known else f"failed: {type(err).__name__}: {one_line(err)}")
            return None

    def _settle(self, candidate: Candidate) -> None:
        """Build and judge a candidate, or find that this was done before an interruption."""
        name = candidate.name
        self.left -= 1
        if known := self.journal.known(name):
            self.paths[name], self.accuracy[name] = known
        else:
            self.progress(f"building {name}", None)
            if refusal := self.journal.started(name):
                raise EdgeAttnError(refusal)
            path = self.journal.engine(name)
            try:
                self.reports[name] = self.build(candidate, path)
                self.accuracy[name] = self._judged(candidate, path)
            except KeyboardInterrupt:
                self.journal.interrupted(name)
                raise
            self.paths[name] = path
            self.journal.built(name, self.accuracy[name])
        self.candidates[name] = candidate

    def _judged(self, candidate: Candidate, path: Path) -> Accuracy | None:
        if self.judge is None:
            return None
        self.progress(f"judging {candidate.name}", None)
        with open_session(path) as session:
            return self.judge.measure(session, candidate.precision or "float32")

    def _opened(self, name: str, stack: contextlib.ExitStack) -> Callable[[], object]:
        """An engine, open until this round ends, that has run once at its optimal shapes."""
        session = stack.enter_context(open_session(self.paths[name]))
        shapes = {name: spread.opt for name, spread in session.profile.items()}
        call = partial(session.run, random_feeds(session.inputs, shapes, seed=0))
        call()
        return call

    def _measure(self, calls: dict[str, Callable[[], object]]) -> None:
        times = timed(calls, self.progress, [name for name in calls if self.keeps(name)])
        anchor, *_ = times
        scale = self.ms.get(anchor, statistics.median(times[anchor]))
        for name, own in times.items():
            ratios = [one / other for one, other in zip(own, times[anchor], strict=True)]
            self.ms.setdefault(name, scale * statistics.median(ratios))
        self.faster |= {(one, other) for one in times for other in times if beats(times[one], times[other])}
        good = {name: own for name, own in times.items() if self.keeps(name)}
        if good:
            self.best = fastest(good)
        for name in times:
            self._note(self.candidates[name], self._verdict(name, times, good))

    def _verdict(self, name: str, times: dict[str, Times], good: dict[str, Times]) -> str:
        accuracy = self.accuracy.get(name)
        if accuracy and not self.keeps(name):
            return f"{'; '.join(accuracy.failures)} ({self.ms[name] / self.ms[self.best]:.2f} times the chosen)"
        return verdict(name, list(good), times, self.best)

    def _note(self, candidate: Candidate, why: str) -> None:
        accuracy = self.accuracy.get(candidate.name)
        self.rows[candidate.name] = {
            "candidate": candidate.name,
            "backend": candidate.backend,
            "precision": candidate.precision,
            "forms": dict(candidate.forms),
            "high": list(candidate.high),
            "threads": candidate.threads,
            "ms": self.ms.get(candidate.name),
            "accuracy": dict(accuracy.values) if accuracy else {},
            "drops": self._drops(accuracy),
            "verdict": why,
        }

    def _drops(self, accuracy: Accuracy | None) -> dict[str, float]:
        """What the metrics of the budget lose; of SQNR, what is left."""
        if self.judge is None or accuracy is None:
            return {}
        found = {**accuracy.drops, "sqnr": accuracy.values["sqnr"]}
        return {metric: found[metric] for metric in self.judge.budget.max_drop if metric in found}
