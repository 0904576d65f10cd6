"""Plain text for a terminal: aligned tables, numbers, and names that cannot move the cursor."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["few", "number", "percent", "printable", "table"]


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), align: str = "") -> str:
    """Join rows to aligned lines, two spaces between columns.

    Args:
        rows: cells as text; a short row leaves its last columns empty.
        header: titles of the columns, underlined; none without it.
        align: `l` or `r` for each column, `l` for those beyond its end.
    """
    lines = [[printable(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(map(len, column)) for column in zip(*_squared(lines), strict=True)]
    if header:
        lines.insert(1, ["-" * width for width in widths])
    sides = align.ljust(len(widths), "l")
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in _squared(lines)
    )


def number(value: float | None) -> str:
    """A measurement in few characters: `0.0123`, `1.2e-03`, `0`, `inf`; `-` for none."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:.1e}" if abs(value) < 0.01 or abs(value) >= 1e5 else f"{value:.4g}"


def percent(value: float) -> str:
    """A share in percent: `43 %`, and one digit more below 10 %."""
    return f"{100 * value:.{int(abs(value) < 0.0995)}f} %"


def few(names: Sequence[str], most: int) -> str:
    """Names in a sentence, and how many more than `most` there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(text: str) -> str:
    """The text with control characters escaped: a name from a file must not drive the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _squared(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    width = max(map(len, lines), default=0)
    return [[*line, *[""] * (width - len(line))] for line in lines]
