"""The parity report on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeattn.parity.bootstrap import LEVEL
from edgeattn.parity.findings import between, bound, share
from edgeattn.reports.text import number, printable, table

if TYPE_CHECKING:
    from edgeattn.parity.report import LatencyPair, MetricParity, ParityReport
    from edgeattn.reports.latency import LatencyReport

__all__ = ["parity_text"]


def parity_text(report: ParityReport) -> str:
    """Aligned tables, and the verdict as the last line."""
    parts = [_outputs(report), _shapes(report), _metrics(report)]
    if report.latency:
        rows = [row for pair in report.latency for row in _latency_rows(pair)]
        parts.append(table(rows, ("batch", "", "p50 ms", "p90 ms", "p99 ms", "samples/s", "speed-up"), "llrrrrr"))
    if report.rebuilds:
        builds = [
            (r.name, number(r.relative_l2), number(r.spread_l2), number(r.spread_max), _mark(r.passed))
            for r in report.rebuilds
        ]
        parts.append(table(builds, ("", "rel. L2", "from the engine", "/ max|y|", ""), "lrrrl"))
    if report.maps:
        maps = [
            (
                f"{m.name} ({m.kind}{'; ' * bool(m.note)}{m.note})",
                number(m.distance),
                number(m.limit),
                number(m.kl),
                _mark(m.passed),
            )
            for m in report.maps
        ]
        parts.append(table(maps, ("attention", "distance", "limit", "KL", ""), "lrrrl"))
    return "\n\n".join([*filter(None, parts), report.verdict])


def _outputs(report: ParityReport) -> str:
    rows = [
        (o.name, number(o.max_abs), number(o.relative_max), bound(o.limit_max), number(o.relative_l2),
         bound(o.limit_l2), f"{o.cosine:.7f}", number(o.sqnr_db))
        for o in report.outputs
    ]  # fmt: skip
    header = ("output", "max-abs", "/ max|y|", "limit", "rel. L2", "limit", "cosine", "SQNR dB")
    places = [printable(f"{o.name}: the largest error is at {o.worst}") for o in report.outputs if o.worst_sample]
    places += [printable(o.undefined) for o in report.outputs if o.undefined]
    return "\n".join([table(rows, header, "lrrrrrrr"), *places])


def _shapes(report: ParityReport) -> str:
    rows = [
        (str(shape), shape.data, number(shape.relative_max), number(shape.relative_l2), _mark(shape.passed))
        for shape in report.shapes
    ]
    return table(rows, ("shape", "data", "/ max|y|", "rel. L2", ""), "llrrl")


def _metrics(report: ParityReport) -> str:
    if not report.metrics:
        return f"task: {report.compared['task']}" if "task" in report.compared else ""
    header = ("metric", "reference", "engine", "drop", f"{100 * LEVEL:.0f} % interval", "agree", "samples")
    rows = [_metric_row(metric) for metric in report.metrics]
    standings = [f"{metric.name}: {metric.standing}" for metric in report.metrics if metric.standing]
    return "\n".join([table(rows, header, "lrrrrrr"), *standings])


def _metric_row(metric: MetricParity) -> tuple[str, ...]:
    drop = between(metric.intervals.get("drop"))
    sides = (share(metric.reference), share(metric.engine), share(metric.drop))
    return (metric.name, *sides, drop, share(metric.agreement), str(metric.samples))


def _latency_rows(pair: LatencyPair) -> list[tuple[str, ...]]:
    def row(name: str, report: LatencyReport, speedup: str) -> tuple[str, ...]:
        times = (f"{time:.3f}" for time in (report.p50_ms, report.p90_ms, report.p99_ms))
        return (str(pair.batch), name, *times, f"{report.throughput:.1f}", speedup)

    return [row("reference", pair.reference, ""), row("engine", pair.engine, f"{pair.speedup:.2f}x")]


def _mark(good: bool) -> str:
    return "ok" if good else "FAILED"
