"""From one low precision for the whole network to one for each of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from edgeattn.search.candidates import Candidate, without
from edgeattn.search.trial import Trial

Parts = Mapping[str, tuple[str, ...]]
MOST_EXTRAS = 3


def refine(trial: Trial, ways: Sequence[Candidate], parts: Parts) -> None:
    """Try which parts of a network should stay out of INT8, in each of these ways; the trial's best only improves.

    Where a way keeps the budget, those that are no faster in it. Where it does not, each part is lowered alone; then,
    in the order of time won per noise added, as many together as the budget allows. What a part alone gains and costs
    is asked once of a backend, in its first way, since what stays beside INT8 changes little of it; the others begin
    with the parts of the best so far. A backend whose whole network in INT8 is slower than that best is not asked.
    """
    if len(parts) < 2:
        return
    asked: dict[tuple[str, bool], list[str]] = {}
    for way in ways:
        # What helps the whole is not asked of each part.
        better = dataclasses.replace(way, improve=trial.improved(way.name))
        kept = trial.keeps(way.name)
        ask, take = (_idle, _leave_out) if kept else (_by_worth, _lower)
        if (way.backend, kept) in asked:
            best = trial.candidates[trial.best]
            trial.run([dataclasses.replace(better, high=best.high, but=best.but)])
        elif asked and not kept and trial.ms[way.name] >= trial.ms[trial.best]:
            continue  # its parts would hardly gain what all of it does not
        else:
            asked[way.backend, kept] = ask(trial, better, parts)
        take(trial, better, parts, asked[way.backend, kept])


def _idle(trial: Trial, way: Candidate, parts: Parts) -> list[str]:
    """The parts without which a way is faster."""
    alone = {part: without(way, [part], parts) for part in parts}
    trial.run(list(alone.values()), [way.name])
    return [part for part, item in alone.items() if (item.name, way.name) in trial.faster and trial.keeps(item.name)]


def _leave_out(trial: Trial, way: Candidate, parts: Parts, idle: Sequence[str]) -> None:
    if len(idle) < len(parts):
        trial.run([without(way, idle, parts)])


def _by_worth(trial: Trial, way: Candidate, parts: Parts) -> list[str]:
    """The parts that a way makes faster, those first that it gains most by for the noise."""
    plain, alone = way.floating, {part: _only(way, [part], parts) for part in parts}
    trial.run([plain])
    if plain.name not in trial.ms:  # it failed, or no builds are left
        return []
    trial.run(list(alone.values()), [plain.name])
    gains = {part: trial.ms[plain.name] - trial.ms[item.name] for part, item in alone.items() if item.name in trial.ms}
    worth = {part: gain / _noise(trial, alone[part]) for part, gain in gains.items() if gain > 0}
    return sorted(worth, key=lambda part: worth[part], reverse=True)


def _lower(trial: Trial, way: Candidate, parts: Parts, order: Sequence[str]) -> None:
    """Lower as many parts as the budget allows, from the first on, and then single ones of the next."""

    def kept(low: Sequence[str]) -> bool:
        item = _only(way, low, parts)
        trial.run([item])
        return item.name in trial.ms and trial.keeps(item.name)

    least, most = 0, len(order)
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if kept(order[:middle]) else (least, middle - 1)
    low = list(order[:least])
    for part in order[least + 1 :][:MOST_EXTRAS]:
        if kept([*low, part]):
            low.append(part)


def _only(way: Candidate, low: Sequence[str], parts: Parts) -> Candidate:
    return without(way, [part for part in parts if part not in low], parts)


def _noise(trial: Trial, candidate: Candidate) -> float:
    """The power of a candidate's error, relative to that of the outputs."""
    accuracy = trial.accuracy[candidate.name]
    return max(10 ** (-accuracy.values["sqnr"] / 10), 1e-12) if accuracy else 1.0
