"""What each attention of a model looks at on one input: in the original, in the engine, and how far apart they are."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.backends import open_session
from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine
from edgeattn.data import load_recipe, open_data, read_npz
from edgeattn.engine import Sidecar, read_sidecar, sidecar_path
from edgeattn.errors import InputError, UsageError
from edgeattn.export import export_model
from edgeattn.graph import Graph, load_graph
from edgeattn.interpreter import run_as_written
from edgeattn.maps.hooks import matching, seen_in
from edgeattn.maps.watch import Watch, watched
from edgeattn.model import Model, load_model, parse_inputs
from edgeattn.reports.text import number, table
from edgeattn.tensors import TensorSpec, format_shape

if TYPE_CHECKING:
    from edgeattn.tensors import Array

DISTRIBUTIONS = ("SoftmaxAttention", "AttentionPool", "SelectiveKernel")


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """One map of one attention. `original` and `engine` are the same values, `engine` may be missing."""

    op: str
    name: str
    kind: str
    original: Array
    engine: Array | None = None

    @property
    def distance(self) -> float | None:
        """How far the engine's is from the original's.

        Of weights that add up to one, the total variation: half the sum of the absolute differences, mean over the
        queries; 0 is the same, 1 is another place altogether. Of choices, the share that differ. Of anything else the
        mean absolute difference.
        """
        if self.engine is None:
            return None
        if self.op == "HardAttention":
            return float((self.original != self.engine).mean())
        gap = np.abs(self.original.astype(np.float64) - self.engine.astype(np.float64))
        if self.op in DISTRIBUTIONS:
            return float(gap.sum() / 2 / max(self.original.astype(np.float64).sum(), 1e-30))
        return float(gap.mean())

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the map itself."""
        return {
            "op": self.op,
            "name": self.name,
            "map": self.kind,
            "shape": self.original.shape,
            "distance": self.distance,
        }


@dataclass(frozen=True)
class MapsReport:
    """All maps on one input; `compared` says what stands on either side, `missed` which maps PyTorch did not show."""

    sample: str
    compared: Mapping[str, str]
    maps: tuple[AttentionMap, ...]
    missed: tuple[str, ...] = ()
    image: Path | None = None

    def __str__(self) -> str:
        rows = [
            (item.name, item.op, item.kind, format_shape(item.original.shape),
             "" if item.distance is None else number(item.distance))
            for item in self.maps
        ]  # fmt: skip
        notes = [("note", f"{name}: PyTorch's own map was not found; the graph's stands in") for name in self.missed]
        parts = [table(rows, ("attention", "op", "map", "shape", "distance"), "llllr"), table(notes) if notes else ""]
        return "\n\n".join(filter(None, parts))

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the maps themselves."""
        maps = [item.to_json() for item in self.maps]
        return {"sample": self.sample, "compared": dict(self.compared), "maps": maps, "missed": list(self.missed)}


def look(
    target: str,
    sample: str | Path,
    *,
    against: str | None = None,
    recipe: str | Path | None = None,
    trust: bool = False,
) -> MapsReport:
    """Compute every attention map of a model on one image, or on the arrays of an `.npz`.

    Args:
        target: an engine, an ONNX file, or a PyTorch model (`zoo:NAME`, `FILE.py:FACTORY`). Of an engine, the graph it
            was built from is built again in the same backend and precision, with the maps as further outputs.
        sample: the input.
        against: the PyTorch original of an engine or an ONNX file; without it the graph as written is the original.
        recipe: how an image becomes the input.
        trust: as in `open_session`.

    Raises:
        InputError: the target, its graph or the sample is refused; or the graph holds no attention with a map.
        UsageError: an original for a target that is one itself.
    """
    sidecar = read_sidecar(target, trust) if sidecar_path(Path(target)).exists() else None
    original = target if not (sidecar or target.lower().endswith(".onnx")) else against
    if original is target and against is not None:
        raise UsageError(f"{target} is the original itself; leave --against out")
    model = load_model(original) if original else None
    graph = _graph_of(target, sidecar, model)
    feeds = _feeds(graph.inputs, Path(sample), recipe)
    opened, watches = watched(graph)
    if not watches:
        raise InputError(f"{target} holds no attention that has a map; see edgeattn inspect")
    written = run_as_written(opened)(feeds)
    ours = _built(opened, sidecar, feeds) if sidecar else (written if model else None)
    seen = seen_in(model, _by_name(model, feeds)) if model else []
    maps, missed = [], []
    for watch in watches:
        like = written[watch.output]
        own = matching(seen, watch.op, watch.module, like) if model else None
        if model and own is None:
            missed.append(watch.output)
        maps.append(_map(watch, like if own is None else own, ours))
    compared = {"original": original or "the graph as written", "engine": _described(target, sidecar)}
    image = None if Path(sample).suffix.lower() == ".npz" else Path(sample)
    return MapsReport(Path(sample).name, compared, tuple(maps), tuple(missed), image)


def _map(watch: Watch, original: Array, ours: Mapping[str, Array] | None) -> AttentionMap:
    return AttentionMap(watch.op, watch.name, watch.kind, original, None if ours is None else ours[watch.output])


def _described(target: str, sidecar: Sidecar | None) -> str:
    return f"{target} ({sidecar.backend}, {sidecar.precision.asked})" if sidecar else "the graph as written"


def _graph_of(target: str, sidecar: Sidecar | None, model: Model | None) -> Graph:
    """The graph of a target: the file, what an engine was built from, or the model's export."""
    if sidecar is not None:
        path = str(sidecar.graph.get("path") or "")
        if not path or not Path(path).is_file():
            raise InputError(f"{target} was built from {path or 'a graph in memory'}, which is gone: its maps need it")
        graph = load_graph(path)
        if graph.sha256 != sidecar.graph.get("sha256"):
            raise InputError(f"{path} has changed since {target} was built from it; build it again")
        return graph
    if target.lower().endswith(".onnx"):
        return load_graph(target)
    assert model is not None
    specs = parse_inputs([], model.module)
    with tempfile.TemporaryDirectory() as folder:
        export_model(Model(model.module, specs, model.source), Path(folder) / "m.onnx", check=False)
        return load_graph(Path(folder) / "m.onnx")


def _feeds(inputs: tuple[TensorSpec, ...], sample: Path, recipe: str | Path | None) -> dict[str, Array]:
    if sample.suffix.lower() == ".npz":
        arrays = read_npz(sample)
        return {spec.name: arrays[spec.name] for spec in inputs if spec.name in arrays}
    if not sample.is_file():
        raise InputError(f"no such file: {sample}")
    (first, *_) = open_data(sample, inputs, load_recipe(recipe) if recipe else None)
    return dict(first.feeds)


def _by_name(model: Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds under the names of the model's own parameters, by order."""
    names = [spec.name for spec in parse_inputs([], model.module)] if hasattr(model.module, "example_inputs") else []
    return dict(zip(names or feeds, feeds.values(), strict=True))


def _built(graph: Graph, sidecar: Sidecar, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """What an engine of the watched graph says, built as the engine was."""
    shapes = {name: array.shape for name, array in feeds.items()}
    config = BuildConfig(sidecar.precision.asked, min_shapes=shapes, opt_shapes=shapes, max_shapes=shapes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "maps.engine"
        build_engine(graph, path, config, sidecar.backend, check=False)
        with open_session(path) as session:
            return session.run(feeds)
