"""The parity report as one HTML page: the verdict at a glance, then the evidence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeattn.parity.report import share
from edgeattn.reports.html import Markup, badge, element, page, pairs, section, table, tiles
from edgeattn.reports.svg import bars, histogram
from edgeattn.reports.text import number

if TYPE_CHECKING:
    from edgeattn.parity.report import OutputParity, ParityReport

__all__ = ["parity_page"]


def parity_page(report: ParityReport) -> str:
    """Draw the whole page."""
    sections = [
        _head(report),
        _reasons(report),
        section("What was compared", pairs(report.compared)),
        _outputs(report),
        _metrics(report),
        _latency(report),
        _shapes(report),
        section("Where it was measured", pairs(report.environment)),
    ]
    title = f"Parity of {_subject(report)}: {'passed' if report.passed else 'failed'}"
    return page(title, *(part for part in sections if part), data=report.to_json())


def _subject(report: ParityReport) -> str:
    return report.compared.get("engine", f"{report.precision} engine")


def _head(report: ParityReport) -> Markup:
    verdict = badge(report.passed, "PASSED" if report.passed else "FAILED")
    worst = max(report.outputs, key=lambda output: output.relative_l2, default=None)
    shown = []
    if worst is not None and math.isfinite(worst.relative_l2):
        limit = f"of the signal; {number(worst.limit_l2)} is allowed"
        shown.append(("Largest relative error", number(worst.relative_l2), limit))
    if report.metrics:
        first = report.metrics[0]
        shown.append((f"{first.name} of the engine", share(first.engine), f"the original has {share(first.reference)}"))
    if report.latency:
        pair = report.latency[0]
        times = f"{pair.engine.p50_ms:.3g} ms instead of {pair.reference.p50_ms:.3g} ms at batch {pair.batch}"
        shown.append(("Speed-up", f"{pair.speedup:.2f}×", times))
    good = sum(shape.passed for shape in report.shapes)
    data = f"and {report.samples} samples" if report.samples else "with random input"
    shown.append(("Shapes that agree", f"{good} of {len(report.shapes)}", data))
    lead = element("p", f"edgeattn parity · {report.precision}")
    return element("header", lead, element("h1", verdict, _subject(report)), tiles(shown))


def _reasons(report: ParityReport) -> Markup:
    if report.passed:
        return Markup()
    return section("Why it failed", element("ul", *(element("li", reason) for reason in report.reasons)))


def _outputs(report: ParityReport) -> Markup:
    header = ("output", "max-abs", "/ max|y|", "limit", "rel. L2", "limit", "cosine", "SQNR dB", "worst at", "")
    rows = [
        (o.name, number(o.max_abs), number(o.relative_max), number(o.limit_max), number(o.relative_l2),
         number(o.limit_l2),
         f"{o.cosine:.7f}", number(o.sqnr_db), o.worst, _mark(o.passed))
        for o in report.outputs
    ]  # fmt: skip
    note = (
        "Errors against the original in its highest precision. The limit is twice what the original itself loses "
        "in this precision, within fixed bounds."
    )
    figures = [_figure(output) for output in report.outputs if output.histogram]
    return section("Outputs", table(header, rows, "lrrrrrrrll"), *figures, note=note)


def _figure(output: OutputParity) -> Markup:
    limit = output.limit_max * output.scale
    caption = f"{output.name}: absolute error of {output.elements} values"
    mark = math.log10(limit) if limit else output.histogram[-1][1]
    return element("figure", element("figcaption", caption), histogram(output.histogram, mark, caption))


def _metrics(report: ParityReport) -> Markup:
    if not report.metrics:
        return Markup()
    rows = [
        (m.name, *map(share, (m.reference, m.engine, m.drop, m.max_drop, m.agreement)), str(m.samples))
        for m in report.metrics
    ]
    header = ("metric", "original", "engine", "drop", "allowed", "agreement", "samples")
    note = "Agreement is the metric of the engine if the original's answers were the labels."
    return section("Task metrics", table(header, rows, "lrrrrrr"), note=note)


def _latency(report: ParityReport) -> Markup:
    if not report.latency:
        return Markup()
    drawn, rows, warnings = [], [], []
    for pair in report.latency:
        for side, timing in (("original", pair.reference), ("engine", pair.engine)):
            label = f"{side}, batch {pair.batch}"
            drawn.append((label, timing.p50_ms, f"{timing.p50_ms:.3g} ms", side == "engine"))
            times = (timing.p50_ms, timing.p90_ms, timing.p95_ms, timing.p99_ms)
            rows.append((label, *(f"{time:.3f}" for time in times), f"{timing.throughput:.1f}", str(timing.runs)))
            warnings += [element("p", f"{label}: {timing.warning}", class_="note")] if timing.warning else []
    header = ("", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "samples/s", "runs")
    figure = element("figure", element("figcaption", "median latency, shorter is better"), bars(drawn))
    note = "Both ran in turn in one process after a warm-up, so a ratio holds even where a time does not."
    return section("Latency", table(header, rows, "lrrrrrr"), figure, *warnings, note=note)


def _shapes(report: ParityReport) -> Markup:
    rows = [
        (str(shape), shape.data, number(shape.relative_max), number(shape.relative_l2), _mark(shape.passed))
        for shape in report.shapes
    ]
    note = "Every corner of the range that the engine accepts, and batch 1 and 2."
    return section("Shapes", table(("shape", "data", "/ max|y|", "rel. L2", ""), rows, "llrrl"), note=note)


def _mark(good: bool) -> Markup:
    return badge(good, "ok" if good else "failed")
