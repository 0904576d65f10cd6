"""What each attention of a model looks at on one input: in the original, in the engine, and how far apart they are."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.backends import open_session
from edgeattn.data import Recipe, default_recipe, load_recipe, open_data, preprocess, read_image, read_npz
from edgeattn.engine import Sidecar, read_sidecar, sidecar_path
from edgeattn.errors import InputError, UsageError
from edgeattn.export import export_model
from edgeattn.folding import feeding_recipe, folded_recipe
from edgeattn.graph import Graph, load_graph
from edgeattn.images import of_pixels
from edgeattn.maps.exposed import exposed
from edgeattn.maps.hooks import matching, seen_in
from edgeattn.maps.rebuilt import Rebuilt, rebuilt
from edgeattn.maps.watch import Watch, watched
from edgeattn.model import Model, load_model, parse_inputs
from edgeattn.parity import reference_from_graph
from edgeattn.reports.text import number, table
from edgeattn.tensors import ShapeRange, TensorSpec, format_shape

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Feeds

DISTRIBUTIONS = ("SoftmaxAttention", "AttentionPool", "SelectiveKernel")


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """One map of one attention. `original` and `engine` are the same values, `engine` may be missing.

    `items` is how many a hard attention chooses from, 0 where that is not known.
    """

    op: str
    name: str
    kind: str
    original: Array
    engine: Array | None = None
    items: int = 0

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
        with np.errstate(invalid="ignore"):  # a wrong engine may well say inf: its distance is nan
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
    """All maps on one input; `compared` says what stands on either side, `missed` which maps PyTorch did not show.

    `image` is the input as its recipe prepares it, (H, W, 3) in 8 bits; None for arrays.
    """

    sample: str
    compared: Mapping[str, str]
    maps: tuple[AttentionMap, ...]
    missed: tuple[str, ...] = ()
    image: Array | None = None

    def __str__(self) -> str:
        sides = [(side, what) for side, what in self.compared.items() if what]
        rows = [
            (item.name, item.op, item.kind, format_shape(item.original.shape),
             "" if item.distance is None else number(item.distance))
            for item in self.maps
        ]  # fmt: skip
        notes = [("note", f"{name}: PyTorch's own map was not found; the graph's stands in") for name in self.missed]
        maps = table(rows, ("attention", "op", "map", "shape", "distance"), "llllr")
        return "\n\n".join([table(sides), maps, *([table(notes)] if notes else [])])

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the maps themselves."""
        maps = [item.to_json() for item in self.maps]
        return {"sample": self.sample, "compared": dict(self.compared), "maps": maps, "missed": list(self.missed)}


def look(
    target: str,
    sample: str | Path,
    *,
    against: str | None = None,
    weights: Path | None = None,
    recipe: str | Path | None = None,
    ranges: Path | None = None,
    trust: bool = False,
) -> MapsReport:
    """Compute every attention map of a model on one image, or on the arrays of an `.npz`.

    Args:
        target: an engine, an ONNX file, or a PyTorch model (`zoo:NAME`, `FILE.py:FACTORY`). Of an engine, the graph it
            was built from is built again in the same backend and precision, with the maps as further outputs: a fused
            attention makes no map, so the plain operators run in its place. Of one in INT8 that takes its ranges.
        sample: the input; it is repeated where the graph has a fixed batch.
        against: the PyTorch original of an engine or an ONNX file; without it the graph as written is the original.
        weights: of the PyTorch model, as in `load_model`.
        recipe: how an image becomes the input.
        ranges: the table of ranges that an INT8 engine was built with, if it was.
        trust: as in `open_session`.

    Raises:
        InputError: the target, its graph or the sample is refused; or the graph holds no attention with a map.
        UsageError: an original for a target that is one itself, or weights where there is no PyTorch model.
        UnsupportedError: the engine cannot run here.
    """
    sample, original = Path(sample), target if _names_model(target) else against
    if original is target and against is not None:
        raise UsageError(f"{target} is the original itself; leave --against out")
    if weights is not None and original is None:
        raise UsageError(f"--weights are those of a PyTorch model; name the original of {target} with --against")
    sidecar = None if _is_graph(target) or original is target else _sidecar_of(target, trust)
    chosen = feeding_recipe(sidecar.graph if sidecar else {}, load_recipe(recipe) if recipe else None)
    model = load_model(original, weights) if original else None
    parts = rebuilt(target, sidecar, ranges=ranges) if sidecar else None
    exports = model is not None and original is target
    graph = parts.graph if parts else _exported(model, sample, chosen) if model and exports else load_graph(target)
    feeds = _feeds(parts.typed if parts else graph, sample, chosen)
    opened, watches = watched(graph)
    if not watches:
        raise InputError(f"{target} holds no attention that has a map; see edgeattn inspect")
    names = [spec.name for spec in opened.outputs]
    written = dict(zip(names, reference_from_graph(opened).run(feeds), strict=True))
    ours = _maps_of(parts, opened, watches, feeds) if parts else written if model else None
    folded = folded_recipe(sidecar.graph) if sidecar else None
    own_feeds = {name: of_pixels(pixels, folded) for name, pixels in feeds.items()} if folded else feeds
    seen = seen_in(model, own_feeds) if model else []
    maps, missed = [], []
    for watch in watches:
        like = written[watch.output]
        own = matching(seen, watch.op, watch.module, like)
        if model and own is None:
            missed.append(watch.output)
        maps.append(_map(watch, like if own is None else own, ours))
    compared = {"original": original or "the graph as written", "engine": _described(target, sidecar) if ours else ""}
    return MapsReport(sample.name, compared, tuple(maps), tuple(missed), _pictured(graph, sample, chosen))


