from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.reports.text import number, percent, printable, table


def test_columns_are_aligned_and_short_rows_filled() -> None:
    assert table([("a", "1"), ("long", "100"), ("x",)], ("name", "n"), "lr").splitlines() == [
        "name    n",
        "----  ---",
        "a       1",
        "long  100",
        "x",
    ]
    assert table([]) == ""


@given(st.text())
def test_a_name_cannot_move_the_cursor_or_break_the_line(text: str) -> None:
    assert printable(text).isprintable()
    assert len(table([(text, "x"), ("y", text)]).split("\n")) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.234567e-7, "1.2e-07"), (0.00999, "1.0e-02"), (0.0123456, "0.01235"), (1234567.0, "1.2e+06"),
     (math.inf, "inf"), (math.nan, "nan"), (None, "-"), (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0 %"), (0.0994, "9.9 %"), (0.0996, "10 %"), (0.434, "43 %"), (-0.5, "-50 %"), (1, "100 %")],
)
def test_shares_have_a_digit_more_where_they_are_small(value: float, text: str) -> None:
    assert percent(value) == text
