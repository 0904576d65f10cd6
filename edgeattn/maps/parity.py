"""Does an engine look where its original looks? Every attention map of both, over some samples, and how far apart."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.backends import open_session
from edgeattn.backends.base import Session
from edgeattn.batches import at_opt, batch_size, take_rows
from edgeattn.data import batches
from edgeattn.engine import Sidecar, read_sidecar
from edgeattn.folding import folded_recipe
from edgeattn.graph import Graph, load_graph
from edgeattn.images import of_pixels
from edgeattn.maps.compare import DISTRIBUTIONS, AttentionMap
from edgeattn.maps.exposed import exposed
from edgeattn.maps.hooks import matching, seen_in
from edgeattn.maps.picture import CHANNELS, panel
from edgeattn.maps.rebuilt import rebuilt
from edgeattn.maps.watch import Watch, watched
from edgeattn.model import Model, load_model
from edgeattn.parity import reference_from_graph
from edgeattn.parity.files import samples_for, spread
from edgeattn.parity.report import MapParity
from edgeattn.reports.text import number
from edgeattn.tensors import random_feeds
from edgeattn.tolerance import tolerance_for

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Feeds

TOP = 0.1  # of the positions: those that an overlap is about
SHOT = 96  # pixels
TINY = 1e-12


def map_parity(
    engine: str | Path,
    against: str,
    *,
    weights: Path | None = None,
    data: Path | None = None,
    recipe: Path | None = None,
    ranges: Path | None = None,
    limit: int = 8,
    seed: int = 0,
    trust: bool = False,
) -> tuple[MapParity, ...]:
    """Compare every attention map of an engine with its original's, in the order of the graph; empty where it has none.

    A fused attention makes no map, so the engine is built again, from the same typed graph, with its maps as outputs.
    The limit of a distance is what parity allows an output: twice what the original's own map moves when every number
    is rounded to the engine's precision, within the bounds of the tolerance table.

    Args:
        engine: an engine that runs here.
        against: its original: `model.onnx`, `FILE.py:FACTORY` or `zoo:NAME`.
        weights: of a PyTorch model, as in `load_model`.
        data: samples; without them, one random input.
        recipe: how images become inputs.
        ranges: the table of ranges that the engine was built with, if it was.
        limit: samples to look at, from all over the folder.
        seed: of the random input.
        trust: as in `open_session`.

    Raises:
        InputError: the engine's graph or its ranges are gone or others, or the samples are refused.
        UnsupportedError: the engine cannot run here.
    """
    sidecar = read_sidecar(engine, trust)
    open_session(engine, trust).close()
    dataset = samples_for(sidecar, data, recipe) if data else None
    parts = rebuilt(engine, sidecar, ranges=ranges, data=dataset)
    opened, watches = watched(parts.graph)
    if not watches:
        return ()
    opt = at_opt(sidecar.profile)
    rows = [0] * batch_size(opt, sidecar.profile)
    if dataset:
        found = batches(spread(dataset, limit), 1)
        samples = [take_rows(sidecar.profile, feeds, rows) for _, feeds, _ in found]
    else:
        samples = [random_feeds(sidecar.inputs, opt, seed)]
    original = _Original(against, weights, sidecar, opened)
    with exposed(parts, opened, watches) as session:
        return _compared(session, original, opened, watches, samples)


def _compared(
    session: Session, original: _Original, opened: Graph, watches: Sequence[Watch], samples: Iterable[Feeds]
) -> tuple[MapParity, ...]:
    written, names = reference_from_graph(opened), [spec.name for spec in opened.outputs]
    precision, found = original.precision, [_Sum(watch) for watch in watches]
    for feeds in samples:
        like = dict(zip(names, written.run(feeds), strict=True))
        low = None if tolerance_for(precision).noise else written.low(feeds, precision)
        own = dict(zip(names, low, strict=True)) if low else {}
        truth, ours = original.maps(feeds, watches, like), session.run(feeds)
        for item in found:
            output = item.watch.output
            item.found = item.found and output in truth
            item.add(feeds, truth.get(output, like[output]), ours[output], like[output], own.get(output))
    return tuple(item.result(precision) for item in found)


class _Original:
    """What the original's attention maps are: PyTorch's own, or those of its graph."""

    def __init__(self, against: str, weights: Path | None, sidecar: Sidecar, ours: Graph) -> None:
        self.folded, self.precision = folded_recipe(sidecar.graph), sidecar.precision.asked
        self.model: Model | None = None
        self.graph, self.watches = ours, tuple[Watch, ...]()
        if against.lower().endswith(".onnx"):
            self.graph, self.watches = watched(load_graph(against))
        else:
            self.model = load_model(against, weights)
        self.written = reference_from_graph(self.graph)
        self.names = [spec.name for spec in self.graph.outputs]

    def maps(self, feeds: Feeds, watches: Sequence[Watch], like: Feeds) -> dict[str, Array]:
        """The maps of one sample that were found, by the names that the engine's graph has for them.

        `like` are the maps of that graph as it is written.
        """
        own = self._fed(feeds)
        if self.model is not None:
            seen = seen_in(self.model, own)
            pairs = [(watch.output, matching(seen, watch.op, watch.module, like[watch.output])) for watch in watches]
            return {output: array for output, array in pairs if array is not None}
        arrays = dict(zip(self.names, self.written.run(own), strict=True))
        theirs = self.watches if len(self.watches) == len(watches) else watches
        return {
            watch.output: arrays[other.output]
            for watch, other in zip(watches, theirs, strict=True)
            if other.op == watch.op
            and other.output in arrays
            and arrays[other.output].shape == like[watch.output].shape
        }

    def _fed(self, feeds: Feeds) -> dict[str, Array]:
        pixels = self.folded is not None and (self.model is not None or "float" in self.graph.inputs[0].dtype)
        own = {n: of_pixels(a, self.folded) if pixels and self.folded else a for n, a in feeds.items()}
        if self.model is not None or set(own) == {spec.name for spec in self.graph.inputs}:
            return own
        return dict(zip((spec.name for spec in self.graph.inputs), own.values(), strict=True))


@dataclass
class _Sum:
    """The measures of one map over samples, and the sample at which it is farthest from the original's."""

    watch: Watch
    distances: list[float] = field(default_factory=list)
    own: list[float | None] = field(default_factory=list)
    measures: list[tuple[float | None, float | None, float | None]] = field(default_factory=list)
    worst: tuple[AttentionMap, Feeds] | None = None
    found: bool = True  # the original's own map

    def add(self, feeds: Feeds, truth: Array, ours: Array, like: Array, rounded: Array | None) -> None:
        """Add one sample; `rounded` is what rounding makes of `like`, the map of the graph as it is written."""
        item = self._map(truth, ours)
        distance = item.distance
        distance = math.inf if distance is None or math.isnan(distance) else distance
        if self.worst is None or distance > max(self.distances):
            self.worst = item, feeds
        self.distances.append(distance)
        self.own.append(None if rounded is None else self._map(like, rounded).distance)
        self.measures.append((kl(item), topk_overlap(item), drift(item)))

    def _map(self, original: Array, engine: Array) -> AttentionMap:
        watch = self.watch
        return AttentionMap(watch.op, watch.name, watch.kind, original, engine, watch.items)

    def result(self, precision: str) -> MapParity:
        """The means, and the verdict."""
        tolerance, distance = tolerance_for(precision), float(np.mean(self.distances))
        known = [value for value in self.own if value is not None and math.isfinite(value)]
        own = float(np.mean(known)) if len(known) == len(self.own) else None
        limit = tolerance.limit_differing(own) if self.watch.op == "HardAttention" else tolerance.limit(own)
        failures: tuple[str, ...] = ()
        if not distance <= limit:
            words = f"attention {self.watch.name!r} looks elsewhere: its map of {self.watch.kind} is"
            failures = (f"{words} {number(distance)} from the original's, the limit is {number(limit)}",)
        assert self.worst is not None
        item, feeds = self.worst
        columns = [[value for value in column if value is not None] for column in zip(*self.measures, strict=True)]
        means = [float(np.mean(column)) if column else None for column in columns]
        return MapParity(
            op=item.op,
            name=item.name,
            kind=item.kind,
            module=self.watch.module,
            kl=means[0],
            topk_overlap=means[1],
            drift=means[2],
            distance=distance,
            limit=limit,
            failures=failures,
            note="" if self.found else "the original's own map was not found: the engine's graph stands in",
            original_png=_drawn(item, item.original, feeds),
            engine_png=_drawn(item, item.engine if item.engine is not None else item.original, feeds),
        )


