"""Which of several engines is the fastest, beyond the noise of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from edgeattn.backends.base import Progress
from edgeattn.profile import measure
from edgeattn.profile.paired import MIN_GAIN, Times, fastest, ratios

FEWEST_ROUNDS = 6  # by luck alone, one of two equals wins all of them once in 64 times
ROUNDS = (15, 30, 60)  # after which it is asked whether the fastest is known
ROUND_S = 0.1  # for each engine
BUDGET_S = 60.0  # of measuring, after which the fewest rounds are enough


def timed(
    calls: Mapping[str, Callable[[], object]], progress: Progress, eligible: Collection[str] | None = None
) -> dict[str, Times]:
    """Time engines in rounds, all of them in turn in each, until it is clear who of those `eligible` is the fastest."""
    times: dict[str, Times] = dict.fromkeys(calls, ())
    rivals = calls.keys() if eligible is None else eligible
    start = time.perf_counter()
    for count in range(ROUNDS[-1]):
        late = time.perf_counter() - start >= BUDGET_S
        if count >= FEWEST_ROUNDS and late:
            break
        if count in ROUNDS and _is_settled({name: times[name] for name in rivals}):
            break
        progress("measuring", count / next(most for most in ROUNDS if most > count))
        found = measure(calls, warmup_s=0.0 if count else 0.2, duration_s=ROUND_S, min_runs=1)
        times = {name: (*own, found[name].p50_ms) for name, own in times.items()}
    return times


def _is_settled(times: Mapping[str, Times]) -> bool:
    """Whether none seems faster than the fastest, with no proof yet."""
    if not times:
        return True
    best = times[fastest(times)]
    return all(statistics.median(ratios(own, best)) > 1 - MIN_GAIN for own in times.values())


def verdict(name: str, names: Sequence[str], times: Mapping[str, Times], best: str) -> str:
    """Why one of `names` won or lost, by its ratio to the winner in each round."""
    if name == best:
        rivals = [statistics.median(ratios(times[other], times[best])) for other in names if other != best]
        if not rivals:
            return "chosen: the only one" + (" within the budget" if len(times) > 1 else "")
        return (
            f"chosen: the next takes {min(rivals):.2f} times as long{', within the noise' if min(rivals) < 1 else ''}"
        )
    found = ratios(times[name], times[best])
    within = " and comes later: no faster beyond the noise" if statistics.median(found) < 1 else ""
    return f"{statistics.median(found):.2f} times the chosen ({found[0]:.2f} to {found[-1]:.2f}){within}"
