"""Which of several engines is the fastest, beyond the noise of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from edgeattn.backends.base import Progress
from edgeattn.profile import measure

ROUNDS = 15
FEWEST_ROUNDS = 3
ROUND_S = 0.1  # for each engine
BUDGET_S = 60.0  # of measuring, after which the fewest rounds are enough
MIN_GAIN = 0.01  # less is not worth leaving the first choice for

Times = tuple[float, ...]  # milliseconds of the median run of each round; of short runs the fastest are luck


def timed(calls: Mapping[str, Callable[[], object]], progress: Progress) -> dict[str, Times]:
    """Time engines in rounds, all of them in turn in each."""
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(rounds) < FEWEST_ROUNDS or (len(rounds) < ROUNDS and time.perf_counter() - start < BUDGET_S):
        progress("measuring", len(rounds) / ROUNDS)
        found = measure(calls, warmup_s=0.0 if rounds else 0.2, duration_s=ROUND_S, min_runs=1)
        rounds.append({name: report.p50_ms for name, report in found.items()})
    return {name: tuple(row[name] for row in rounds) for name in calls}


def fastest(times: Mapping[str, Times]) -> str:
    """The name that no later one beats beyond the noise: by 1 % in the median round, and in four rounds of five."""
    best, *others = times
    for name in others:
        if beats(times[name], times[best]):
            best = name
    return best


def beats(new: Times, old: Times) -> bool:
    """Whether it is faster beyond the noise."""
    ratios = sorted(after / before for after, before in zip(new, old, strict=True))
    return statistics.median(ratios) <= 1 - MIN_GAIN and ratios[-1 - len(ratios) // 5] < 1


def verdict(name: str, names: Sequence[str], times: Mapping[str, Times], best: str) -> str:
    """Why one of `names` won or lost, by its ratio to the winner in each round."""

    def ratios(other: str) -> list[float]:
        return sorted(own / least for own, least in zip(times[other], times[best], strict=True))

    if name == best:
        rivals = [statistics.median(ratios(other)) for other in names if other != best]
        if not rivals:
            return "chosen: the only one" + (" within the budget" if len(times) > 1 else "")
        return (
            f"chosen: the next takes {min(rivals):.2f} times as long{', within the noise' if min(rivals) < 1 else ''}"
        )
    found = ratios(name)
    within = " and comes later: no faster beyond the noise" if statistics.median(found) < 1 else ""
    return f"{statistics.median(found):.2f} times the chosen ({found[0]:.2f} to {found[-1]:.2f}){within}"
