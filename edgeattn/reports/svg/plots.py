"""Charts with two axes: histogram, curves, roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgeattn.reports.html import Markup, element
from edgeattn.reports.svg.drawing import (
    ACROSS,
    UPWARD,
    WIDTH,
    Axis,
    apart,
    axes,
    linear,
    logarithmic,
    plot,
    px,
    shorten,
    text,
)
from edgeattn.reports.text import number

__all__ = ["curves", "histogram", "roofline"]

Point = tuple[float, float, str]
MOST_POINTS = 200
DASHES = ("none", "7 4", "2 3", "10 3 2 3", "5 2", "1 2")
SHAPES = ("M-4,-4h8v8h-8z", "M0,-5 5,4 -5,4z", "M0,-5 5,0 0,5 -5,0z", "M-5,-4 5,-4 0,5z")


def histogram(bins: Sequence[tuple[float, float, int]], mark: float | None, unit: str) -> Markup:
    """Columns for (low, high, count), high counts over a logarithmic height, and a dashed line at `mark`.

    Args:
        bins: adjacent, of equal width on the axis that is drawn; values are decimal exponents.
        mark: the exponent of the limit, None for none; columns wholly above it are red.
        unit: what the axis shows.
    """
    height, base = 150, 120
    limits = [] if mark is None else [mark - 0.5, mark + 0.5]
    low = min([*limits, *(low for low, _, _ in bins)], default=0.0)
    high = max([*limits, *(high for _, high, _ in bins)], default=1.0)
    scale = WIDTH / (high - low)
    tallest = max((count for _, _, count in bins), default=1)
    total = sum(count for _, _, count in bins)
    drawn, said = [element("line", x1=0, y1=base, x2=WIDTH, y2=base)], []
    for left, right, count in bins:
        if not count:
            continue
        class_ = "bar" if mark is None or left < mark else "over"
        tall = max(2.0, (base - 20) * count / tallest)
        said.append(f"10^{left:g} to 10^{right:g}: {count} values ({100 * count / total:.2g} %)")
        drawn.append(
            element(
                "rect", element("title", said[-1]), x=px((left - low) * scale + 1), y=px(base - tall),
                width=px((right - left) * scale - 2), height=px(tall), rx=2, class_=class_,
            )
        )  # fmt: skip
    drawn += [
        text((exponent - low) * scale, base + 18, f"1e{exponent:+03d}", "dim", "middle")
        for exponent in range(math.floor(low) + 1, math.ceil(high))
        if 16 < (exponent - low) * scale < WIDTH - 16
    ]
    if mark is not None:
        x = (mark - low) * scale
        side = "end" if x > WIDTH / 2 else "start"
        drawn.append(element("line", x1=px(x), y1=8, x2=px(x), y2=base, class_="mark"))
        drawn.append(text(x + (-6 if side == "end" else 6), 16, "limit", "dim", side))
    return plot(f"Histogram of {unit}", said, drawn, height=height)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> Markup:
    """Lines through points (x, y), named beside their right ends; `x` and `y` say what the axes show.

    Each line has dashes and marks of its own. Of more than 200 points, every n-th is drawn, and the last.
    """
    finite = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    held = {name: _thinned(points) for name, points in finite.items() if points}
    across = linear([a for points in held.values() for a, _ in points], *ACROSS)
    upward = linear([b for points in held.values() for _, b in points], *UPWARD)
    ends = apart({name: upward.at(points[-1][1]) for name, points in held.items()})
    drawn = axes(across, upward, x, y)
    for index, (name, points) in enumerate(held.items()):
        path = [(across.at(a), upward.at(b)) for a, b in points]
        side = across.end + 20
        drawn += [*_line(index, path), *_line(index, [(side, ends[name]), (side + 30, ends[name])])]
        drawn.append(text(side + 40, ends[name] + 4, shorten(name, 20)))
    said = [f"{name}: from {_pair(points[0])} to {_pair(points[-1])}" for name, points in held.items()]
    return plot(f"{y} over {x}", said, drawn)


def _pair(point: tuple[float, float]) -> str:
    return f"({point[0]:.4g}, {point[1]:.4g})"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _line(index: int, path: Sequence[tuple[float, float]]) -> list[Markup]:
    """The index-th kind of line: its colour, its dashes, and its mark at some of the points."""
    joined = " ".join(f"{px(x)},{px(y)}" for x, y in path)
    colour = index % 6 + 1
    dashes = DASHES[index % len(DASHES)]
    marks = path[len(path) // 16 :: max(1, len(path) // 8)] if len(path) > 2 else path[:1]
    return [
        element("polyline", points=joined, class_=f"s{colour}", stroke_dasharray=dashes),
        *(
            element("path", d=SHAPES[index % len(SHAPES)], transform=f"translate({px(x)},{px(y)})", class_=f"c{colour}")
            for x, y in marks
        ),
    ]


def roofline(
    points: Sequence[Point],
    ceilings: Sequence[tuple[str, float | None, float | None]],
    others: Sequence[Point] = (),
) -> Markup:
    """What is attained over arithmetic intensity, both logarithmic, under the most that the machine attains.

    Args:
        points: (FLOP per byte, GFLOP/s, label); what is not positive is left out.
        ceilings: (name, GFLOP/s, GB/s); None where it was not measured.
        others: points in the background, named in their tooltips only.
    """
    behind, held = _drawable(others), _drawable(points)
    ridges = [peak / rate for _, peak, rate in ceilings if peak and rate]
    across = logarithmic([*(a for a, _, _ in [*behind, *held]), *ridges], *ACROSS)
    peaks = [peak for _, peak, _ in ceilings if peak]
    upward = logarithmic([*(b for _, b, _ in [*behind, *held]), *peaks], *UPWARD)
    drawn = axes(across, upward, "FLOP per byte", "GFLOP/s")
    flat = {f"{name} {number(peak)} GFLOP/s": upward.at(peak) for name, peak, _ in ceilings if peak}
    drawn += [text(across.end + 8, y + 4, name, "dim") for name, y in apart(flat).items()]
    drawn += [_roof(across, upward, peak, rate) for _, peak, rate in ceilings]
    for rate in sorted({rate for _, _, rate in ceilings if rate}):
        start = max(across.low, upward.low / rate)
        drawn.append(text(across.at(start) + 6, upward.at(start * rate) - 22, f"{number(rate)} GB/s", "dim"))
    drawn += [_dot(across, upward, point, "soft") for point in behind]
    taken: list[tuple[float, float]] = []
    for a, b, label in sorted(held, key=lambda point: -point[1]):
        drawn.append(_dot(across, upward, (a, b, label), "bar"))
        x, y = across.at(a), upward.at(b)
        # A name that would stand on another is left to the tooltip.
        if all(abs(x - other) > 150 or abs(y - level) > 14 for other, level in taken):
            taken.append((x, y))
            drawn.append(text(x + 9, y + 4, shorten(label, 24)))
    return plot("Roofline", [*flat, *map(_attained, held)], drawn)


def _drawable(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if min(point[:2]) > 0 and math.isfinite(point[0] * point[1])]


def _attained(point: Point) -> str:
    return f"{point[2]}: {number(point[1])} GFLOP/s at {number(point[0])} FLOP per byte"


def _dot(across: Axis, upward: Axis, point: Point, class_: str) -> Markup:
    place = {"cx": px(across.at(point[0])), "cy": px(upward.at(point[1]))}
    return element("circle", element("title", _attained(point)), **place, r=5, class_=f"{class_} dot")


def _roof(across: Axis, upward: Axis, peak: float | None, rate: float | None) -> Markup:
    """As fast as memory brings the operands, up to the peak."""
    highest = peak or upward.high
    ridge = min(max(highest / rate, across.low), across.high) if rate else across.low
    corners = [(ridge, min(highest, (rate or math.inf) * ridge))]
    if rate:
        start = max(across.low, upward.low / rate)
        corners.insert(0, (start, start * rate))
    if peak:
        corners.append((across.high, peak))
    path = " ".join(f"{px(across.at(x))},{px(upward.at(y))}" for x, y in corners)
    return element("polyline", points=path, class_="rule")
