"""Graph -> the fastest engine of those that can run here, measured and not believed: `edgeattn build --best`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeattn import files
from edgeattn.backends import BACKENDS, backend_named
from edgeattn.backends.base import BuildConfig
from edgeattn.build import BuildReport, build_engine, rebuild_command
from edgeattn.calibrate import calibrate
from edgeattn.engine import Engine, Sidecar, read_engine, sidecar_path, write_engine
from edgeattn.errors import UnsupportedError, UsageError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.images import plain_recipe
from edgeattn.parity import reference_from_graph
from edgeattn.precision.ranges import Ranges, load_ranges, save_ranges
from edgeattn.profile.paired import fastest
from edgeattn.search.budget import Budget, Judge
from edgeattn.search.candidates import THREADED, Candidate, candidates, lowered
from edgeattn.search.groups import groups
from edgeattn.search.journal import Journal, journal
from edgeattn.search.refine import refine
from edgeattn.search.trial import Trial

__all__ = ["Budget", "build_best", "candidates", "fastest"]

SHORT_MS = 2.0


def build_best(
    source: Graph | str | Path,
    output: str | Path,
    config: BuildConfig | None = None,
    backend: str = "auto",
    check: bool = True,
    *,
    budget: Budget | None = None,
) -> BuildReport:
    """Build in every way that may be the fastest, and publish the one that is.

    Without a budget: with every backend that can run here, each attention in every form it has there, and the graph as
    it was exported, all in the model's own precision. With one: the best of these in each lower precision too, judged
    by the half of the budget's samples that did not calibrate; then the fastest of those part by part
    (`edgeattn.search.refine`), as long as there are builds left. What takes less than 2 ms on a CPU is tried in one
    thread too: others take some microseconds a layer to begin.

    What keeps the model's precision is checked as by `build_engine`. All are timed in turns at the optimal shapes on
    random inputs. The first choice of `auto` stays unless another is faster beyond the noise: by 1 % in the median
    round, and at all with 95 % confidence; so the result is never slower or less accurate than plain float32. What
    fails is skipped. The sidecar lists all of them in `search`; with a budget, `<output>.onnx` is the graph that was
    chosen, as its backend got it. Interrupted, the same call goes on where it was.

    Args:
        source: a graph or its file.
        output: where the winner goes, in one step and at the end.
        config: as for `build_engine`, without a lower precision and without targets.
        backend: `auto` for all that can run here, or the one to search in.
        check: see `build_engine`.
        budget: what accuracy may cost; None to keep the model's precision.

    Raises:
        UsageError: a precision or targets are asked for, which are not searched.
        InputError: the budget's samples do not fit the model.
        UnsupportedError: no backend can run here, or not the one asked for.
        EdgeAttnError: every candidate failed; the error of the first.
    """
    output, config = Path(output), config or BuildConfig()
    if config.precision not in ("", "float32") or config.targets or config.forms or not config.fuse:
        asked = config.precision if config.precision not in ("", "float32") else "targets, forms and no fusing"
        raise UsageError(f"--best searches on this machine, and the precision too: leave {asked} out")
    graph = source if isinstance(source, Graph) else load_graph(source)
    chosen = output.with_name(f"{output.name}.onnx")
    for path in (output, sidecar_path(output), *([chosen] if budget else [])):
        files.output_file(path, *graph.files)
    names = _runnable(backend)
    with files.locked(output), journal(output, _identity(graph, config, names, check, budget)) as kept:
        search = _Search(graph, config, check, budget, kept)
        trial = search.run(names)
        best = trial.candidates[trial.best]
        report = trial.reports.get(best.name) or search.build(best, trial.paths[best.name])
        choice = ["--best", *(["--backend", backend] if backend != "auto" else []), *(budget.words() if budget else [])]
        as_asked = dataclasses.replace(
            report.plan, config=dataclasses.replace(config, profile=report.plan.config.profile)
        )
        sidecar = _published(trial, output, rebuild_command(as_asked, output, choice), budget)
        if budget:
            save_graph(report.plan.typed, chosen)
    plan = dataclasses.replace(report.plan, why=f"the fastest of {len(trial.ms)} that were measured")
    return dataclasses.replace(report, path=output, plan=plan, sidecar=sidecar)


def _published(trial: Trial, output: Path, rebuild: str, budget: Budget | None) -> Sidecar:
    """Put the best engine where it was asked for, with all that was tried in its sidecar."""
    engine, accuracy = read_engine(trial.paths[trial.best]), trial.accuracy[trial.best]
    sidecar = dataclasses.replace(engine.sidecar, rebuild=rebuild, search=tuple(_front(trial.rows, budget)))
    if accuracy and trial.candidates[trial.best].precision:
        sidecar = dataclasses.replace(sidecar, verified={"against": "graph", **dataclasses.asdict(accuracy)})
    return write_engine(Engine(engine.plan, sidecar), output)


class _Search:
    """One search: the graph, how to build from it, and what the budget's samples say."""

    def __init__(self, graph: Graph, config: BuildConfig, check: bool, budget: Budget | None, journal: Journal) -> None:
        self.graph, self.config, self.check, self.budget, self.journal = graph, config, check, budget, journal
        self.ranges: Ranges | None = None
        self.judge: Judge | None = None
        if budget:
            self.calibrating, judging = budget.halves()
            self.judge = Judge(reference_from_graph(graph), judging, budget)

    def run(self, names: Sequence[str]) -> Trial:
        """Try what there is to try."""
        most = self.budget.builds if self.budget else 10**6
        trial = Trial(self.build, self.judge, self.journal, most, self.config.progress)
        trial.run([candidate for name in names for candidate in candidates(self.graph, name)])
        trial.run(_combined(trial))
        if self.budget:
            floating = [_best_of(trial, name, fused=True) for name in names]  # by whose roles INT8 is placed
            trial.run([way for item in floating if item for way in lowered(item)])
        if self.config.threads is None:
            trial.run(_on_one_thread(trial, names))
        if self.budget:
            refine(trial, _promising(trial), groups(fuse(self.graph)[0]))
        return trial

    def build(self, candidate: Candidate, path: Path) -> BuildReport:
        """Build one candidate; one in a lower precision is checked by the judge."""
        config = candidate.config(self.config)
        if self.budget is None or not candidate.precision:
            return build_engine(self.graph, path, config, candidate.backend, self.check)
        if self.ranges is None:
            self.ranges = self._observed(self.budget)
        return build_engine(
            self.graph, path, config, candidate.backend, False, ranges=self.ranges, samples=self.calibrating
        )

    def _observed(self, budget: Budget) -> Ranges:
        """What calibration observes, or did before an interruption."""
        path = self.journal.folder / "ranges.json"
        if not path.exists():
            state, progress = path.with_suffix(".part"), self.config.progress
            save_ranges(calibrate(self.graph, self.calibrating, budget.settings, state=state, progress=progress), path)
        return load_ranges(path)


