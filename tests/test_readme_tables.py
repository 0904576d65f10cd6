"""What the benches write into the README."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.scripts import script

BEFORE = "above\n<!-- t -->\n| model | ms |\n|---|---|\n| b | 2 |\n| d | 4 |\n<!-- /t -->\nbelow\n"


@pytest.fixture(scope="module")
def readme() -> ModuleType:
    return script("_readme")


def test_new_rows_stand_in_their_order_among_the_others(readme: ModuleType) -> None:
    new = ["| model | ms |", "|---|---|", "| a | 1 |", "| d | 5 |"]
    found = readme.renewed(BEFORE, "t", new, ["a", "b", "c", "d"])
    rows = ["| a | 1 |", "| b | 2 |", "| d | 5 |"]
    assert found == BEFORE.replace("| b | 2 |\n| d | 4 |", "\n".join(rows))


def test_rows_of_other_columns_do_not_stay(readme: ModuleType) -> None:
    new = ["| model | ms | dB |", "|---|---|---|", "| a | 1 | 30 |"]
    found = readme.renewed(BEFORE, "t", new, ["a", "b", "d"])
    assert found == "above\n<!-- t -->\n{}\n<!-- /t -->\nbelow\n".format("\n".join(new))


def test_a_table_that_was_empty_gets_its_rows(readme: ModuleType) -> None:
    new = ["| model | ms |", "|---|---|", "| a | 1 |"]
    found = readme.renewed("<!-- t -->\n<!-- /t -->\n", "t", new, ["a"])
    assert found == "<!-- t -->\n{}\n<!-- /t -->\n".format("\n".join(new))
