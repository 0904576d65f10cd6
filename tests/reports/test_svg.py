from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeattn.reports.html import Markup
from edgeattn.reports.svg import bars, curves, histogram, intervals, matrix, roofline, stack
from edgeattn.reports.svg.drawing import apart, linear, logarithmic, shorten

CHARTS = {
    "bars": bars([("a", 4.0, "4 ms", "bar"), ("b", 1.0, "1 ms", "soft")]),
    "stack": stack([("a", 3.0, "75 %", "c1"), ("b", 1.0, "25 %", "c2"), ("c", 0.0, "0 %", "c3")]),
    "intervals": intervals([("a", 0.1, 0.2, 0.4), ("b", 0.2, 0.25, 0.3)], mark=0.2),
    "histogram": histogram([(-6.0, -5.5, 3), (-5.5, -5.0, 0), (-5.0, -4.5, 9)], -5.2, "error"),
    "curves": curves({"one": [(0, 0.9), (0.5, 0.8), (1, 0.4)], "two": [(0, 0.8), (1, 0.5)]}, "recall", "precision"),
    "matrix": matrix([[5, 1], [0, 7]], ["cat", "dog"], ["cat", "dog"], "engine", "original"),
    "roofline": roofline([(2.0, 20.0, "slow"), (40.0, 150.0, "fast")], [("fp32", 200.0, 20.0)], [(9.0, 9.0, "x")]),
}
NOTHING = [bars([]), stack([]), intervals([]), histogram([], -3.0, "e"), curves({}, "x", "y"), matrix(
    np.zeros((0, 0), int), [], [], "x", "y"), roofline([], [])]  # fmt: skip


def parsed(drawn: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(drawn)


def all_of(drawn: Markup, tag: str) -> list[ElementTree.Element]:
    return list(parsed(drawn).iter(tag))


def numbers(text: str | None) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", str(text))]


@pytest.mark.parametrize("drawn", [*CHARTS.values(), *NOTHING])
def test_every_chart_is_xml_and_says_itself_in_words(drawn: Markup) -> None:
    chart = next(found for found in parsed(drawn).iter("svg") if found.get("role") == "img")
    assert [child.tag for child in chart][:2] == ["title", "desc"]
    assert chart[0].text


@pytest.mark.parametrize("drawn", CHARTS.values(), ids=CHARTS)
def test_what_is_said_names_what_is_drawn(drawn: Markup) -> None:
    assert all(found.text for found in all_of(drawn, "desc"))


def test_bars_are_as_long_as_their_values() -> None:
    a, b = all_of(CHARTS["bars"], "rect")
    assert numbers(a.get("width"))[0] == pytest.approx(4 * numbers(b.get("width"))[0], rel=1e-2)
    assert [child.text for child in a] == ["a: 4 ms"]
    assert [a.get("class"), b.get("class")] == ["bar", "soft"]


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=9))
def test_shares_fill_the_bar_in_order(values: list[float]) -> None:
    drawn = stack([(f"part {index}", value, "", "c1") for index, value in enumerate(values)])
    parts = [found for found in all_of(drawn, "rect") if found.get("height") == "28"]
    assert len(parts) == len(all_of(drawn, "li")) == sum(value > 0 for value in values)
    starts = [numbers(part.get("x"))[0] for part in parts]
    assert starts == sorted(starts)
    if parts:
        assert sum(numbers(part.get("width"))[0] for part in parts) == pytest.approx(100, abs=0.1)


def test_a_dot_stands_between_its_whiskers_and_the_mark_where_it_belongs() -> None:
    mark, *whiskers = all_of(CHARTS["intervals"], "line")
    dots = all_of(CHARTS["intervals"], "circle")
    lows, highs = ([numbers(found.get(key))[0] for found in whiskers] for key in ("x1", "x2"))
    middles = [numbers(dot.get("cx"))[0] for dot in dots]
    assert middles[0] - lows[0] == pytest.approx((highs[0] - lows[0]) / 3, abs=0.02)
    assert lows[1] < middles[1] < highs[1]
    assert numbers(mark.get("x1"))[0] == middles[0]


def test_an_interval_that_is_not_known_is_written_but_not_drawn() -> None:
    drawn = intervals([("a", math.nan, 0.5, math.inf), ("b", 0.1, 0.2, 0.3)])
    assert len(all_of(drawn, "circle")) == 1
    assert "0.5 [nan, inf]" in drawn


def test_columns_beyond_the_limit_are_marked() -> None:
    assert [found.get("class") for found in all_of(CHARTS["histogram"], "rect")] == ["bar", "over"]
    assert "9 values (75 %)" in CHARTS["histogram"]
    unlimited = histogram([(-6.0, -5.5, 3)], None, "error")
    assert "limit" not in unlimited
    assert [found.get("class") for found in all_of(unlimited, "rect")] == ["bar"]


