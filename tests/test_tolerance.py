from __future__ import annotations

import math

import pytest

from edgeattn.errors import UsageError
from edgeattn.tolerance import TOLERANCES, tolerance_for


@pytest.mark.parametrize("name", [name for name, row in TOLERANCES.items() if not row.noise])
def test_limit_follows_the_references_own_error_between_floor_and_cap(name: str) -> None:
    row = TOLERANCES[name]
    middle = (row.floor + row.cap) / 4
    assert row.limit(0.0) == row.floor
    assert row.limit(middle) == 2 * (middle + row.unit)
    assert row.limit(row.cap) == row.cap


@pytest.mark.parametrize("name", TOLERANCES)
def test_an_unknown_own_error_leaves_the_cap(name: str) -> None:
    assert TOLERANCES[name].limit(None) == TOLERANCES[name].cap


def test_int8_is_held_to_10_db_whatever_the_reference_loses() -> None:
    row = tolerance_for("int8")
    for own in (None, 0.0, 0.5):
        assert -20 * math.log10(row.limit(own)) == pytest.approx(10)


def test_coarser_dtypes_are_allowed_more() -> None:
    rows = [TOLERANCES[name] for name in ("float32", "float16", "bfloat16")]
    for name in ("unit", "floor", "cap", "differing"):
        values = [getattr(row, name) for row in rows]
        assert values == sorted(values)


def test_short_names_find_the_same_row_and_others_are_refused() -> None:
    assert tolerance_for("fp16") is TOLERANCES["float16"]
    with pytest.raises(UsageError, match="no tolerance is known for int64; known: float32"):
        tolerance_for("int64")
