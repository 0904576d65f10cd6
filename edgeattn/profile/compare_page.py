"""An engine against its baseline as one HTML page: is it slower, where, and why."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from edgeattn.profile.page import embedded, two_lines
from edgeattn.reports.html import Markup, badge, details, element, page, pairs, section, table, tiles
from edgeattn.reports.svg import intervals
from edgeattn.reports.text import few
from edgeattn.tensors import format_shape, format_size

if TYPE_CHECKING:
    from edgeattn.profile.align import Difference
    from edgeattn.profile.compare import ComparisonReport
    from edgeattn.profile.report import ProfileReport
    from edgeattn.reports.html import Cell

__all__ = ["compare_page"]

DRAWN = 15  # differences with whiskers
NAMED = 3  # layers of a difference that are named
ROWS = 500
STATES = {"passed": True, "failed": False, "undecided": None}


def compare_page(report: ComparisonReport) -> str:
    """Draw the whole page."""
    sections = [_head(report), _where(report), _all(report), _both(report), _circumstances(report)]
    title = f"{_name(report.engine)} against {_name(report.baseline)}: {_percent(report.ratio - 1)}"
    both = {"engine": embedded(report.engine), "baseline": embedded(report.baseline)}
    return page(title, *(part for part in sections if part), data={**report.to_json(), **both})


def _head(report: ComparisonReport) -> Markup:
    low, high = (bound - 1 for bound in report.interval)
    states = [badge(STATES[report.gate], report.gate.upper())] if report.gate else []
    heading = element("h1", *states, f"{_name(report.engine)} against {_name(report.baseline)}")
    shown = [
        ("Time, against the baseline", f"{report.ratio:.3f}×", f"between {_percent(low)} and {_percent(high)} (95 %)"),
        ("Latency, median", f"{report.engine.latency.p50_ms:.4g} ms", f"{_about(report.engine)}"),
        ("Baseline", f"{report.baseline.latency.p50_ms:.4g} ms", f"{_about(report.baseline)}"),
    ]
    lead = element("p", f"edgeattn profile --compare · {report.engine.device}")
    return element("header", lead, heading, element("p", _said(report), class_="lead"), tiles(shown))


def _said(report: ComparisonReport) -> str:
    """The verdict in a sentence, without the word that the badge says."""
    words = report.verdict.partition(": ")[2] if report.gate else report.verdict
    return f"{words[0].upper()}{words[1:]}."


def _where(report: ComparisonReport) -> Markup:
    if not report.differences:
        return Markup()
    clear = [item for item in report.differences if item.clear][:DRAWN]
    if not clear:
        return section("What got slower, and what faster", note="No layer differs beyond the noise.")
    clear.sort(key=lambda item: -item.difference_ms)
    rows = [(item.name, item.interval_ms[0], item.difference_ms, item.interval_ms[1]) for item in clear]
    words = [
        element("li", element("b", item.name), f" takes {abs(item.difference_ms):.3g} ms {_side(item)}: {_why(item)}")
        for item in clear
    ]
    note = "Milliseconds more than the baseline, with bounds; to the right of the line is slower."
    figure = element("figure", intervals(rows, mark=0.0, show=lambda value: f"{value:+.3g}"))
    return section("What got slower, and what faster", figure, element("ul", *words), note=note)


def _side(item: Difference) -> str:
    return "more" if item.difference_ms > 0 else "less"


def _all(report: ComparisonReport) -> Markup:
    if not report.differences:
        return Markup()
    header = ("what", "ms", "baseline", "difference", "clear", "why")
    note = "Layers of both that compute the same nodes of the graph, however their backends cut and call them."
    if len(report.differences) > ROWS:
        note += f" The largest {ROWS} of {len(report.differences)}; all are in the JSON inside this page."
    rows = [_row(item) for item in report.differences[:ROWS]]
    drawn = table(header, rows, "lrrrll", interactive=True, caption="layers side by side")
    return section("Layer by layer", drawn, note=note)


def _row(item: Difference) -> tuple[Cell, ...]:
    return (
        two_lines(item.name, _few(item.layers)),
        f"{item.median_ms:.4f}",
        f"{item.baseline_ms:.4f}",
        (f"{item.difference_ms:+.4f}", item.difference_ms),
        "yes" if item.clear else "noise",
        two_lines("; ".join(item.why) or "-", f"in the baseline {_few(item.baseline_layers)}"),
    )


def _both(report: ComparisonReport) -> Markup:
    header = ("", "backend", "precision", "p50 ms", "p90 ms", "p99 ms", "samples/s", "weights", "peak memory")
    rows = [
        (
            _name(profile),
            profile.backend,
            profile.precision,
            *(f"{ms:.3f}" for ms in (profile.latency.p50_ms, profile.latency.p90_ms, profile.latency.p99_ms)),
            f"{profile.latency.throughput:.1f}",
            *("-" if size is None else format_size(size) for size in (profile.memory.weights, profile.memory.peak)),
        )
        for profile in (report.engine, report.baseline)
    ]
    return section("The two", table(header, rows, "lllrrrrrr"))


def _circumstances(report: ComparisonReport) -> Markup:
    notes = element("ul", *(element("li", note) for note in report.notes))
    sides = [
        details(f"Where {what} was measured", pairs({"file": profile.engine, **profile.environment}))
        for what, profile in (("the engine", report.engine), ("the baseline", report.baseline))
    ]
    return section("How they were compared", notes, *sides)


def _name(profile: ProfileReport) -> str:
    return PurePath(profile.engine).name


def _about(profile: ProfileReport) -> str:
    shapes = ", ".join(map(format_shape, profile.shapes.values()))
    return f"{_name(profile)}, {profile.backend}, {profile.precision}, {shapes}"


def _why(item: Difference) -> str:
    return "; ".join(item.why) or "nothing else is different"


def _few(names: tuple[str, ...]) -> str:
    return few(names, NAMED) or "none"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"
