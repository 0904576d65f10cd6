"""What charts are drawn with: the frame that says them in words, texts, and axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeattn.reports.html import Markup, element

__all__ = ["Axis", "apart", "axes", "fluid", "linear", "logarithmic", "percent", "plot", "px", "shorten", "text"]

WIDTH, HEIGHT = 720, 300
ACROSS, UPWARD = (56.0, 530.0), (260.0, 18.0)  # the plane of a plot: from left to right, from below to above
SAID = 30  # parts of a chart that are said in words; a table holds the rest


def fluid(height: int, title: str, said: Sequence[str], children: Iterable[Markup]) -> Markup:
    """A chart as wide as its place, drawn in percent of it."""
    words = element("desc", "; ".join(said[:SAID]))
    return element("svg", element("title", title), words, *children, role="img", width="100%", height=height)


def plot(
    title: str, said: Sequence[str], children: Iterable[Markup], *, width: float = WIDTH, height: float = HEIGHT
) -> Markup:
    """A chart of a size of its own, made smaller where there is less room."""
    words = element("desc", "; ".join(said[:SAID]))
    size = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}"}
    return element("svg", element("title", title), words, *children, role="img", **size)


def text(x: object, y: float, content: str, class_: str = "", anchor: str = "start", **more: object) -> Markup:
    """A line of text; `x` in percent or pixels."""
    place = {"x": px(x) if isinstance(x, float) else x, "y": px(y)}
    return element("text", content, **place, **({"class_": class_} if class_ else {}), text_anchor=anchor, **more)


def percent(value: float) -> str:
    """A length as a share of the width."""
    return f"{value:.2f}%"


def px(value: float) -> str:
    """A length in pixels."""
    return f"{value:.1f}"


def shorten(label: str, length: int) -> str:
    """A name in at most `length` characters: its middle says least."""
    head = length // 3
    return label if len(label) <= length else f"{label[:head]}…{label[head + 1 - length :]}"


def apart(places: Mapping[str, float], gap: float = 15) -> dict[str, float]:
    """Move texts at heights `places` down until they no longer overlap; the order stays."""
    moved: dict[str, float] = {}
    below = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        below = moved[name] = max(place, below + gap)
    return moved


@dataclass(frozen=True)
class Axis:
    """Where a value stands, between `start` and `end` in pixels, and which values are written at it."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    scale: Callable[[float], float] = float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.scale(self.low), self.scale(self.high)
        return self.start + (self.end - self.start) * (self.scale(value) - low) / (high - low)


def linear(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis in round steps that holds all values; from zero unless they are far from it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = 0.0 if 0 <= low < high / 2 else low
    largest = max(abs(low), abs(high))
    spread = next((size for size in (high - low, largest) if size > max(1e-9 * largest, 1e-300)), 1.0)
    step = 10.0 ** math.floor(math.log10(spread / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * count for count in range(first, max(last, first + 1) + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def logarithmic(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis in powers of ten, and twice and five times them where they are few; with room on both sides."""
    low, high = min(values, default=1.0) / 2, max(values, default=10.0) * 2
    steps = (1, 2, 5) if high < 100 * low else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = (step * 10.0**exponent for exponent in exponents for step in steps)
    return Axis(low, high, start, end, tuple(tick for tick in ticks if low <= tick <= high), math.log10)


def axes(across: Axis, upward: Axis, x: str, y: str) -> list[Markup]:
    """The grid of a plot with its numbers, and what they are."""
    drawn = [text(across.start, upward.end - 4, y, "dim"), text(across.end, HEIGHT - 4, x, "dim", "end")]
    for tick in upward.ticks:
        place = px(upward.at(tick))
        drawn.append(element("line", x1=across.start, x2=across.end, y1=place, y2=place))
        drawn.append(text(across.start - 8, upward.at(tick) + 4, f"{tick:.4g}", "dim", "end"))
    for tick in across.ticks:
        place = px(across.at(tick))
        drawn.append(element("line", x1=place, x2=place, y1=upward.start, y2=upward.end))
        drawn.append(text(across.at(tick), upward.start + 17, f"{tick:.4g}", "dim", "middle"))
    return drawn
