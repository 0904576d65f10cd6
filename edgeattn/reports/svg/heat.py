"""Counts by two classes as shaded cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgeattn.reports.html import Markup, element
from edgeattn.reports.svg.drawing import plot, px, shorten, text

__all__ = ["matrix"]

MANY = 15  # classes that are shown; of more, those that are confused most
CELL_WIDTH, CELL_HEIGHT = 44, 28
LETTER, LETTERS = 7, 16  # pixels of a letter, letters of a name
NARROW = 5  # letters of a name that stands straight above its column


def matrix(counts: npt.ArrayLike, rows: Sequence[str], columns: Sequence[str], x: str, y: str) -> Markup:
    """Whole numbers as shaded cells with `y` down and `x` across; darker is more of its row.

    Where rows and columns are the same classes, what is off the diagonal is red. Of more than 15 classes, those that
    are confused most are shown, and a line says how much is not.
    """
    table = np.asarray(counts)
    same = list(rows) == list(columns)
    counted = table - np.diag(np.diag(table)) if same else table
    down, across = counted.sum(1), counted.sum(0)
    kept = [_largest(down + across)] * 2 if same else [_largest(down), _largest(across)]
    beside, above = [rows[index] for index in kept[0]], [columns[index] for index in kept[1]]
    left, top = 16 + LETTER * _longest(beside), 40 + (5 * _longest(above) if _longest(above) > NARROW else 0)
    drawn, said = [text(0, 12, f"{y} ↓ · {x} →", "dim"), *_names(beside, above, left, top)], []
    for i, down_index in enumerate(kept[0]):
        total = max(1, table[down_index].sum())
        for j, across_index in enumerate(kept[1]):
            count, wrong = int(table[down_index, across_index]), same and down_index != across_index
            words = f"{beside[i]} / {above[j]}: {count}"
            place = (left + CELL_WIDTH * j, top + CELL_HEIGHT * i)
            drawn += _cell(place, count, count / total, element("title", words), class_="over" if wrong else "bar")
            said += [words] if count and (wrong or not same) else []
    height = top + CELL_HEIGHT * len(beside) + 8
    if len(beside) * len(above) < table.size:
        elsewhere = int(counted.sum() - counted[np.ix_(*kept)].sum())
        most = "that are confused most" if same else "with most counts"
        shown = f"{len(beside)} of {len(rows)} rows, {len(above)} of {len(columns)} columns, those {most}"
        drawn.append(text(0, height + 12, f"{shown}; {elsewhere} elsewhere", "dim"))
        height += 20
    return plot(f"{y} by {x}", said, drawn, width=max(left + CELL_WIDTH * len(above) + 60, 460), height=height)


def _largest(sums: npt.NDArray[np.int64]) -> list[int]:
    return sorted(int(index) for index in np.argsort(-sums, kind="stable")[:MANY])


def _longest(names: Sequence[str]) -> int:
    return min(LETTERS, max(map(len, names), default=0))


def _names(beside: Sequence[str], above: Sequence[str], left: float, top: float) -> list[Markup]:
    """The names of rows and columns; those above stand slanted where they are wider than their columns."""
    drawn = [
        text(left - 8, top + CELL_HEIGHT * i + 18, shorten(name, LETTERS), "", "end") for i, name in enumerate(beside)
    ]
    slanted = _longest(above) > NARROW
    for j, name in enumerate(above):
        x, y = left + CELL_WIDTH * (j + 0.5), top - 8
        turned = {"transform": f"rotate(-50 {x:g} {y:g})"} if slanted else {}
        drawn.append(text(x, y, shorten(name, LETTERS), "", "start" if slanted else "middle", **turned))
    return drawn


def _cell(place: tuple[float, float], count: int, share: float, title: Markup, class_: str) -> list[Markup]:
    """A cell as dark as the root of its share, so that few are seen; at most half, so that its number is readable."""
    size = {"x": px(place[0]), "y": px(place[1]), "width": CELL_WIDTH - 2, "height": CELL_HEIGHT - 2, "rx": 3}
    opacity = f"{0.04 + 0.45 * math.sqrt(share):.2f}"
    number = [text(place[0] + CELL_WIDTH / 2 - 1, place[1] + 17, str(count), "", "middle")] if count else []
    return [element("rect", title, **size, class_=class_, fill_opacity=opacity), *number]
