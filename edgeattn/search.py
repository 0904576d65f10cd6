"""Graph -> the fastest engine of those that can run here, measured and not believed: `edgeattn build --best`."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgeattn import files
from edgeattn.backends import BACKENDS, backend_named, open_session
from edgeattn.backends.base import BuildConfig, silent
from edgeattn.build import BuildReport, build_engine, rebuild_command
from edgeattn.engine import Engine, read_engine, sidecar_path, write_engine
from edgeattn.errors import EdgeAttnError, InputError, UnsupportedError, UsageError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph
from edgeattn.lowering import forms
from edgeattn.profile import measure
from edgeattn.tensors import random_feeds

ROUNDS = 15
FEWEST_ROUNDS = 3
ROUND_S = 0.1  # for each candidate
BUDGET_S = 60.0  # of measuring, after which the fewest rounds are enough
MIN_GAIN = 0.01  # less is not worth leaving the first choice for
MOST_GROUPS = 4  # of equal attentions that are tried one by one

Progress = Callable[[str, "float | None"], None]
Times = tuple[float, ...]  # milliseconds of the fastest run of each round: what else runs here only adds to it


@dataclass(frozen=True)
class Candidate:
    """A way to build: a backend, and by the name of an attention the form that differs from the plan."""

    name: str
    backend: str
    forms: Mapping[str, str] = field(default_factory=dict)


def build_best(
    source: Graph | str | Path,
    output: str | Path,
    config: BuildConfig | None = None,
    backend: str = "auto",
    check: bool = True,
) -> BuildReport:
    """Build with every backend that can run here, and each attention in every form it has there; publish the fastest.

    All are built and checked as by `build_engine`, then timed in turns at the optimal shapes on random inputs. The
    first choice of `auto` stays unless another is faster beyond the noise: by 1 % in the median round, and in four
    rounds of five. What fails to build or fails its check is skipped. The sidecar lists them all in `search`.

    Args:
        source: a graph or its file.
        output: where the winner goes, in one step and at the end.
        config: as for `build_engine`, without a lower precision and without targets.
        backend: `auto` for all that can run here, or the one to search in.
        check: see `build_engine`.

    Raises:
        UsageError: a precision or targets are asked for, which are not searched.
        UnsupportedError: no backend can run here, or not the one asked for.
        EdgeAttnError: every candidate failed; the error of the first.
    """
    output, config = Path(output), config or BuildConfig()
    if config.precision not in ("", "float32") or config.targets or config.forms:
        asked = config.precision if config.precision not in ("", "float32") else "targets and forms"
        raise UsageError(f"--best searches on this machine and in the model's own precision: leave {asked} out")
    graph = source if isinstance(source, Graph) else load_graph(source)
    for path in (output, sidecar_path(output)):
        files.output_file(path, *graph.files)
    names = _runnable(backend)
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.locked(output))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeattn-")))
        trial = _Trial(partial(_build, graph, config, check, folder), config.progress, stack)
        trial.run([candidate for name in names for candidate in candidates(graph, name)])
        trial.run(_combined(trial))
        report = trial.reports[trial.best]
        engine = read_engine(report.path)
        choice = ["--best", *(["--backend", backend] if backend != "auto" else [])]
        sidecar = dataclasses.replace(
            engine.sidecar, rebuild=rebuild_command(report.plan, output, choice), search=tuple(trial.rows.values())
        )
        sidecar = write_engine(Engine(engine.plan, sidecar), output)
    plan = dataclasses.replace(report.plan, why=f"the fastest of {len(trial.reports)} that were measured")
    return dataclasses.replace(report, path=output, plan=plan, sidecar=sidecar)


def candidates(graph: Graph, backend: str) -> list[Candidate]:
    """A backend's ways to build a graph: as planned, and with each group of equal attentions in each other form."""
    fused, found = fuse(graph)
    nodes = {node.name: node for node in fused.model.graph}
    others = {item.name: forms(nodes[item.name], backend)[1:] for item in found.found}
    groups: dict[object, list[str]] = {}
    for item in sorted(found.found, key=lambda item: -(item.facts.flops or 0)):
        if others[item.name]:
            key = (item.op, item.variant, *item.facts.sizes.items())
            groups.setdefault(key if key in groups or len(groups) < MOST_GROUPS - 1 else "rest", []).append(item.name)
    ways = [Candidate(backend, backend)]
    for names in groups.values():
        for form in dict.fromkeys(form for name in names for form in others[name]):
            chosen = {name: form for name in names if form in others[name]}
            ways.append(_variant(backend, chosen))
    return ways


def fastest(times: Mapping[str, Times]) -> str:
    """The name that no later one beats beyond the noise: by 1 % in the median round, and in four rounds of five."""
    best, *others = times
    for name in others:
        if _beats(times[name], times[best]):
            best = name
    return best