def kl(item: AttentionMap) -> float | None:
    """The Kullback-Leibler divergence of the engine's weights from the original's, mean over queries, in nats.

        sum(p log(p / q) - p + q) / sum(p)

    which is sum(p log(p / q)) for weights that add up to one, and never negative; None for other maps.
    """
    if item.engine is None or item.op not in DISTRIBUTIONS:
        return None
    p, q = item.original.astype(np.float64), item.engine.astype(np.float64)
    if not np.isfinite(q).all():
        return math.inf
    ratio = np.log(np.maximum(p, TINY)) - np.log(np.maximum(q, TINY))
    return max(0.0, float((p * ratio - p + q).sum() / max(p.sum(), TINY)))


def topk_overlap(item: AttentionMap) -> float | None:
    """The original's mass at the engine's top tenth of positions, relative to that at its own; mean over queries.

    Of choices, the share of the original's that the engine makes too. None for sampling grids.
    """
    if item.engine is None or item.op == "SpatialTransformer":
        return None
    rows = -1 if item.op == "SoftmaxAttention" else len(item.original)
    width = item.original.shape[-1] if rows < 0 else item.original.size // max(rows, 1)
    p, q = (np.nan_to_num(array.astype(np.float64)).reshape(-1, width) for array in (item.original, item.engine))
    if item.op == "HardAttention":
        return float(np.mean([len(set(a) & set(b)) / len(set(a)) for a, b in zip(p, q, strict=True)]))
    k = max(1, round(TOP * width))
    best = np.maximum(np.sort(p, axis=1)[:, -k:], 0).sum(1)
    held = np.maximum(np.take_along_axis(p, np.argsort(q, axis=1, kind="stable")[:, -k:], 1), 0).sum(1)
    return float(np.where(best > 0, held / np.maximum(best, TINY), 1.0).mean())


