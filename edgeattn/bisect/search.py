"""Which sections of an engine fail by themselves, and the fewest nodes of each that do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from edgeattn.bisect.bench import Bench
from edgeattn.bisect.cuts import Section, common_modules
from edgeattn.bisect.report import Culprit, SectionParity

MOST_SECTIONS = 32
MOST_CULPRITS = 3  # failing sections that are looked into


def judged_sections(bench: Bench) -> dict[Section, SectionParity]:
    """All sections, each judged by itself, with the error that the whole engine has gathered at its end."""
    sections = bench.layout.sections(min(MOST_SECTIONS, max(2, bench.left // 2)))
    judged = {section: bench.judge(section) for section in sections}
    gathered = bench.accumulated([name for section in sections for name in section.outputs])
    return {
        section: dataclasses.replace(
            found, accumulated_l2=max((gathered[name] for name in section.outputs if name in gathered), default=None)
        )
        for section, found in judged.items()
    }


def failing_across(bench: Bench, sections: Mapping[Section, SectionParity]) -> Section | None:
    """What fails only in one piece, where no section fails and errors do not add up: a fault in what is fused.

    A cut, or an output more, keeps a backend from fusing there: two sections may fail together of which neither does.
    """
    if not sections or any(found.failures for found in sections.values()):
        return None
    *_, last = sections.values()
    gathered = math.inf if last.accumulated_l2 is None else last.accumulated_l2
    if not gathered <= last.limit_l2:
        return None
    pairs = [(one.first, two.last) for one, two in pairwise(sections)]
    whole = (0, len(bench.layout.steps))
    return next((bench.layout.section(*ends) for ends in dict.fromkeys([*pairs, whole]) if bench.fails(*ends)), None)


def culprit_in(bench: Bench, section: Section, reserve: int) -> Culprit:
    """The fewest nodes of a failing section that fail, as far as builds go, of which `reserve` are left.

    It is halved as long as a half fails when it is fed what the original computes there. Where neither does, the halves
    fail only together; then it is shortened from both ends.
    """
    first, last = section.first, section.last
    while last - first > 1 and bench.left > reserve:
        middle = bench.layout.middle(first, last)
        if middle is None:
            break
        if bench.fails(first, middle):
            last = middle
        elif bench.fails(middle, last):
            first = middle
        else:
            first, last = _shortened(bench, first, last, reserve)
            break
    nodes = bench.layout.steps[first:last]
    return Culprit(
        bench.layout.name(section),
        tuple(node.name or "" for node in nodes),
        tuple(node.op_type for node in nodes),
        bench.judge(bench.layout.section(first, last)).failures,
        next(iter(common_modules(nodes)[-1:]), ""),
    )


def _shortened(bench: Bench, first: int, last: int, reserve: int) -> tuple[int, int]:
    """The latest start, and for it the earliest end, from and to which the steps still fail, each found by halving."""

    def latest(places: Sequence[int], start: bool, other: int) -> int:
        low, high = 0, len(places) - 1  # the first one fails
        while low < high and bench.left > reserve:
            middle = (low + high + 1) // 2
            fails = bench.fails(places[middle], other) if start else bench.fails(other, places[middle])
            low, high = (middle, high) if fails else (low, middle - 1)
        return places[low]

    inside = [cut for cut in bench.layout.cuts if first < cut < last]
    start = latest([first, *inside], True, last)
    return start, latest([last, *reversed([cut for cut in inside if cut > start])], False, start)