def test_lines_differ_by_more_than_colour_and_are_named() -> None:
    series = {f"line {index}": [(0.0, index / 9), (0.5, 0.5), (1.0, 1.0)] for index in range(4)}
    drawn = curves(series, "x", "y")
    lines = all_of(drawn, "polyline")[::2]
    assert len({line.get("stroke-dasharray") for line in lines}) == len({line.get("class") for line in lines}) == 4
    names = {str(found.text): numbers(found.get("y"))[0] for found in all_of(drawn, "text")}
    heights = sorted(names[name] for name in series)
    assert all(below - above >= 14.9 for above, below in itertools.pairwise(heights))


def test_a_line_ends_where_its_last_point_is() -> None:
    points = [(0.0, 0.0), *[(index / 1000, 0.5) for index in range(1, 1000)], (1.0, 1.0)]
    line, _ = all_of(curves({"a": [*points, (math.nan, 3.0)]}, "x", "y"), "polyline")
    drawn = [numbers(pair) for pair in str(line.get("points")).split()]
    assert len(drawn) <= 201
    assert drawn[0] == [56, 260]
    assert drawn[-1] == [530, 18]


def test_a_matrix_shades_by_row_and_marks_what_is_confused() -> None:
    cells = all_of(CHARTS["matrix"], "rect")
    assert [cell.get("class") for cell in cells] == ["bar", "over", "over", "bar"]
    shades = [numbers(cell.get("fill-opacity"))[0] for cell in cells]
    assert shades[0] == pytest.approx(0.04 + 0.45 * math.sqrt(5 / 6), abs=0.01)
    assert shades[2] < shades[1] < shades[0] < shades[3]
    assert [found.text for found in all_of(CHARTS["matrix"], "desc")] == ["cat / dog: 1"]


def test_a_matrix_of_other_columns_has_no_diagonal() -> None:
    drawn = matrix([[5, 1, 2]], ["cat"], ["a", "b", "c"], "x", "y")
    assert {cell.get("class") for cell in all_of(drawn, "rect")} == {"bar"}


def test_of_a_thousand_classes_those_confused_most_are_shown() -> None:
    counts = np.diag(np.full(1000, 50))
    counts[700, 3] = counts[20, 999] = 9
    counts[1, 2] = 1
    for row in range(30, 130, 2):
        counts[row, row + 1] = 3
    names = [f"class {index}" for index in range(1000)]
    drawn = matrix(counts, names, names, "engine", "original")
    assert len(all_of(drawn, "rect")) == 15 * 15
    shown = {str(found.text) for found in all_of(drawn, "text")}
    assert {"class 3", "class 20", "class 700", "class 999"} <= shown
    assert not {"class 0", "class 1", "class 2"} & shown
    assert any("15 of 1000 rows" in text and f"{1 + 50 * 3 - 5 * 3} elsewhere" in text for text in shown)


def test_points_stand_under_the_roof_that_feeds_them() -> None:
    drawn = roofline([(2.0, 40.0, "on the slope"), (100.0, 200.0, "on the flat")], [("fp32", 200.0, 20.0)])
    slope, flat = (numbers(dot.get("cx")) + numbers(dot.get("cy")) for dot in all_of(drawn, "circle"))
    if slope[0] > flat[0]:
        slope, flat = flat, slope
    roof = [numbers(pair) for pair in str(all_of(drawn, "polyline")[0].get("points")).split()]
    (x0, y0), (x1, y1), (_, y2) = roof
    assert slope[1] == pytest.approx(y0 + (slope[0] - x0) * (y1 - y0) / (x1 - x0), abs=0.2)
    assert flat[1] == y1 == y2


def test_a_roof_of_which_a_part_is_known_is_drawn_and_points_without_a_place_are_not() -> None:
    drawn = roofline(
        [(0.0, 1.0, "none"), (1.0, math.inf, "none"), (1.0, 1.0, "one")], [("a", None, 9.0), ("b", 50.0, None)]
    )
    assert len(all_of(drawn, "circle")) == 1
    assert len(all_of(drawn, "polyline")) == 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
@example([5e-324])
@example([3.0])
@example([1e6, 1e6 + 1e-10])
@example([-7.0, -7.0])
def test_an_axis_holds_its_values_and_its_ticks_are_few_and_even(values: list[float]) -> None:
    axis = linear(values, 0, 100)
    assert all(-1e-6 <= axis.at(value) <= 100 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 8


@given(st.lists(st.floats(1e-9, 1e12), max_size=9))
def test_a_logarithmic_axis_holds_its_values(values: list[float]) -> None:
    axis = logarithmic(values, 0, 100)
    assert all(0 <= axis.at(value) <= 100 for value in values)
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert axis.ticks


@given(st.dictionaries(st.text(), st.floats(0, 300), max_size=12))
def test_names_moved_apart_do_not_overlap_and_keep_their_order(places: dict[str, float]) -> None:
    moved = apart(places)
    assert list(moved) == sorted(places, key=lambda name: places[name])
    assert all(moved[name] >= place for name, place in places.items())
    assert all(after - before >= 14.999 for before, after in itertools.pairwise(moved.values()))


@given(st.text(max_size=60), st.integers(4, 40))
def test_a_shortened_name_keeps_both_ends(name: str, length: int) -> None:
    short = shorten(name, length)
    assert len(short) == min(len(name), length)
    assert short == name or (name.startswith(short.split("…")[0]) and name.endswith(short[-1]))
