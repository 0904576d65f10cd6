"""The search part by part, on a machine whose times and errors are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.search.budget import Accuracy
from edgeattn.search.candidates import Candidate
from edgeattn.search.refine import MOST_EXTRAS, refine
from edgeattn.search.trial import Trial

PLAIN, WAY = Candidate("openvino"), Candidate("openvino", precision="int8")
SECOND = Candidate("openvino", precision="int8", rest="bfloat16")
OTHER = Candidate("onnxruntime", precision="int8")
STEPS = ("what helps the whole",)


class Machine:
    """Where INT8 in a part saves some time, adds some noise, and noise adds up; bfloat16 saves in the other parts."""

    def __init__(self, saved: Sequence[float], noise: Sequence[float], most: float, saved_beside: float = 0.0) -> None:
        self.parts = {f"p{place}": (f"n{place}",) for place in range(len(saved))}
        self.saved, self.noise, self.most = (
            dict(zip(self.parts, saved, strict=True)),
            dict(zip(self.parts, noise, strict=True)),
            most,
        )
        self.saved_beside = saved_beside
        self.ms: dict[str, float] = {}
        self.candidates: dict[str, Candidate] = {}
        self.accuracy: dict[str, Accuracy] = {}
        self.faster: set[tuple[str, str]] = set()
        self.best = PLAIN.name
        self.run([PLAIN, WAY, SECOND])

    def cost(self, low: Sequence[str], saved_beside: float = 0.0) -> tuple[float, float]:
        ms = 100 - sum(self.saved[part] for part in low) - saved_beside * (len(self.parts) - len(low))
        return ms, sum(self.noise[part] for part in low)

    def low(self, item: Candidate) -> list[str]:
        return [part for part in self.parts if part not in item.high] if item.precision == "int8" else []

    def run(self, candidates: Sequence[Candidate], beside: Sequence[str] = ()) -> None:
        for item in candidates:
            assert item.improve == STEPS or not item.high
            half = "bfloat16" in (item.precision, item.rest)
            self.ms[item.name], noise = self.cost(self.low(item), self.saved_beside * half)
            self.candidates[item.name] = item
            sqnr = {"sqnr": -10 * math.log10(max(noise, 1e-12))}
            self.accuracy[item.name] = Accuracy(sqnr, {}, ("too much",) if noise > self.most else ())
            if self.keeps(item.name) and 1.01 * self.ms[item.name] < self.ms[self.best]:
                self.best = item.name
        names = list(self.ms)
        self.faster = {(a, b) for a in names for b in names if 1.01 * self.ms[a] < self.ms[b]}

    def improved(self, name: str) -> tuple[str, ...]:
        assert name in (WAY.name, SECOND.name, OTHER.name)
        return STEPS

    def keeps(self, name: str) -> bool:
        return not self.accuracy[name].failures


def searched(saved: Sequence[float], noise: Sequence[float], most: float) -> Machine:
    machine = Machine(saved, noise, most)
    refine(cast(Trial, machine), [WAY], machine.parts)
    return machine


parts = st.integers(2, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-5, 12), min_size=n, max_size=n), st.lists(st.integers(1, 9), min_size=n, max_size=n)
    )
)


@given(parts, st.integers(0, 30))
def test_the_best_keeps_the_budget_and_is_never_slower_than_before(
    found: tuple[list[int], list[int]], most: int
) -> None:
    machine = searched(*found, most)
    assert machine.keeps(machine.best)
    assert machine.ms[machine.best] <= 100
    if machine.keeps(WAY.name):
        assert machine.ms[machine.best] <= 1.01 * machine.ms[WAY.name]


@given(parts, st.integers(0, 30))
def test_what_is_found_is_near_the_best_there_is(found: tuple[list[int], list[int]], most: int) -> None:
    """Nearer than the parts' largest gain: a greedy choice misses at most the part that did not fit."""
    machine = searched(*found, most)
    every = chain.from_iterable(combinations(machine.parts, size) for size in range(len(machine.parts) + 1))
    ideal = min(ms for ms, noise in map(machine.cost, every) if noise <= most)
    assert machine.ms[machine.best] - ideal <= max(0, *found[0]) + 1.0


@given(parts, st.integers(0, 30))
def test_few_engines_are_built(found: tuple[list[int], list[int]], most: int) -> None:
    machine = searched(*found, most)
    count = len(machine.parts)
    assert len(machine.ms) - 3 <= count + count.bit_length() + MOST_EXTRAS


@given(parts, st.integers(0, 30), st.integers(-5, 5))
def test_a_second_way_takes_few_engines_more(found: tuple[list[int], list[int]], most: int, beside: int) -> None:
    machine = Machine(*found, most, beside)
    refine(cast(Trial, machine), [WAY], machine.parts)
    first, count = machine.candidates[machine.best], len(machine.ms)
    refine(cast(Trial, machine), [WAY, SECOND], machine.parts)
    assert len(machine.ms) - count <= len(machine.parts).bit_length() + MOST_EXTRAS + 1
    if first.precision == "int8" and beside > 0:  # the same parts lowered, and what is left sooner done
        assert machine.ms[machine.best] <= 1.01 * machine.cost(machine.low(first), beside)[0]


@pytest.mark.parametrize(("whole", "asked"), [(93, True), (97, False)])
def test_another_backend_is_asked_where_its_whole_network_is_faster_than_the_best(whole: float, asked: bool) -> None:
    machine = Machine([5, 5], [1, 9], 5)
    machine.run([OTHER])
    machine.ms[OTHER.name] = whole
    refine(cast(Trial, machine), [WAY, OTHER], machine.parts)
    assert machine.best == f"{WAY.name}, without p1"
    assert any(name.startswith(f"{OTHER.name}, ") for name in machine.ms) == asked
