"""Graph + data -> Ranges: what every activation was like on real samples, looked at once, one after the other.

Samples are independent, and what is seen of them adds up in any order: threads share them, a killed run goes on where
it was, and machines may take a part each. Nothing that grows with their number is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from onnx_ir.passes import common

from edgeattn import __version__, files
from edgeattn.backends import onnxruntime
from edgeattn.backends.base import Progress, silent
from edgeattn.calibrate.look import Look, observed_shapes, open_look
from edgeattn.calibrate.observers import Seen, merge, nothing, observe
from edgeattn.calibrate.probes import probes
from edgeattn.calibrate.settings import CalibrationSettings, load_calibration
from edgeattn.calibrate.shards import Partial, finish, load_partial, merge_shards, save_partial
from edgeattn.data import Dataset, Recipe, Sample, batches, open_data
from edgeattn.errors import InputError, MissingDependencyError, UsageError
from edgeattn.folding import feeding_recipe
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph
from edgeattn.images import plain_recipe
from edgeattn.lowering import to_backend
from edgeattn.normalise import infer_types, inlined
from edgeattn.precision.ranges import Ranges, save_ranges
from edgeattn.reports.text import table

if TYPE_CHECKING:
    from edgeattn.tensors import Array

__all__ = [
    "CalibrationReport",
    "CalibrationSettings",
    "calibrate",
    "calibrate_file",
    "calibrate_shard",
    "load_calibration",
    "merge_files",
]

SAVE_EVERY_S = 5.0
MEMORY_BYTES = 1 << 30  # that values under observation may take, all threads together


_Looked: TypeAlias = "tuple[Seen | None, int, list[str]]"  # what was seen, of how many samples, and the bad files


class Share(float):
    """How far a phase is, as a fraction that knows of how many things: a bar can tell their rate."""

    of: int

    def __new__(cls, done: int, of: int) -> Share:
        """`done` of `of` things."""
        share = super().__new__(cls, done / max(of, 1))
        share.of = of
        return share


def calibrate(
    graph: Graph,
    data: Dataset,
    settings: CalibrationSettings | None = None,
    *,
    state: Path | None = None,
    progress: Progress = silent,
) -> Ranges:
    """Observe every activation of a graph on samples, in float32.

    Args:
        graph: as it was loaded: it is fused here, and the names are those of its fused form.
        data: from `open_data`.
        settings: how; the default looks at all samples, and clips nothing.
        state: a file that is written every few seconds and left behind when the run is interrupted; another run of
            the same calibration goes on from it, and ends in the same ranges.
        progress: called with a phase and its fraction.

    Raises:
        InputError: more than 1 % of the files (and more than one), or all, are bad: unreadable, or with activations
            that are not finite.
        UnsupportedError: ONNX Runtime cannot run the graph.
    """
    return finish(calibrate_shard(graph, data, settings, state=state, progress=progress))


def calibrate_shard(
    graph: Graph,
    data: Dataset,
    settings: CalibrationSettings | None = None,
    shard: tuple[int, int] = (1, 1),
    *,
    state: Path | None = None,
    progress: Progress = silent,
) -> Partial:
    """Observe the k-th of n parts of the samples; `edgeattn.calibrate.shards.merge_shards` puts them together.

    Raises:
        UsageError: not 1 <= k <= n.
        UnsupportedError: ONNX Runtime cannot run the graph, or is not installed.
        InputError: none of the samples can be read.
    """
    settings = settings or CalibrationSettings()
    k, n = shard
    if not 1 <= k <= n:
        raise UsageError(f"there is no shard {k}/{n}; expected K/N with 1 <= K <= N")
    if lacking := onnxruntime.missing():
        raise MissingDependencyError(f"activations cannot be observed: {lacking[0]}")
    size = _batch(graph)
    fed = {name: _filled(array, size).shape for name, array in next(iter(data)).feeds.items()}
    progress("preparing the graph", None)
    expanded = observed_graph(graph)
    plan = probes(expanded.model.graph)
    names = tuple(sorted(plan.observed))
    chosen = _chosen(data, settings)
    about = {
        **_about(graph, data, chosen, settings, progress),
        "derived": {name: [*asdict(item).values()] for name, item in sorted(plan.derived.items())},
    }
    start = Partial(about, names, nothing(len(names), settings.method != "minmax"), shard)
    found = _resumed(start, state, progress) if state is not None and state.exists() else start
    shapes = observed_shapes(expanded, plan.observed, fed)
    cpus, bytes_observed = len(os.sched_getaffinity(0)), 4 * sum(map(math.prod, shapes.values()))
    workers = max(1, min(cpus, MEMORY_BYTES // max(1, bytes_observed)))
    look = open_look(expanded, plan.observed, shapes, max(1, cpus // workers))
    groups = [chosen[place : place + size] for place in range(0, len(chosen), size)]
    run = _Run(data, look, {name: plan.observed[name] for name in names}, size, workers, len(groups))
    return run.over(groups[k - 1 :: n], found, state, progress)


def observed_graph(graph: Graph) -> Graph:
    """The graph that is observed: its attentions are expanded canonical nodes, and every value has a type."""
    model = inlined(to_backend(fuse(graph)[0], "openvino").model)
    common.NameFixPass()(model)
    if any(value.type is None for node in model.graph for value in node.outputs if value.name):
        infer_types(model)
    return Graph(model, graph.path, graph.source_sha256)


def _batch(graph: Graph) -> int:
    """How many samples the graph takes at once: its fixed batch, or one."""
    sizes = (spec.shape[0] for spec in graph.inputs if spec.shape)
    return max((size for size in sizes if isinstance(size, int)), default=1)


def _chosen(data: Dataset, settings: CalibrationSettings) -> list[int]:
    """The samples to look at, in order; a limit takes them from all over the folder, the same ones each time."""
    salt = f"{settings.seed}:".encode()
    names = [os.fsencode(path.relative_to(data.folder).as_posix()) for path, _ in data.files]
    hashed = sorted(range(len(names)), key=lambda index: hashlib.sha256(salt + names[index]).digest())
    return sorted(hashed[: settings.limit])


def _about(
    graph: Graph, data: Dataset, chosen: Sequence[int], settings: CalibrationSettings, progress: Progress
) -> dict[str, Any]:
    """What identifies a calibration."""
    import onnxruntime as ort

    progress("hashing the data", None)
    paths = [data.files[index][0] for index in chosen]
    names = [(path.relative_to(data.folder).as_posix(), path.stat().st_size) for path in paths]
    how: dict[str, Any] = {"limit": settings.limit, "seed": settings.seed, "runtime": f"onnxruntime {ort.__version__}"}
    if settings.method == "percentile":
        how["percentile"] = settings.percentile
    return {
        "method": settings.method,
        "graph_sha256": graph.sha256,
        "data_sha256": files.sha256_files(paths, json.dumps(names).encode()),
        "recipe": plain_recipe(data.recipe),
        "settings": how,
        "version": __version__,
        "files": len(paths),
    }


def _resumed(start: Partial, state: Path, progress: Progress) -> Partial:
    """Where an interrupted run of the same calibration was; else the start."""
    with contextlib.suppress(InputError):
        found = load_partial(state)
        if (found.about, found.names, found.shard) == (start.about, start.names, start.shard):
            progress(f"going on after {found.samples} samples", None)
            return found
    progress(f"starting anew: {state} is of another calibration", None)
    return start


@dataclass
class _Run:
    """One pass over groups of samples, of `runs` in all; `floors` are the lower bounds that `observe` takes."""

    data: Dataset
    look: Look
    floors: Mapping[str, float | None]
    size: int
    workers: int
    runs: int

    def over(self, groups: Sequence[Sequence[int]], found: Partial, state: Path | None, progress: Progress) -> Partial:
        """Look at all groups that are not done, several at a time, and add them up in their order."""
        todo, pending = iter(groups[found.done :]), deque[Future[_Looked]]()
        saved = time.monotonic()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while found.done < len(groups):
                    progress("calibrating", Share(found.done, len(groups)))
                    for group in islice(todo, self.workers + 1 - len(pending)):
                        pending.append(pool.submit(self._group, group, found.seen))
                    found = _added(found, pending.popleft().result())
                    if state is not None and time.monotonic() - saved > SAVE_EVERY_S:
                        save_partial(found, state)
                        saved = time.monotonic()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                if state is not None:
                    save_partial(found, state)
                raise
        progress("calibrating", Share(found.done, len(groups)))
        return found

    def _group(self, group: Sequence[int], before: Seen) -> _Looked:
        """Look at the samples of one run of the graph; what cannot be used is told apart."""
        bad: list[str] = []
        samples = [sample for index in group if (sample := self._read(index, bad)) is not None]
        seen: Seen | None = None
        count = 0
        for names, feeds, _ in batches(samples, self.size):
            values = self.look({name: _filled(array, self.size) for name, array in feeds.items()})
            ordered = {name: values[name] for name in self.floors}
            try:
                looked = observe(ordered, self.floors, zlib.crc32(os.fsencode(names[0])), before, self.runs)
            except InputError as err:
                bad.extend(f"{name}: {err}" for name in names)
                continue
            seen, count = merge(seen, looked) if seen is not None else looked, count + len(names)
        return seen, count, bad

    def _read(self, index: int, bad: list[str]) -> Sample | None:
        try:
            return self.data.sample(index)
        except InputError as err:
            bad.append(str(err))
            return None


def _filled(array: Array, size: int) -> Array:
    """A batch, its last sample repeated where too few are left."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)]) if len(array) < size else array


