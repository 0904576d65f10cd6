"""Tables in the README that scripts write between marks, `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

import re
from collections.abc import Sequence


def between(text: str, name: str, found: str) -> str:
    """The text with what was found between the marks of a name."""
    return re.sub(_marks(name), lambda mark: f"{mark[1]}{found}\n{mark[3]}", text, flags=re.S)


def renewed(text: str, name: str, table: Sequence[str], order: Sequence[str]) -> str:
    """The text with the rows of a table in that between the marks of a name, in the order of their first cells.

    Its other rows stay where they were measured under the same header, and are gone where it differs.
    """
    there = [line for mark in re.findall(_marks(name), text, re.S) for line in mark[1].splitlines()]
    kept = there[2:] if there[:1] == table[:1] else []
    rows = {row.split("|")[1].strip(): row for row in (*kept, *table[2:])}
    return between(text, name, "\n".join([*table[:2], *(rows[first] for first in order if first in rows)]))


def _marks(name: str) -> str:
    return rf"(<!-- {name} -->\n)(.*)(<!-- /{name} -->)"
