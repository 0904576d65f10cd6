"""What a bisection found as one HTML page: what breaks and what cures it, then the curve."""

from __future__ import annotations

import math
from pathlib import PurePath
from typing import TYPE_CHECKING

from edgeattn.reports.html import Markup, badge, element, page, pairs, section, table
from edgeattn.reports.svg import curves
from edgeattn.reports.text import number

if TYPE_CHECKING:
    from edgeattn.bisect.report import BisectReport, Rung, SectionParity

SMALLEST, LARGEST = 1e-9, 10.0  # errors that the curve tells from none, and from infinite ones


def bisect_page(report: BisectReport) -> str:
    """Draw the whole page."""
    sections = (_head(report), _where(report), _culprits(report), _ladder(report), _sections(report))
    about = section("Where it was measured", pairs(report.environment))
    title = f"Bisection of {PurePath(report.engine).name}: {report.first or ('passed' if report.passed else 'failed')}"
    return page(title, *(part for part in sections if part), about, data=report.to_json())


def _head(report: BisectReport) -> Markup:
    verdict = badge(report.passed, "PASSED" if report.passed else "FAILED")
    lead = element("p", f"edgeattn bisect · {report.backend} · {report.precision} · {report.builds} builds")
    lines = [element("p", line) for line in report.verdict.partition(": ")[2].splitlines()]
    return element("header", lead, element("h1", verdict, PurePath(report.engine).name), *lines)


def _where(report: BisectReport) -> Markup:
    rows = {"engine": report.engine, "against": report.against, "fails at": "; ".join(report.where)}
    reasons = element("ul", *(element("li", reason) for reason in (*report.reasons, *report.notes)))
    return section("What was compared", pairs({name: text for name, text in rows.items() if text}), reasons)


def _sections(report: BisectReport) -> Markup:
    if not report.sections:
        return Markup()
    header = ("", "section", "kind", "nodes", "own error", "limit", "accumulated", "")
    rows = [_section(place, found) for place, found in enumerate(report.sections, 1)]
    heights = [(found.relative_l2, found.limit_l2, found.accumulated_l2) for found in report.sections]
    series = {
        name: [(place, _height(errors[column])) for place, errors in enumerate(heights, 1)]
        for column, name in enumerate(("own error", "limit", "accumulated"))
    }
    drawn = curves(series, "section", "relative L2 error, log10")
    note = (
        "Each section is built alone as the engine was, and fed what the original computes there: its own error is "
        "what it does itself. Accumulated is what the whole engine has gathered there."
    )
    return section("Where it breaks", element("figure", drawn), table(header, rows, "rllrrrrl"), note=note)


def _section(place: int, found: SectionParity) -> tuple[str, ...]:
    good = None if found.unknown else found.passed
    word = "not judged" if found.unknown else "ok" if found.passed else "FAILED"
    gathered = "-" if found.accumulated_l2 is None else number(found.accumulated_l2)
    errors = (number(found.relative_l2), number(found.limit_l2), gathered)
    return (str(place), found.name, found.kind, str(len(found.nodes)), *errors, badge(good, word))


def _height(error: float | None) -> float:
    """Where an error lies in the curve: its power of ten."""
    return math.nan if error is None else math.log10(min(max(error, SMALLEST), LARGEST))


def _culprits(report: BisectReport) -> Markup:
    if not report.culprits:
        return Markup()
    rows = [(item.section, str(item)) for item in report.culprits]
    return section("The fewest nodes that fail", table(("section", "nodes"), rows))


def _ladder(report: BisectReport) -> Markup:
    if not report.ladder:
        return Markup()
    note = "Each tried on the whole engine. Time is the median over that of the engine as it is, measured in turns."
    header = ("remedy", "", "rel. L2", "time", "by")
    return section("What cures it", table(header, [_rung(rung) for rung in report.ladder], "llrrl"), note=note)


def _rung(rung: Rung) -> tuple[str, ...]:
    error = "-" if rung.relative_l2 is None else number(rung.relative_l2)
    ratio = "-" if rung.time_ratio is None else f"{rung.time_ratio:.2f}"
    by = element("code", rung.command) if rung.cures else rung.why
    return (rung.remedy, badge(rung.cures, "cures" if rung.cures else "no"), error, ratio, by)
