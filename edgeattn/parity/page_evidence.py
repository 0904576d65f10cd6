"""The evidence on the page of a parity report: samples, classes, curves, attention maps, rebuilds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.parity.findings import share
from edgeattn.reports.html import Markup, badge, details, element, grid, pairs, picture, section, table
from edgeattn.reports.svg import curves, matrix
from edgeattn.reports.text import number

if TYPE_CHECKING:
    from edgeattn.parity.report import MapParity, ParityReport, SampleParity

__all__ = ["evidence_sections", "mark"]

SHOT, PAIR = 144, 112  # pixels of a picture's width, and of one of two in a narrow card
MANY = 20  # classes that are shown at once
WORDS = {"input": "input", "reference": "original", "engine": "engine", "difference": "difference"}


def evidence_sections(report: ParityReport) -> list[Markup]:
    """What there is, in the order in which a reader asks for it."""
    parts = (_worst, _agreement, _classes, _curves, _maps, _rebuilds)
    return [drawn for part in parts for drawn in part(report)]


def mark(good: bool) -> Markup:
    """A badge for a line of a table."""
    return badge(good, "ok" if good else "failed")


def _worst(report: ParityReport) -> Iterator[Markup]:
    if not report.worst:
        return
    differ = sum(found.decision > 0 for found in report.worst)
    note = (
        f"Of {report.samples} samples, those with the largest errors"
        f"{f', and first those that are decided otherwise ({differ})' if differ else ''}. "
        "A difference is drawn on a scale of its own."
    )
    wide = "grid wide" if any(len(found.pictures) > 1 for found in report.worst) else "grid"
    yield section("The samples that differ most", element("div", *map(_sample, report.worst), class_=wide), note=note)


def _sample(found: SampleParity) -> Markup:
    """A card: the pictures side by side, and beside them what there is to say."""
    shots = [
        element("figure", element("figcaption", WORDS[what]), picture(data, f"{found.name}: {WORDS[what]}", SHOT))
        for what, data in found.pictures.items()
    ]
    differs = f"decided otherwise by {share(found.decision)}" if found.decision < 1 else "decided otherwise"
    facts = {
        "relative error": number(found.relative_l2),
        "largest error": number(found.max_abs),
        "label": found.label,
        "original": found.reference,
        "engine": found.engine,
    }
    told = element(
        "div",
        element("h3", found.name),
        *([element("p", differs, class_="note")] if found.decision else []),
        pairs({name: said for name, said in facts.items() if said}),
        class_="told",
    )
    return element("div", element("div", *shots, class_="shots"), told)


def _agreement(report: ParityReport) -> Iterator[Markup]:
    if not report.agreement:
        return
    classes = sorted({name for wanted, given, _ in report.agreement for name in (wanted, given)})
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for wanted, given, count in report.agreement:
        counts[classes.index(wanted), classes.index(given)] = count
    total, same = int(counts.sum()), int(np.trace(counts))
    names = [str(name) for name in classes]
    taken = "" if report.metrics else "Without labels, the output is taken for scores of classes. "
    said = f"{taken}Both give the same class to {same} of {total} samples ({share(same / total)})."
    # Many classes that nobody confuses are a diagonal.
    drawn = [] if same == total and len(classes) > MANY else [matrix(counts, names, names, "engine", "original")]
    yield section("Agreement of the two", *drawn, note=said)


def _classes(report: ParityReport) -> Iterator[Markup]:
    if not report.classes:
        return
    named = report.classes[0].metric
    ordered = sorted(report.classes, key=lambda found: (found.engine or 0.0) - (found.reference or 0.0))
    rows = [
        (
            (str(found.number), float(found.number)),
            *((share(value), -1.0 if value is None else value) for value in (found.reference, found.engine)),
            (share(gap), gap),
        )
        for found in ordered
        for gap in [(found.reference or 0.0) - (found.engine or 0.0)]
    ]
    header = ("class", f"{named} of the original", f"{named} of the engine", "drop")
    drawn = table(header, rows, "rrrr", interactive=True, caption=f"{named} by class, the largest drop first")
    held = details(f"{len(rows)} classes", drawn) if len(rows) > MANY else drawn
    yield section("Classes", held)


def _curves(report: ParityReport) -> Iterator[Markup]:
    if report.curves:
        named = {WORDS[side]: points for side, points in report.curves.items()}
        yield section("Precision over recall", element("figure", curves(named, "recall", "precision")))


def _maps(report: ParityReport) -> Iterator[Markup]:
    if report.maps:
        note = "Where each attention looks, on a sample; the measures are means over the samples that were looked at."
        yield section("Attention maps", grid(*map(_map, report.maps)), note=note)


def _map(found: MapParity) -> Markup:
    shots = [
        element("figure", element("figcaption", words), picture(data, f"{found.name}: map of the {words}", PAIR))
        for words, data in (("original", found.original_png), ("engine", found.engine_png))
        if data
    ]
    measures = {
        "distance": f"{number(found.distance)} (at most {number(found.limit)})",
        "KL divergence": number(found.kl),
        "top-k overlap": number(found.topk_overlap),
        "centre moved": number(found.drift),
    }
    known = pairs({name: value for name, value in measures.items() if value != "-"})
    about = element("p", " · ".join(filter(None, (found.op, found.kind, found.module))), class_="note")
    said = filter(None, (*found.failures, found.note))
    reasons = [element("p", reason, class_="note") for reason in said]
    head = element("h3", mark(found.passed), " ", found.name)
    return element("div", head, about, element("div", *shots, class_="shots"), known, *reasons)


def _rebuilds(report: ParityReport) -> Iterator[Markup]:
    if not report.rebuilds:
        return
    metrics = list(dict.fromkeys(name for found in report.rebuilds for name in found.metrics))
    first = {metric.name: metric.engine for metric in report.metrics}
    rows: list[tuple[str, ...]] = [("the engine", "", "", "", *(share(first.get(name)) for name in metrics), "")]
    for found in report.rebuilds:
        errors = map(number, (found.relative_l2, found.spread_l2, found.spread_max))
        rows.append((found.name, *errors, *(share(found.metrics.get(name)) for name in metrics), mark(found.passed)))
    plans = len({found.plan_sha256 for found in report.rebuilds})
    note = (
        f"The same graph built {len(report.rebuilds)} times more: {plans} different plans. What differs between builds "
        "is how far the engine may be from the next one."
    )
    header = ("", "rel. L2", "from the engine", "/ max|y|", *metrics, "")
    yield section("Rebuilds", table(header, rows, "lrrr" + "r" * len(metrics)), note=note)