def _runnable(backend: str) -> list[str]:
    """The backends that can run here, the preferred one first, or the one asked for."""
    missing = {name: backend_named(name).missing() for name in (BACKENDS if backend == "auto" else [backend])}
    names = [name for name, reasons in missing.items() if not reasons]
    if not names:
        raise UnsupportedError(
            "no backend can run here", [f"not {name}: {reasons[0]}" for name, reasons in missing.items()]
        )
    return names


def _identity(
    graph: Graph, config: BuildConfig, names: Sequence[str], check: bool, budget: Budget | None
) -> dict[str, Any]:
    """All that decides what a search finds, but the machine's speed and how many builds it may take."""
    settings = {key: value for key, value in vars(config).items() if key != "progress"}
    found = {"graph": graph.sha256, "config": settings, "backends": names, "check": check}
    if budget:
        samples = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in budget.data.files]
        calibration = {**vars(budget.settings), "recipe": plain_recipe(budget.data.recipe)}
        found |= {
            "samples": samples,
            "budget": dict(budget.max_drop),
            "task": budget.task,
            "calibration": calibration,
        }
    return found


def _combined(trial: Trial) -> list[Candidate]:
    """For each backend, the forms together that each made it faster, where there are several."""
    ways = []
    for backend in {candidate.backend: None for candidate in trial.candidates.values()}:
        own = [item for item in trial.candidates.values() if item.backend == backend and item.forms]
        gains = [item for item in own if (item.name, backend) in trial.faster]
        if len(gains) > 1:
            ways.append(Candidate(backend, {name: form for item in gains for name, form in item.forms.items()}))
    return ways


def _best_of(trial: Trial, backend: str, fused: bool = False) -> Candidate | None:
    """A backend's fastest way so far that keeps the budget."""
    own = [
        name
        for name, item in trial.candidates.items()
        if item.backend == backend and name in trial.ms and trial.keeps(name) and item.fuse >= fused
    ]
    return trial.candidates[min(own, key=lambda name: trial.ms[name])] if own else None


def _on_one_thread(trial: Trial, names: Sequence[str]) -> list[Candidate]:
    """The fastest of each backend in one thread, where it is so short that threads may cost more than they save."""
    ways = [_best_of(trial, name) for name in names if name in THREADED]
    return [dataclasses.replace(way, threads=1) for way in ways if way and trial.ms[way.name] < SHORT_MS]


def _promising(trial: Trial) -> list[Candidate]:
    """The ways in INT8 that are worth going into part by part: the best, and those that would be if they were right."""
    ways = [name for name, item in trial.candidates.items() if item.precision == "int8" and name in trial.ms]
    wrong = [name for name in ways if not trial.keeps(name) and trial.ms[name] < trial.ms[trial.best]]
    names = sorted([*wrong, *({trial.best} & set(ways))], key=lambda name: trial.ms[name])
    return [trial.candidates[name] for name in names]


def _front(rows: Mapping[str, dict[str, Any]], budget: Budget | None) -> Iterable[dict[str, Any]]:
    """The rows, with a budget marked where no other is both faster and as accurate: the Pareto front."""
    for row in rows.values():
        if budget and row["ms"] is not None:
            cost = _costs(row, budget)
            others = [(other["ms"], _costs(other, budget)) for other in rows.values() if other["ms"] is not None]
            row["pareto"] = not any(
                ms <= row["ms"] and theirs <= cost and (ms, theirs) != (row["ms"], cost) for ms, theirs in others
            )
        yield row


def _costs(row: Mapping[str, Any], budget: Budget) -> float:
    """By how much a row is worse than the model, in the budget's first metric."""
    metric = next(iter(budget.max_drop))
    drop = float(row["drops"].get(metric, 0.0))
    return -drop if metric == "sqnr" else drop
