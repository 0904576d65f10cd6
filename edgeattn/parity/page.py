"""The parity report as one HTML page: the verdict at a glance, then the evidence."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import TYPE_CHECKING

from edgeattn.parity.bootstrap import LEVEL, RESAMPLES
from edgeattn.parity.findings import between, bound, share
from edgeattn.parity.page_evidence import evidence_sections, mark
from edgeattn.parity.report import SAID
from edgeattn.reports.html import Markup, badge, details, element, page, pairs, section, table, tiles
from edgeattn.reports.svg import bars, histogram, intervals
from edgeattn.reports.text import number

if TYPE_CHECKING:
    from edgeattn.parity.report import MetricParity, OutputParity, ParityReport

__all__ = ["parity_page"]

NAMED = "engine", "reference", "task", "data", "recipe"  # what most readers want to know of what was compared


def parity_page(report: ParityReport) -> str:
    """Draw the whole page."""
    sections = [
        _head(report),
        _reasons(report),
        _metrics(report),
        _latency(report),
        _compared(report),
        _outputs(report),
        *evidence_sections(report),
        _shapes(report),
    ]
    title = f"Parity of {_subject(report)}: {'passed' if report.passed else 'failed'}"
    return page(title, *(part for part in sections if part), data=report.to_json())


def _subject(report: ParityReport) -> str:
    return PurePath(report.compared.get("engine", f"{report.precision} engine")).name


def _head(report: ParityReport) -> Markup:
    verdict = badge(report.passed, "PASSED" if report.passed else "FAILED")
    worst = max(report.outputs, key=lambda output: output.relative_l2, default=None)
    shown = []
    if report.metrics:
        first = report.metrics[0]
        shown.append((f"{first.name} of the engine", share(first.engine), f"the original has {share(first.reference)}"))
    if worst is not None and math.isfinite(worst.relative_l2):
        limit = "of the signal" + (f"; {number(worst.limit_l2)} is allowed" if worst.limit_l2 < math.inf else "")
        shown.append(("Largest relative error", number(worst.relative_l2), limit))
    if report.latency:
        pair = report.latency[0]
        times = f"{pair.engine.p50_ms:.3g} ms instead of {pair.reference.p50_ms:.3g} ms at batch {pair.batch}"
        shown.append(("Speed-up", f"{pair.speedup:.2f}×", times))
    good = sum(shape.passed for shape in report.shapes)
    data = f"and {report.samples} samples" if report.samples else "with random input"
    shown.append(("Shapes that agree", f"{good} of {len(report.shapes)}", data))
    lead = element("p", f"edgeattn parity · {report.precision} · {report.environment.get('device', '')}")
    said = element("p", ". ".join([_words(report), *_standings(report)]) + ".", class_="lead")
    return element("header", lead, element("h1", verdict, _subject(report)), said, tiles(shown))


def _words(report: ParityReport) -> str:
    return report.verdict.partition(": ")[2]


def _standings(report: ParityReport) -> list[str]:
    """How the gated metrics stand."""
    return [f"{metric.name}: {metric.standing}" for metric in report.metrics if metric.standing]


def _reasons(report: ParityReport) -> Markup:
    if len(report.reasons) <= SAID:
        return Markup()
    return section("Why it failed", element("ul", *(element("li", reason) for reason in report.reasons)))


def _compared(report: ParityReport) -> Markup:
    first = {name: report.compared[name] for name in NAMED if name in report.compared}
    rest = {name: said for name, said in report.compared.items() if name not in first}
    where = pairs({**rest, **report.environment})
    return section("What was compared", pairs(first), details("Hashes, versions and the machine", where))


def _metrics(report: ParityReport) -> Markup:
    if not report.metrics:
        return Markup()
    rows = [
        (m.name, share(m.reference), share(m.engine), share(m.drop), between(m.intervals.get("drop")),
         share(m.max_drop), share(m.agreement), str(m.samples))
        for m in report.metrics
    ]  # fmt: skip
    head = f"{100 * LEVEL:.0f} % interval"
    header = ("metric", "original", "engine", "drop", head, "allowed", "agreement", "samples")
    told = [element("p", f"{standing}.", class_="note") for standing in _standings(report)]
    note = (
        f"Intervals are percentiles of {RESAMPLES:,} resamples of the samples, the same for both sides. Agreement is "
        "the metric of the engine if the original's answers were the labels."
    )
    return section("Task", *_drops(report.metrics), table(header, rows, "lrrrrrrr"), *told, note=note)


def _drops(metrics: tuple[MetricParity, ...]) -> list[Markup]:
    """Both sides of the metrics that are gated, or of the first, with their intervals."""
    gated = [metric for metric in metrics if metric.max_drop is not None] or metrics[:1]
    rows = [
        (f"{metric.name}, {words}", *_around(metric, side, value))
        for metric in gated
        for words, side, value in (("original", "reference", metric.reference), ("engine", "engine", metric.engine))
        if side in metric.intervals
    ]
    if not rows:
        return []
    caption = element("figcaption", f"with {100 * LEVEL:.0f} % intervals")
    return [element("figure", caption, intervals(rows, show=share))]


def _around(metric: MetricParity, side: str, value: float) -> tuple[float, float, float]:
    low, high = metric.intervals[side]
    return low, value, high


def _latency(report: ParityReport) -> Markup:
    if not report.latency:
        return Markup()
    drawn, rows, warnings = [], [], []
    for pair in report.latency:
        for side, timing in (("original", pair.reference), ("engine", pair.engine)):
            label = f"{side}, batch {pair.batch}"
            drawn.append((label, timing.p50_ms, f"{timing.p50_ms:.3g} ms", "bar" if side == "engine" else "soft"))
            times = (timing.p50_ms, timing.p90_ms, timing.p95_ms, timing.p99_ms)
            rows.append((label, *(f"{time:.3f}" for time in times), f"{timing.throughput:.1f}", str(timing.runs)))
            warnings += [element("p", f"{label}: {timing.warning}", class_="note")] if timing.warning else []
    header = ("", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "samples/s", "runs")
    figure = element("figure", element("figcaption", "median latency, shorter is better"), bars(drawn))
    note = "Both ran in turn in one process after a warm-up, so a ratio holds even where a time does not."
    return section("Latency", table(header, rows, "lrrrrrr"), figure, *warnings, note=note)


def _outputs(report: ParityReport) -> Markup:
    header = ("output", "", "max-abs", "/ max|y|", "limit", "rel. L2", "limit", "cosine", "SQNR dB", "worst at")
    rows = [
        (o.name, mark(o.passed), number(o.max_abs), number(o.relative_max), bound(o.limit_max), number(o.relative_l2),
         bound(o.limit_l2), f"{o.cosine:.7f}", number(o.sqnr_db), o.worst)
        for o in report.outputs
    ]  # fmt: skip
    said = "The limit is twice what the original itself loses in this precision, within fixed bounds."
    if report.precision == "int8":
        said = "INT8 is judged by its noise on real samples, on random input only by whether its numbers are finite."
    elif any(math.isinf(output.limit_max) for output in report.outputs):
        said += " Detections are paired off and differ by as much as they score; no single one is judged."
    note = f"Errors against the original in its highest precision. {said}"
    figures = [_figure(output) for output in report.outputs if output.histogram]
    told = [element("p", f"{o.undefined}.", class_="note") for o in report.outputs if o.undefined]
    return section("Outputs", table(header, rows, "lnrrrrrrrl"), *told, *figures, note=note)


def _figure(output: OutputParity) -> Markup:
    limit = output.limit_max * output.scale  # of whole numbers, a share: not on this axis
    caption = f"{output.name}: absolute error of {output.elements:,} values"
    at = math.log10(limit) if 0 < limit < math.inf and not output.whole else None
    return element("figure", element("figcaption", caption), histogram(output.histogram, at, caption))


def _shapes(report: ParityReport) -> Markup:
    rows = [
        (str(shape), mark(shape.passed), shape.data, number(shape.relative_max), number(shape.relative_l2))
        for shape in report.shapes
    ]
    note = "Every corner of the range that the engine accepts, and batch 1, 2 and the largest."
    return section("Shapes", table(("shape", "", "data", "/ max|y|", "rel. L2"), rows, "lnlrr"), note=note)
