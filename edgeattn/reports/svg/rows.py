"""Charts with a line for each thing, as wide as their place: bars, shares, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from edgeattn.reports.html import Markup, element
from edgeattn.reports.svg.drawing import fluid, percent, shorten, text
from edgeattn.reports.text import number

__all__ = ["Row", "bars", "intervals", "stack"]

Row = tuple[str, float, str, str]  # label, value, the value in words, class
ROW = 26
LETTERS = 36  # of a label


def bars(rows: Sequence[Row]) -> Markup:
    """Horizontal bars from zero: (label, value, its text, class)."""
    largest = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    room, end = _room(label for label, *_ in rows), _room(written for _, _, written, _ in rows)
    drawn = []
    for index, (label, value, written, class_) in enumerate(rows):
        y = index * ROW
        length = (100 - room - end) * value / largest
        size = {"x": percent(room), "width": percent(length), "y": y + 5, "height": 16, "rx": 3}
        drawn += [
            _label(y, label, room),
            element("rect", element("title", f"{label}: {written}"), **size, class_=class_),
            text(percent(room + length), y + 17, written, dx=8),
        ]
    return fluid(len(rows) * ROW, "Bars", [f"{label}: {written}" for label, _, written, _ in rows], drawn)


def stack(parts: Sequence[Row]) -> Markup:
    """One bar of shares, (label, value, its text, class), with a legend; nothing is drawn of what is zero."""
    held = [part for part in parts if part[1] > 0]
    total = math.fsum(value for _, value, _, _ in held)
    drawn, legend, start = [], [], 0.0
    for label, value, written, class_ in held:
        length = 100 * value / total
        size = {"x": percent(start), "width": percent(length)}
        title = element("title", f"{label}: {written}")
        drawn.append(element("rect", title, **size, y=0, height=28, class_=f"{class_} dot"))
        if length >= 10:  # in words, too, where there is room: not everybody tells colours apart
            drawn.append(element("svg", text(2, 13, label, "dim"), **size, y=30, height=18))
        swatch = element(
            "svg", element("rect", width=11, height=11, rx=3, class_=class_), width=11, height=11, aria_hidden="true"
        )
        legend.append(element("li", swatch, f"{label} ", element("b", written)))
        start += length
    said = [f"{label}: {written}" for label, _, written, _ in held]
    return element("div", fluid(50, "Shares", said, drawn), element("ul", *legend, class_="legend"))


def intervals(
    rows: Sequence[tuple[str, float, float, float]],
    *,
    mark: float | None = None,
    show: Callable[[float], str] = number,
) -> Markup:
    """A dot with whiskers for each (label, low, middle, high), and a dashed line at `mark`."""
    written = [f"{show(middle)} [{show(low)}, {show(high)}]" for _, low, middle, high in rows]
    known = [value for _, *values in rows for value in values if math.isfinite(value)]
    known += [] if mark is None else [mark]
    first, last = min(known, default=0.0), max(known, default=1.0)
    room, end = _room(label for label, *_ in rows), _room(written)

    def x(value: float) -> str:
        return percent(room + 1 + (98 - room - end) * (value - first) / ((last - first) or 1.0))

    height = len(rows) * ROW
    drawn = [] if mark is None else [element("line", x1=x(mark), x2=x(mark), y1=0, y2=height, class_="mark")]
    for index, ((label, *values), words) in enumerate(zip(rows, written, strict=True)):
        y = index * ROW
        drawn += [_label(y, label, room), text(percent(100 - end), y + 17, words, dx=8)]
        if all(map(math.isfinite, values)):
            low, middle, high = map(x, values)
            drawn += [
                element("line", x1=low, x2=high, y1=y + 13, y2=y + 13, class_="rule"),
                element("circle", element("title", f"{label}: {words}"), cx=middle, cy=y + 13, r=5, class_="bar"),
            ]
    said = [f"{label}: {words}" for (label, *_), words in zip(rows, written, strict=True)]
    return fluid(height, "Intervals", said, drawn)


def _room(texts: Iterable[str]) -> float:
    """Percent of the width that texts get: all they need, but long ones are cut off on a phone."""
    return 3 + min(33.0, 1.25 * max(map(len, texts), default=0))


def _label(y: float, label: str, room: float) -> Markup:
    inside = text(0, 17, shorten(label, LETTERS), "dim")
    return element("svg", element("title", label), inside, x=0, y=y, width=percent(room - 1), height=ROW)
