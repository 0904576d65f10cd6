"""Small charts as inline SVG: drawn here, coloured by the page's style, with a tooltip on every bar."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeattn.reports.html import Markup, element

__all__ = ["bars", "histogram"]

WIDTH = 960
_LABEL, _VALUE = 150, 100  # pixels left and right of the bars
_ROW = 26


def bars(rows: Sequence[tuple[str, float, str, bool]]) -> Markup:
    """Horizontal bars from zero: (label, value, its text, whether it is the one that matters)."""
    largest = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    drawn = []
    for index, (label, value, text, strong) in enumerate(rows):
        y = index * _ROW
        length = (WIDTH - _LABEL - _VALUE) * value / largest
        drawn += [
            _text(0, y + 17, label, class_="dim"),
            element(
                "rect", element("title", f"{label}: {text}"), x=_LABEL, y=y + 5, width=_px(max(length, 1)), height=16,
                rx=3, class_="bar" if strong else "soft",
            ),
            _text(_LABEL + length + 8, y + 17, text),
        ]  # fmt: skip
    label = "; ".join(f"{label} {text}" for label, _, text, _ in rows)
    return _drawing(len(rows) * _ROW, label, drawn)


def histogram(bins: Sequence[tuple[float, float, int]], mark: float, unit: str) -> Markup:
    """Columns for (low, high, count), high counts over a logarithmic height, and a dashed line at `mark`.

    Args:
        bins: adjacent, of equal width on the axis that is drawn; values are decimal exponents.
        mark: the exponent of the limit; columns wholly above it are red.
        unit: what the axis shows.
    """
    height, base = 150, 120
    low = min([mark - 0.5, *(low for low, _, _ in bins)])
    high = max([mark + 0.5, *(high for _, high, _ in bins)])
    scale = WIDTH / (high - low)
    tallest = max((count for _, _, count in bins), default=1)
    total = sum(count for _, _, count in bins)
    drawn = [element("line", x1=0, y1=base, x2=WIDTH, y2=base)]
    for left, right, count in bins:
        if not count:
            continue
        tall = max(2.0, (base - 20) * count / tallest)
        title = f"10^{left:g} to 10^{right:g}: {count} values ({100 * count / total:.2g} %)"
        drawn.append(
            element(
                "rect", element("title", title), x=_px((left - low) * scale + 1), y=_px(base - tall),
                width=_px((right - left) * scale - 2), height=_px(tall), rx=2, class_="over" if left >= mark else "bar",
            )
        )  # fmt: skip
    drawn += [
        _text((exponent - low) * scale, base + 18, f"1e{exponent:+03d}", class_="dim", anchor="middle")
        for exponent in range(math.floor(low) + 1, math.ceil(high))
    ]
    x = (mark - low) * scale
    side = "end" if x > WIDTH / 2 else "start"
    drawn += [
        element("line", x1=_px(x), y1=8, x2=_px(x), y2=base, class_="mark"),
        _text(x + (-6 if side == "end" else 6), 16, "limit", class_="dim", anchor=side),
    ]
    return _drawing(height, f"Histogram of {unit}", drawn)


def _drawing(height: int, label: str, children: Sequence[Markup]) -> Markup:
    return element("svg", *children, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label)


def _text(x: float, y: float, text: str, class_: str = "", anchor: str = "start") -> Markup:
    return element("text", text, x=_px(x), y=_px(y), class_=class_, text_anchor=anchor)


def _px(value: float) -> str:
    return f"{value:.1f}"