def _added(found: Partial, looked: _Looked) -> Partial:
    seen, count, bad = looked
    return replace(
        found,
        seen=merge(found.seen, seen) if seen is not None else found.seen,
        done=found.done + 1,
        samples=found.samples + count,
        bad=(*found.bad, *bad),
    )


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration did; `tensors` is how many ranges there are, 0 of a shard."""

    output: Path
    method: str
    samples: int
    bad: tuple[str, ...]
    tensors: int
    seconds: float

    def __str__(self) -> str:
        rows = [
            ("method", self.method),
            ("samples", f"{self.samples} in {self.seconds:.1f} s"),
            *(("skipped", reason) for reason in self.bad),
            ("ranges", str(self.tensors or "none before all shards are merged")),
            ("written", str(self.output)),
        ]
        return table(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "output": str(self.output), "bad": list(self.bad)}


def calibrate_file(
    model: str | Path,
    folder: str | Path,
    output: str | Path,
    settings: CalibrationSettings | None = None,
    *,
    recipe: Recipe | None = None,
    shard: tuple[int, int] | None = None,
    progress: Progress = silent,
) -> CalibrationReport:
    """Calibrate an ONNX file on a folder of samples and write the ranges, or with `shard` that part of them.

    While it runs, `OUTPUT.part` holds what was seen so far; a run that finds it goes on from there.

    Raises:
        EdgeAttnError: see `calibrate`, `open_data`, `load_graph`; or the output cannot be written.
    """
    output, began = Path(output), time.monotonic()
    state = output.with_name(output.name + ".part")
    graph = load_graph(model)
    data = open_data(folder, graph.inputs, feeding_recipe(graph.model.metadata_props, recipe))
    if output.exists():
        files.output_file(output, *graph.files, *(path for path, _ in data.files))
    with files.locked(output):
        part = calibrate_shard(graph, data, settings, shard or (1, 1), state=state, progress=progress)
        report = _written(output, part if shard else finish(part), began)
        state.unlink(missing_ok=True)
    return report


def merge_files(parts: Sequence[Path], output: str | Path) -> CalibrationReport:
    """Put the parts of all shards of a calibration together and write the ranges: the same as of one run over all.

    Raises:
        EdgeAttnError: see `edgeattn.calibrate.shards.merge_shards`; or the output cannot be written.
    """
    began = time.monotonic()
    return _written(Path(output), merge_shards(parts), began)


def _written(output: Path, result: Ranges | Partial, began: float) -> CalibrationReport:
    if isinstance(result, Ranges):
        save_ranges(result, output)
        method, tensors = result.method, len(result.tensors)
    else:
        save_partial(result, output)
        method, tensors = result.about["method"], 0
    spent = round(time.monotonic() - began, 3)
    return CalibrationReport(output, method, result.samples, result.bad, tensors, spent)
