"""What a bisection found: the curve of errors, the first section that fails, and the ladder of remedies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeattn.reports.text import few, number, table

MUCH = 0.8  # of two times: less is worth leaving the more conservative remedy for


@dataclass(frozen=True)
class SectionParity:
    """One section of the engine, fed what the original computes there.

    `relative_l2` is its own error at the output that is farthest off, `limit_l2` what is allowed there, and
    `accumulated_l2` the error of the whole engine at that place, None where it was not seen. `failures` says in words
    what is wrong, `unknown` why it could not be judged. `kind` is `attention` or `between`.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    relative_l2: float = math.nan
    limit_l2: float = math.nan
    relative_max: float = math.nan
    limit_max: float = math.nan
    accumulated_l2: float | None = None
    failures: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def passed(self) -> bool:
        return not self.failures and not self.unknown

    @property
    def verdict(self) -> str:
        """In a word."""
        return "FAILED" if self.failures else f"not judged: {self.unknown}" if self.unknown else "ok"


@dataclass(frozen=True)
class Culprit:
    """The fewest nodes of a failing section that still fail together, how, and the innermost module around them."""

    section: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    failures: tuple[str, ...]
    module: str = ""

    def __str__(self) -> str:
        pairs = [f"{kind} {name!r}" for kind, name in zip(self.operators, self.nodes, strict=True)]
        inside = f" in {self.module}" if self.module else ""
        return f"{few(pairs, 4)}{inside}: {'; '.join(self.failures[:1])}"


@dataclass(frozen=True)
class Rung:
    """A remedy that was tried on the whole engine.

    `command` applies it. `relative_l2` is the error at the worst output, `time_ratio` its median time over that of the
    engine as it is; None where it could not be built, which `why` says.
    """

    remedy: str
    command: str
    cures: bool
    relative_l2: float | None = None
    time_ratio: float | None = None
    why: str = ""


@dataclass(frozen=True)
class BisectReport:
    """Where an engine departs from its original, and what cures it.

    `reasons` is why the whole engine fails, empty where it does not. `where` names the samples and shapes at which it
    fails, on which all else was seen. `first` is the first section that fails when it is fed what the original computes
    there; empty where none does.
    """

    engine: str
    against: str
    backend: str
    precision: str
    where: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    sections: tuple[SectionParity, ...] = ()
    culprits: tuple[Culprit, ...] = ()
    ladder: tuple[Rung, ...] = ()
    notes: tuple[str, ...] = ()
    builds: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the whole engine says what its original says."""
        return not self.reasons

    @property
    def first(self) -> str:
        """The name of the first section that fails by itself."""
        return next((section.name for section in self.sections if section.failures), "")

    @property
    def remedy(self) -> Rung | None:
        """The first that cures the engine, unless a later one takes less than four fifths of its time."""
        best: Rung | None = None
        for rung in self.ladder:
            if rung.cures and (best is None or (rung.time_ratio or 0) < MUCH * (best.time_ratio or 0)):
                best = rung
        return best

    @property
    def verdict(self) -> str:
        """The last lines: what breaks first, and what to do."""
        if self.passed:
            return (
                f"PASSED: {self.engine} says what {self.against} says on all it was shown; there is nothing to look for"
            )
        failing = [section for section in self.sections if section.failures]
        if failing:
            more = f" (and {len(failing) - 1} more)" if len(failing) > 1 else ""
            what = "attention" if failing[0].kind == "attention" else "section"
            found = f"{what} {failing[0].name!r} breaks first{more}"
        elif unknown := [section for section in self.sections if section.unknown]:
            why = f"{unknown[0].name!r}: {unknown[0].unknown}"
            found = f"no section that could be judged fails by itself; {len(unknown)} could not, first {why}"
        elif self.sections:
            found = f"no section fails by itself: errors add up, most of them in {self._steepest().name!r}"
        else:
            found = "; ".join(self.reasons[:1])
        cure = (
            f"{self.remedy.remedy} cures it: {self.remedy.command}"
            if self.remedy
            else "nothing that was tried cures it"
        )
        return f"FAILED: {found}\n{cure if self.ladder else 'no remedy was tried'}"

    def _steepest(self) -> SectionParity:
        """The section with the largest error of its own."""
        return max(self.sections, key=lambda section: 0.0 if math.isnan(section.relative_l2) else section.relative_l2)

    def __str__(self) -> str:
        return "\n\n".join(filter(None, self._parts()))

    def _parts(self) -> Iterator[str]:
        yield table(
            [
                ("engine", f"{self.engine} ({self.backend}, {self.precision})"),
                ("against", self.against),
                *(("fails at", place) for place in self.where),
                *(("because", reason) for reason in self.reasons),
                *(("note", note) for note in self.notes),
            ]
        )
        rows = [
            (item.name, item.kind, str(len(item.nodes)), number(item.relative_l2), number(item.limit_l2),
             "-" if item.accumulated_l2 is None else number(item.accumulated_l2), item.verdict)
            for item in self.sections
        ]  # fmt: skip
        header = ("section", "kind", "nodes", "own error", "limit", "accumulated", "")
        yield table(rows, header, "llrrrrl") if rows else ""
        yield table([("smallest failing part", str(item)) for item in self.culprits]) if self.culprits else ""
        rungs = [
            (rung.remedy, "cures" if rung.cures else "fails" if rung.relative_l2 is not None else "cannot be built",
             "-" if rung.relative_l2 is None else number(rung.relative_l2),
             "-" if rung.time_ratio is None else f"{rung.time_ratio:.2f}")
            for rung in self.ladder
        ]  # fmt: skip
        yield table(rungs, ("remedy", "", "rel. L2", "time"), "llrr") if rungs else ""
        others = [rung for rung in self.ladder if rung.cures and rung is not self.remedy]
        yield table([(f"{rung.remedy}:", rung.command) for rung in others]) if others else ""
        yield self.verdict

    def to_json(self) -> dict[str, Any]:
        """Plain values. A number that is not finite is null: JSON has no word for it."""
        return {
            **asdict(self),
            "passed": self.passed,
            "first": self.first,
            "sections": [{**_plain(section), "passed": section.passed} for section in self.sections],
            "ladder": [_plain(rung) for rung in self.ladder],
            "remedy": _plain(self.remedy) if self.remedy else None,
        }

    def to_html(self) -> str:
        """One self-contained page."""
        from edgeattn.bisect.page import bisect_page

        return bisect_page(self)


def _plain(item: SectionParity | Rung) -> dict[str, Any]:
    unknown = {key for key, value in asdict(item).items() if isinstance(value, float) and not math.isfinite(value)}
    return {key: None if key in unknown else value for key, value in asdict(item).items()}
