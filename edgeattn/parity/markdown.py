"""The parity report as Markdown: what a reviewer of a pull request wants to know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from edgeattn.parity.findings import between, bound, share
from edgeattn.reports.text import number, printable

if TYPE_CHECKING:
    from edgeattn.parity.report import ParityReport

__all__ = ["parity_markdown"]

MOST_REASONS = 10


def parity_markdown(report: ParityReport, page: str = "") -> str:
    """Verdict, metrics with their intervals, outputs, latency and what failed; `page` is where the HTML report is."""
    word = "✅ parity passed" if report.passed else "❌ parity failed"
    lines = [f"### {word}: {_plain(report.compared.get('engine', f'{report.precision} engine'))}", ""]
    data = f"{report.samples} samples" if report.samples else "random input"
    lines += [f"Against {_plain(report.compared.get('reference', 'the original'))} on {data}, {report.precision}.", ""]
    if report.reasons:
        more = len(report.reasons) - MOST_REASONS
        lines += [f"- {_plain(reason)}" for reason in report.reasons[:MOST_REASONS]]
        lines += [*([f"- and {more} more"] if more > 0 else []), ""]
    lines += _metrics(report)
    lines += _table(
        ("output", "rel. L2", "limit", "/ max|y|", "cosine", "SQNR dB"),
        [
            (o.name, number(o.relative_l2), bound(o.limit_l2), number(o.relative_max), f"{o.cosine:.7f}",
             number(o.sqnr_db))
            for o in report.outputs
        ],
    )  # fmt: skip
    lines += _table(
        ("batch", "original p50 ms", "engine p50 ms", "speed-up"),
        [
            (str(pair.batch), f"{pair.reference.p50_ms:.3f}", f"{pair.engine.p50_ms:.3f}", f"{pair.speedup:.2f}x")
            for pair in report.latency
        ],
    )
    good = sum(shape.passed for shape in report.shapes)
    counted = [f"{good} of {len(report.shapes)} shapes agree"]
    counted += [f"{sum(r.passed for r in report.rebuilds)} of {len(report.rebuilds)} rebuilds"] * bool(report.rebuilds)
    counted += [f"{sum(m.passed for m in report.maps)} of {len(report.maps)} attention maps"] * bool(report.maps)
    lines += [", ".join(counted) + "."]
    if page:
        lines += ["", f"The whole report: [{_plain(page)}](<{quote(page)}>)"]
    return "\n".join(lines) + "\n"


def _metrics(report: ParityReport) -> list[str]:
    rows = [
        (m.name, share(m.reference), share(m.engine), share(m.drop), between(m.intervals.get("drop")),
         share(m.max_drop), m.standing)
        for m in report.metrics
    ]  # fmt: skip
    return _table(("metric", "original", "engine", "drop", "95 % interval", "allowed", ""), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines] + [""]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: names come from models and paths."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", printable(text))
    return escaped.replace("\\|", "&#124;").replace("\\<", "&lt;").replace("\\>", "&gt;")