def _names_model(target: str) -> bool:
    return target.endswith(".py") or (":" in target and not Path(target).is_file())


def _is_graph(target: str) -> bool:
    return target.lower().endswith(".onnx") and not sidecar_path(Path(target)).exists()


def _sidecar_of(target: str, trust: bool) -> Sidecar:
    """What is known of an engine that runs here; see `open_session` for the errors."""
    sidecar = read_sidecar(target, trust)
    open_session(target, trust).close()
    return sidecar


def _maps_of(parts: Rebuilt, opened: Graph, watches: Sequence[Watch], feeds: Feeds) -> dict[str, Array]:
    """What an engine with its maps as outputs says, built as the engine was."""
    one = {name: ShapeRange(array.shape, array.shape, array.shape) for name, array in feeds.items()}
    config = dataclasses.replace(parts.config, profile=one)
    with exposed(dataclasses.replace(parts, config=config), opened, watches) as session:
        return session.run(feeds)


def _map(watch: Watch, original: Array, ours: Mapping[str, Array] | None) -> AttentionMap:
    engine = None if ours is None else ours[watch.output]
    return AttentionMap(watch.op, watch.name, watch.kind, original, engine, watch.items)


def _described(target: str, sidecar: Sidecar | None) -> str:
    if sidecar is None:
        return "the graph as written"
    return f"{target} ({sidecar.backend}, {sidecar.precision.asked}), built again with its attention as plain operators"


def _exported(model: Model, sample: Path, recipe: Recipe | None) -> Graph:
    specs = _inputs_of(model, sample, recipe)
    with tempfile.TemporaryDirectory() as folder:
        export_model(Model(model.module, specs, model.source), Path(folder) / "m.onnx", check=False)
        return load_graph(Path(folder) / "m.onnx")


def _inputs_of(model: Model, sample: Path, recipe: Recipe | None) -> tuple[TensorSpec, ...]:
    """What a model says itself that it takes, else what it is given."""
    if getattr(model.module, "example_inputs", ()):
        return parse_inputs([], model.module)
    if sample.suffix.lower() == ".npz":
        arrays = {name: array for name, array in read_npz(sample).items() if name != "label"}
        texts = [f"{name}:{format_shape(array.shape)}@{array.dtype}" for name, array in arrays.items()]
    elif recipe is not None:
        texts = [format_shape((1, *recipe.shape))]
    else:
        raise UsageError(
            f"{model.source} does not say what it takes: give a recipe or an .npz, or decorate it with "
            f'edgeattn.model.example_inputs("1x3x224x224")'
        )
    return parse_inputs(texts, model.module)


def _feeds(graph: Graph, sample: Path, recipe: Recipe | None) -> dict[str, Array]:
    """The sample by input name, repeated to a fixed batch."""
    if not sample.is_file():
        raise InputError(f"no such file: {sample}")
    (first,) = open_data(sample, graph.inputs, recipe)
    batches = {spec.name: spec.shape[0] if spec.shape else 1 for spec in graph.inputs}
    return {
        name: np.repeat(array, batch if isinstance(batch := batches[name], int) else 1, axis=0)
        for name, array in first.feeds.items()
    }


def _pictured(graph: Graph, sample: Path, recipe: Recipe | None) -> Array | None:
    """An image as the model sees it: turned, cut and resized, in plain colours."""
    if sample.suffix.lower() == ".npz":
        return None
    chosen = recipe or default_recipe(graph.inputs[0])
    plain = dataclasses.replace(chosen, color="rgb", scale=1.0, mean=(), std=(), layout="nhwc")
    return preprocess(read_image(sample), plain).astype(np.uint8)
