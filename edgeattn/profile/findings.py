"""What of an engine is slow, and why, in a few sentences: what a profile says to somebody in a hurry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

from edgeattn.profile.report import Block, ProfileReport, grouped
from edgeattn.profile.roofline import points
from edgeattn.reports.text import number, percent

__all__ = ["findings"]

MOST = 3  # sentences about attention
WORTH = 0.05  # the share of the time from which on something is worth a sentence
FAR = 0.5  # the share of what the machine attains below which a layer is far from it
MOVING = re.compile("re(order|format|shape)|transpose|permut|convert|cast|copy", re.IGNORECASE)


def findings(report: ProfileReport) -> tuple[str, ...]:
    """Sentences, the most important first; none of an engine whose layers are not known."""
    if not report.layers:
        return ()
    return (*_attention(report), *_layers(report), *_moved(report), *_roof(report), *_outside(report))


def _attention(report: ProfileReport) -> Iterator[str]:
    """Blocks that are run alike are one sentence."""
    alike: dict[tuple[str, str, str], list[Block]] = {}
    for block in report.blocks:
        alike.setdefault((block.op, block.plan, block.why), []).append(block)
    costs = {key: sum(block.share or 0.0 for block in blocks) for key, blocks in alike.items()}
    for (op, plan, why), share in sorted(costs.items(), key=lambda item: -item[1])[:MOST]:
        if share >= WORTH:
            who = _who(op, alike[op, plan, why])
            yield f"{who}, {percent(share)} of the layers' time. Run by: {plan}. {_sentence(why)}".rstrip()


def _who(op: str, blocks: Sequence[Block]) -> str:
    times = {block.name: block.median_ms or 0.0 for block in blocks}
    slowest = max(times, key=lambda name: times[name])
    if len(times) == 1:
        return f"{slowest} ({op}) takes {times[slowest]:.3g} ms"
    total = sum(times.values())
    return f"{len(times)} blocks of {op}, the slowest {slowest} ({times[slowest]:.3g} ms), take {total:.3g} ms"


def _layers(report: ProfileReport) -> Iterator[str]:
    ordered = sorted(report.layers, key=lambda layer: -layer.share)
    half = 1 + sum(held < 0.5 for held in accumulate(layer.share for layer in ordered[:-1]))
    slowest = ordered[0]
    within = slowest.attention or slowest.module
    where = f", in {within}" if within not in ("", slowest.name) else ""
    cost = f"{slowest.median_ms:.3g} ms, {percent(slowest.share)}"
    name = f"{slowest.name} ({slowest.kind}{where})"
    yield f"{half} of {len(ordered)} layers take half of the time; the slowest is {name}: {cost}."
    for first in grouped([layer for layer in report.layers if not layer.attention], "kind")[:1]:
        if first.share >= WORTH:
            layers = f"{first.layers} layers" if first.layers > 1 else "one layer"
            took = f"{first.median_ms:.3g} ms in {layers}, {percent(first.share)}"
            yield f"Outside attention, most of it is {first.name}: {took}."


def _moved(report: ProfileReport) -> Iterator[str]:
    moving = [layer for layer in report.layers if MOVING.search(layer.kind)]
    share = sum(layer.share for layer in moving)
    if share >= WORTH:
        kinds = ", ".join(group.name for group in grouped(moving, "kind")[:3])
        yield f"Moving and converting values takes {percent(share)}: {len(moving)} layers ({kinds})."


def _roof(report: ProfileReport) -> Iterator[str]:
    times = {layer.name: layer.median_ms for layer in report.layers}
    shares = {layer.name: layer.share for layer in report.layers}
    far = [p for p in points(report) if p.kind == "layer" and p.share < FAR and shares[p.name] >= WORTH]
    if far:
        point = max(far, key=lambda p: times[p.name])
        limit = "memory" if point.bound == "memory" else "arithmetic"
        attained = f"{number(point.gflops)} GFLOP/s, {percent(point.share)} of what this machine does where {limit}"
        yield f"{point.name} attains {attained} is the limit."


def _outside(report: ProfileReport) -> Iterator[str]:
    sums = report.reconciliation
    if sums is not None and sums.outside_ms >= WORTH * sums.whole_ms:
        yield f"{sums.outside_ms:.3g} ms of a run, {percent(sums.outside_ms / sums.whole_ms)}, are in no layer."


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:].rstrip('.')}." if words else ""
