"""The profile as one HTML page: what is slow and why at a glance, then every layer and every attention block."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from edgeattn.profile.findings import findings
from edgeattn.profile.report import grouped
from edgeattn.profile.roofline import points
from edgeattn.reports.html import Markup, badge, details, element, grid, page, pairs, section, table, tiles
from edgeattn.reports.svg import bars, roofline, stack
from edgeattn.reports.text import number, percent
from edgeattn.tensors import format_shape, format_size

if TYPE_CHECKING:
    from edgeattn.profile.report import Block, Group, Layer, ProfileReport
    from edgeattn.reports.html import Cell
    from edgeattn.reports.latency import LatencyReport
    from edgeattn.reports.svg import Row

__all__ = ["embedded", "profile_page", "two_lines"]

KINDS = 7  # kinds of layers that have colours of their own
CARDS = 12  # blocks that are shown unfolded, and groups that have bars
ROWS = 500  # layers in the table
POINTS = 50  # layers under the roof
FEW = 3  # nodes and outputs of a layer that are named


def profile_page(report: ProfileReport) -> str:
    """Draw the whole page."""
    sections = [
        _head(report),
        _slow(report),
        _where(report),
        _layers(report),
        _blocks(report),
        _roof(report),
        _sums(report),
        _whole(report),
        _circumstances(report),
    ]
    title = f"Profile of {PurePath(report.engine).name}: {_ms(report.latency.p50_ms)}"
    return page(title, *(part for part in sections if part), data=embedded(report))


def embedded(report: ProfileReport) -> dict[str, Any]:
    """What a page holds for programs: all but the layers, which stand in a table and would be most of the page."""
    return {key: value for key, value in report.to_json().items() if key not in ("layers", "roofline")}


def _head(report: ProfileReport) -> Markup:
    latency, (low, high) = report.latency, report.interval_ms
    shown = [
        ("Latency, median", _ms(latency.p50_ms), f"between {low:.4g} and {high:.4g} ms; p99 {_ms(latency.p99_ms)}"),
        ("Throughput", f"{latency.throughput:.4g} /s", f"samples a second at batch {report.batch}"),
    ]
    if report.attention_share is not None:
        known = sum(block.share is not None for block in report.blocks)
        shown.append(
            ("Attention", percent(report.attention_share), f"of the layers' time, in {_count(known, 'block')}")
        )
    if report.memory.peak is not None:
        weights = report.memory.weights
        held = f"of it weights {format_size(weights)}" if weights is not None else "weights and activations"
        shown.append(("Memory, at most", format_size(report.memory.peak), held))
    if report.energy is not None:
        shown.append(
            ("Energy", f"{number(report.energy.millijoules)} mJ", f"a run, at {number(report.energy.watts)} W")
        )
    lead = element("p", f"edgeattn profile · {report.backend} · {report.precision} · {report.device}")
    doubts = [element("p", words, class_="warn") for words in report.warnings]
    return element("header", lead, element("h1", PurePath(report.engine).name), tiles(shown), *doubts)


def _slow(report: ProfileReport) -> Markup:
    found = findings(report)
    return section("What is slow, and why", _list(found)) if found else Markup()


def _where(report: ProfileReport) -> Markup:
    if not report.layers:
        return Markup()
    kinds = grouped(report.layers, lambda layer: "attention" if layer.attention else layer.kind)
    figures = [_figure("attention, and other layers by operator", stack(_shares(kinds)))]
    for caption, key in (("by attention block", "attention"), ("by stage", "stage"), ("by precision", "precision")):
        groups = [group for group in grouped(report.layers, key) if group.name]
        if len(groups) > 1:
            more = f", the slowest {CARDS} of {len(groups)}" if len(groups) > CARDS else ""
            class_ = "bar" if key == "attention" else "soft"
            figures.append(_figure(caption + more, bars([_bar(group, class_) for group in groups[:CARDS]])))
    note = f"Shares of the sum of all layers' medians, of {report.layer_runs} runs that were timed layer by layer."
    return section("Where the time goes", *figures, note=note)


def _shares(groups: tuple[Group, ...]) -> list[Row]:
    """The largest groups, and the others as one; attention has a colour of its own, first or not."""
    shown, rest = groups[:KINDS], groups[KINDS:]
    colours = iter(f"c{index}" for index in range(2, 9))
    parts = [
        (group.name or "other", group.share, percent(group.share), "c1" if group.name == "attention" else next(colours))
        for group in shown
    ]
    share = sum(group.share for group in rest)
    return [*parts, (_count(len(rest), "more kind"), share, percent(share), "c8")] if rest else parts


def _bar(group: Group, class_: str) -> Row:
    return (group.name, group.median_ms, f"{_ms(group.median_ms)} ({percent(group.share)})", class_)


def _layers(report: ProfileReport) -> Markup:
    if not report.layers:
        return Markup()
    slowest = sorted(report.layers, key=lambda layer: -layer.median_ms)
    header = ("layer", "kind", "precision", "ms", "p90", "share", "output", "belongs to")
    note = "Median and 90th percentile of each layer, slowest first"
    if len(slowest) > ROWS:
        note += f"; the slowest {ROWS} of {len(slowest)}, --json has the others"
    drawn = table(header, [_layer(layer) for layer in slowest[:ROWS]], "lnnrrrnl", interactive=True)
    return section("Layers", drawn, note=note + ".")


def _layer(layer: Layer) -> tuple[Cell, ...]:
    nodes = ", ".join(_few(layer.nodes))
    return (
        two_lines(layer.name, layer.kernel),
        layer.kind,
        layer.precision,
        f"{layer.median_ms:.4f}",
        f"{layer.p90_ms:.4f}",
        f"{100 * layer.share:.1f} %",
        _lines(_few(tuple(map(format_shape, layer.output_shapes)))),
        two_lines(layer.attention or layer.module, "" if nodes == layer.name else nodes),
    )


def _few(items: tuple[str, ...]) -> tuple[str, ...]:
    more = (f"{len(items) - FEW} more",) if len(items) > FEW else ()
    return (*items[:FEW], *more)


def _lines(items: tuple[str, ...]) -> str:
    return element("span", *(element("div", item) for item in items)) if len(items) > 1 else "".join(items)


def two_lines(first: str, second: str) -> str:
    """Two lines in a cell, the second one small."""
    return element("span", first, element("small", second), class_="two") if second else first


def _blocks(report: ProfileReport) -> Markup:
    if not report.blocks:
        return Markup()
    slowest = sorted(report.blocks, key=lambda block: -(block.median_ms or 0.0))
    cards = [_block(block) for block in slowest]
    rest = [details(_count(len(cards) - CARDS, "faster block"), grid(*cards[CARDS:]))] if len(cards) > CARDS else []
    fused = sum(block.fused for block in report.blocks)
    note = f"{fused} of {_count(len(report.blocks), 'block')} run as one kernel; the slowest first."
    return section("Attention", grid(*cards[:CARDS]), *rest, note=note)


def _block(block: Block) -> Markup:
    facts = {"run by": block.plan}
    if block.why:
        facts["why not better"] = block.why
    if block.median_ms is not None:
        share = "" if block.share is None else f", {percent(block.share)} of the layers' time"
        facts["takes"] = f"{_ms(block.median_ms)}{share}, in {_count(len(block.layers), 'layer')}"
    else:
        facts["takes"] = "unknown: the backend hides it in a larger layer"
    if block.ablation_ms is not None:
        low, high = block.ablation_interval_ms or (block.ablation_ms, block.ablation_ms)
        facts["without it"] = f"{_ms(block.ablation_ms)} less, between {low:.3g} and {high:.3g} ms"
    if block.flops is not None:
        facts["computes"] = f"{number(block.flops / 1e6)} MFLOP"
    if block.bytes is not None:
        facts["moves"] = format_size(block.bytes)
    if block.intensity is not None:
        facts["intensity"] = f"{number(block.intensity)} FLOP per byte"
    state = badge(True, "one kernel") if block.fused else badge(None, "several kernels")
    return element("div", element("h3", block.name), element("p", f"{block.op} ", state, class_="note"), pairs(facts))


def _roof(report: ProfileReport) -> Markup:
    slowest = sorted(report.layers, key=lambda layer: -layer.median_ms)[:POINTS]
    shown = {layer.name for layer in slowest} | {block.name for block in report.blocks}
    found = [point for point in points(report) if point.name in shown]
    if not found:
        return Markup()
    blocks = [(p.intensity, p.gflops, p.name) for p in found if p.kind == "block"]
    layers = [(p.intensity, p.gflops, p.name) for p in found if p.kind == "layer"]
    ceilings = [(ceiling.precision, ceiling.gflops, ceiling.gbytes_per_s) for ceiling in report.ceilings]
    rows = [
        (p.name, p.kind, p.precision, number(p.intensity), number(p.gflops), number(p.roof_gflops), percent(p.share),
         p.bound)
        for p in sorted(found, key=lambda p: p.share)
    ]  # fmt: skip
    header = ("name", "", "precision", "FLOP per byte", "GFLOP/s", "attainable", "of it", "limit")
    note = (
        "Lines are what this machine attained on the spot, with large matrices and long copies. Below the slope memory "
        "is the limit, below the flat part arithmetic. Attention blocks are blue, the slowest layers grey."
    )
    drawn = table(header, rows, "lnnrrrrn", interactive=True)
    return section(
        "Against the roof",
        element("figure", roofline(blocks, ceilings, layers)),
        details("The same as a table", drawn),
        note=note,
    )


def _sums(report: ProfileReport) -> Markup:
    sums = report.reconciliation
    if sums is None:
        return Markup()
    rows = [
        ("the engine, as it is", sums.whole_ms, _ms(sums.whole_ms), "bar"),
        ("timed layer by layer", sums.instrumented_ms, _ms(sums.instrumented_ms), "soft"),
        ("its layers in one run", sums.together_ms, _ms(sums.together_ms), "soft"),
        ("sum of their medians", sums.layers_ms, _ms(sums.layers_ms), "soft"),
    ]
    return section("Do the layers add up?", element("figure", bars(rows)), _list(sums.explanation))


def _whole(report: ProfileReport) -> Markup:
    timed = {"whole run": report.latency}
    if report.stages is not None:
        timed |= {
            "host to device": report.stages.host_to_device,
            "compute": report.stages.compute,
            "device to host": report.stages.device_to_host,
        }
    header = ("", "min ms", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "max ms", "mean ms", "runs")
    memory = report.memory
    sizes = {"weights": memory.weights, "activations": memory.activations, "peak": memory.peak}
    shapes = ", ".join(f"{name} {format_shape(shape)}" for name, shape in report.shapes.items())
    facts = {
        "input": f"{shapes}; {report.data}",
        "loaded in": _ms(report.load_ms),
        "first run": _ms(report.first_run_ms),
        "steady after": f"{_count(report.warmup_runs, 'run')}, {_ms(report.warmup_ms)}",
        **{f"memory, {name}": format_size(size) for name, size in sizes.items() if size is not None},
    }
    if report.energy is not None:
        facts["energy"] = f"{number(report.energy.millijoules)} mJ a run, by {report.energy.source}"
    rows = [_times(name, latency) for name, latency in timed.items()]
    note = "Timed without instrumentation, after a warm-up."
    return section("The whole engine", table(header, rows, "lrrrrrrrr"), pairs(facts), note=note)


def _times(name: str, latency: LatencyReport) -> tuple[str, ...]:
    times = (
        latency.min_ms, latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.max_ms, latency.mean_ms
    )  # fmt: skip
    return (name, *(f"{time:.3f}" for time in times), str(latency.runs))


def _circumstances(report: ProfileReport) -> Markup:
    before, after = report.conditions.get("before", {}), report.conditions.get("after", {})
    rows = [(name, before.get(name, "-"), after.get(name, "-")) for name in {**before, **after}]
    facts = {"engine": report.engine, "SHA-256 of the plan": report.plan_sha256, **report.environment}
    parts = [pairs(facts)]
    parts += [table(("", "before", "after"), rows)] if rows else []
    parts += [_list(report.notes)] if report.notes else []
    return section("Where it was measured", *parts)


def _figure(caption: str, drawn: Markup) -> Markup:
    return element("figure", element("figcaption", caption), drawn)


def _list(items: tuple[str, ...]) -> Markup:
    return element("ul", *(element("li", item) for item in items))


def _ms(value: float) -> str:
    return f"{value:.3g} ms"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
