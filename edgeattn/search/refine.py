"""From one low precision for the whole network to one for each of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgeattn.search.candidates import Candidate, without
from edgeattn.search.trial import Trial

Parts = Mapping[str, tuple[str, ...]]
MOST_EXTRAS = 3


def refine(trial: Trial, way: Candidate, parts: Parts) -> None:
    """Try which parts of a network should stay out of a way's INT8; the trial's best only improves.

    Where the way keeps the budget, those that are no faster in it. Where it does not, each part is lowered alone;
    then, in the order of time won per noise added, as many together as the budget allows.
    """
    if len(parts) < 2:
        return
    way = dataclasses.replace(way, improve=trial.improved(way.name))  # what helps the whole is not asked of each part
    if trial.keeps(way.name):
        _leave_idle(trial, way, parts)
    else:
        _lower_most(trial, way, parts)


def _leave_idle(trial: Trial, way: Candidate, parts: Parts) -> None:
    alone = {part: without(way, [part], parts) for part in parts}
    trial.run(list(alone.values()), [way.name])
    idle = [part for part, item in alone.items() if (item.name, way.name) in trial.faster and trial.keeps(item.name)]
    if len(idle) < len(parts):
        trial.run([without(way, idle, parts)])


def _lower_most(trial: Trial, way: Candidate, parts: Parts) -> None:
    def only(low: list[str]) -> Candidate:
        return without(way, [part for part in parts if part not in low], parts)

    def kept(low: list[str]) -> bool:
        item = only(low)
        trial.run([item])
        return item.name in trial.ms and trial.keeps(item.name)

    plain, alone = way.floating, {part: only([part]) for part in parts}
    trial.run([plain])
    if plain.name not in trial.ms:  # it failed, or no builds are left
        return
    trial.run(list(alone.values()), [plain.name])
    gains = {part: trial.ms[plain.name] - trial.ms[item.name] for part, item in alone.items() if item.name in trial.ms}
    worth = {part: gain / _noise(trial, alone[part]) for part, gain in gains.items() if gain > 0}
    order = sorted(worth, key=lambda part: worth[part], reverse=True)
    least, most = 0, len(order)
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if kept(order[:middle]) else (least, middle - 1)
    low = order[:least]
    for part in order[least + 1 :][:MOST_EXTRAS]:
        if kept([*low, part]):
            low.append(part)


def _noise(trial: Trial, candidate: Candidate) -> float:
    """The power of a candidate's error, relative to that of the outputs."""
    accuracy = trial.accuracy[candidate.name]
    return max(10 ** (-accuracy.values["sqnr"] / 10), 1e-12) if accuracy else 1.0