class _Trial:
    """Builds candidates, times the good ones against each other, and remembers what came of each."""

    def __init__(
        self, build: Callable[[Candidate], BuildReport], progress: Progress, sessions: contextlib.ExitStack
    ) -> None:
        self.build, self.progress, self.sessions = build, progress, sessions
        self.calls: dict[str, Callable[[], object]] = {}
        self.candidates: dict[str, Candidate] = {}
        self.reports: dict[str, BuildReport] = {}
        self.times: dict[str, Times] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.best = ""

    def run(self, candidates: Sequence[Candidate]) -> None:
        """Build these, and time them and the best so far; where none is good, raise the error of the first."""
        errors = []
        for candidate in candidates:
            self.progress(f"building with {candidate.backend}", None)
            try:
                report = self.build(candidate)
                self.calls[candidate.name] = self._loaded(report.path)
            except (UsageError, InputError):
                raise
            except EdgeAttnError as err:
                errors.append(err)
                self._note(candidate, None, f"failed: {err}")
            else:
                self.reports[candidate.name], self.candidates[candidate.name] = report, candidate
        if not self.reports:
            raise errors[0]
        tried = [name for name in self.reports if name not in self.times]
        if tried:
            names = [*filter(None, [self.best]), *tried]
            self.times.update(_timed({name: self.calls[name] for name in names}, self.progress))
            self.best = fastest({name: self.times[name] for name in names})
            for name in names:
                self._note(self.candidates[name], self.times[name], _verdict(name, names, self.times, self.best))

    def _loaded(self, path: Path) -> Callable[[], object]:
        """An engine, open until the trial ends, that has run once at its optimal shapes."""
        session = self.sessions.enter_context(open_session(path))
        shapes = {name: spread.opt for name, spread in session.profile.items()}
        call = partial(session.run, random_feeds(session.inputs, shapes, seed=0))
        call()
        return call

    def _note(self, candidate: Candidate, times: Times | None, verdict: str) -> None:
        self.rows[candidate.name] = {
            "candidate": candidate.name,
            "backend": candidate.backend,
            "forms": dict(candidate.forms),
            "ms": statistics.median(times) if times else None,
            "verdict": verdict,
        }


def _runnable(backend: str) -> list[str]:
    """The backends that can run here, the preferred one first, or the one asked for."""
    missing = {name: backend_named(name).missing() for name in (BACKENDS if backend == "auto" else [backend])}
    names = [name for name, reasons in missing.items() if not reasons]
    if not names:
        raise UnsupportedError(
            "no backend can run here", [f"not {name}: {reasons[0]}" for name, reasons in missing.items()]
        )
    return names


def _build(graph: Graph, config: BuildConfig, check: bool, folder: Path, candidate: Candidate) -> BuildReport:
    path = folder / f"{len(list(folder.iterdir()))}.engine"
    config = dataclasses.replace(config, forms=candidate.forms, progress=silent)
    return build_engine(graph, path, config, candidate.backend, check)


def _combined(trial: _Trial) -> list[Candidate]:
    """For each backend, the forms together that each made it faster, where there are several."""
    ways = []
    for backend in {candidate.backend: None for candidate in trial.candidates.values()}:
        own = [item for item in trial.candidates.values() if item.backend == backend and item.forms]
        planned = trial.times.get(backend)
        gains = [item for item in own if planned and _beats(trial.times[item.name], planned)]
        chosen = {name: form for item in gains for name, form in item.forms.items()}
        if len(gains) > 1:
            ways.append(_variant(backend, chosen))
    return ways


def _variant(backend: str, chosen: Mapping[str, str]) -> Candidate:
    """A candidate under a name of its own: the forms, and the attentions that take them."""
    parts = []
    for form in dict.fromkeys(chosen.values()):
        first, *others = (name for name, its in chosen.items() if its == form)
        parts.append(f"{form} for {first}" + (f" and {len(others)} more" if others else ""))
    return Candidate(", ".join([backend, *parts]), backend, chosen)


def _timed(calls: Mapping[str, Callable[[], object]], progress: Progress) -> dict[str, Times]:
    """Time engines in rounds, all of them in turn in each."""
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(rounds) < FEWEST_ROUNDS or (len(rounds) < ROUNDS and time.perf_counter() - start < BUDGET_S):
        progress("measuring", len(rounds) / ROUNDS)
        found = measure(calls, warmup_s=0.0 if rounds else 0.2, duration_s=ROUND_S, min_runs=1)
        rounds.append({name: report.min_ms for name, report in found.items()})
    return {name: tuple(row[name] for row in rounds) for name in calls}


def _beats(new: Times, old: Times) -> bool:
    """Whether it is faster beyond the noise."""
    ratios = sorted(after / before for after, before in zip(new, old, strict=True))
    return statistics.median(ratios) <= 1 - MIN_GAIN and ratios[-1 - len(ratios) // 5] < 1


def _verdict(name: str, names: Sequence[str], times: Mapping[str, Times], best: str) -> str:
    """Why a candidate won or lost, by its ratio to the winner in each round."""

    def ratios(other: str) -> list[float]:
        return sorted(own / least for own, least in zip(times[other], times[best], strict=True))

    if name == best:
        rivals = [statistics.median(ratios(other)) for other in names if other != best]
        return f"chosen: the next takes {min(rivals):.2f} times as long" if rivals else "chosen: the only one"
    found = ratios(name)
    within = " and comes later: no faster beyond the noise" if statistics.median(found) < 1 else ""
    return f"{statistics.median(found):.2f} times the chosen ({found[0]:.2f} to {found[-1]:.2f}){within}"