def drift(item: AttentionMap) -> float | None:
    """How far the centre of mass moved, in fractions of the map's height and width; None where it has no places."""
    if item.engine is None:
        return None
    ours, theirs = (_planes(item, array) for array in (item.engine, item.original))
    if ours is None or theirs is None:
        return None
    return float(np.hypot(*(_centres(ours) - _centres(theirs))).mean())


def _planes(item: AttentionMap, array: Array) -> Array | None:
    """The maps as (N, h, w), where they have places: one a query of a softmax attention, one a sample of others."""
    if item.op in (*CHANNELS, "SpatialTransformer", "HardAttention") or item.kind == "channel":
        return None
    values = np.maximum(np.nan_to_num(array.astype(np.float64), posinf=0.0), 0.0)
    rows = values.reshape(-1, values.shape[-1]) if item.op == "SoftmaxAttention" else values
    sizes = [size for size in rows.shape[1:] if size != 1]
    if len(sizes) > 1:
        planes: Array = rows.reshape(len(rows), -1, *sizes[-2:]).sum(1)
        return planes
    count = sizes[0] if sizes else 0
    for skipped in (0, 1):  # a class token comes first
        side = math.isqrt(count - skipped) if count > skipped else 0
        if side > 2 and side * side == count - skipped:
            square: Array = rows.reshape(len(rows), -1)[:, skipped:].reshape(-1, side, side)
            return square
    return None


def _centres(planes: Array) -> Array:
    """The centre of mass of each map, (2, N), in fractions of its height and width."""
    mass = np.maximum(planes.sum((1, 2)), TINY)
    down, right = ((np.arange(size) + 0.5) / size for size in planes.shape[1:])
    return np.stack([(planes.sum(2) * down).sum(1) / mass, (planes.sum(1) * right).sum(1) / mass])


def _drawn(item: AttentionMap, array: Array, feeds: Feeds) -> bytes:
    """A small PNG of the first map of a sample, over the picture that it is of."""
    from PIL import Image

    base = Image.fromarray(_picture(feeds)).resize((160, 160))
    drawn = panel(item, array, base).resize((SHOT, SHOT)).quantize(64)
    stream = io.BytesIO()
    drawn.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _picture(feeds: Feeds) -> Array:
    """The first input that is an image, from its darkest to its brightest value, (H, W, 3) in 8 bits; else gray."""
    for array in feeds.values():
        if array.ndim == 4 and (array.shape[1] in (1, 3) or array.shape[3] in (1, 3)):
            image = array[0] if array.shape[3] in (1, 3) else np.moveaxis(array[0], 0, -1)
            image = np.nan_to_num(image.astype(np.float64))
            low, high = float(image.min()), float(image.max())
            bright: Array = np.broadcast_to(255 * (image - low) / max(high - low, TINY), (*image.shape[:2], 3))
            return bright.astype(np.uint8)
    return np.full((1, 1, 3), 90, np.uint8)
