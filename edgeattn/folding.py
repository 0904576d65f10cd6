"""Preprocessing folded into the graph, so that training and deployment cannot drift apart.

A folded graph takes pixels, uint8 (B, H, W, C), as they are after the resize: what is left to do outside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeattn.engine import Sidecar
from edgeattn.errors import InputError, UsageError, one_line
from edgeattn.graph import Graph, load_graph
from edgeattn.images import Recipe, leftover, plain_recipe
from edgeattn.ops.base import Tape
from edgeattn.tensors import check_feeds

FOLDED = "edgeattn.preprocess"  # where a graph says which recipe is in it

_MADE = "/preprocess_"  # in the names of the values that folding adds


def fold_preprocess(graph: Graph, recipe: Recipe) -> Graph:
    """Put all of a recipe that comes after the resize before a graph's only input, by the operations of `preprocess`.

    The input keeps its name and its batch, and becomes uint8 (B, H, W, C): RGB, or gray. `leftover(recipe)` feeds it.

    Raises:
        UsageError: the graph has several inputs, or takes no floats.
        InputError: the recipe does not fit the input.
    """
    if len(graph.inputs) != 1:
        raise UsageError(f"only one image can be folded in, the graph has {len(graph.inputs)} inputs")
    [spec] = graph.inputs
    if "float" not in spec.dtype or not spec.shape:
        raise UsageError(f"input {spec} takes no floating-point images; there is nothing to fold into it")
    batch = spec.shape[0]
    probe = np.zeros((batch if isinstance(batch, int) else 1, *recipe.shape), np.float32)
    try:
        check_feeds((replace(spec, dtype="float32"),), {}, {spec.name: probe})
    except InputError as err:
        raise InputError(f"the recipe does not fit the model: {err}") from err
    folded = graph.copy()
    main = folded.model.graph
    old = next(value for value in main.inputs if value.name == spec.name)
    shape = ir.Shape([batch, *recipe.size, recipe.channels])
    pixels = ir.Value(name=spec.name, shape=shape, type=ir.TensorType(ir.DataType.UINT8))
    _insert(main, old, pixels, recipe)
    folded.model.metadata_props[FOLDED] = json.dumps(plain_recipe(recipe))
    return Graph(folded.model, graph.path)


def _insert(main: ir.Graph, old: ir.Value, pixels: ir.Value, recipe: Recipe) -> None:
    """Let what read the old input read what is made of the pixels."""
    tape = Tape()
    x = tape.op("Cast", [pixels], to=int(ir.DataType.FLOAT))
    if recipe.color == "bgr":
        x = tape.op("Gather", [x, tape.constant(np.array([2, 1, 0]))], axis=3)
    for kind, numbers in (("Mul", (recipe.scale,)), ("Sub", recipe.mean), ("Div", recipe.std)):
        if numbers:
            x = tape.op(kind, [x, tape.constant(np.array(numbers, np.float32))])
    if recipe.layout == "nchw":
        x = tape.op("Transpose", [x], perm=[0, 3, 1, 2])
    if old.dtype != ir.DataType.FLOAT:
        x = tape.op("Cast", [x], to=int(old.dtype or ir.DataType.FLOAT))
    taken = {value.name for node in main.all_nodes() for value in node.outputs} | set(main.initializers)
    for number, value in enumerate([*tape.constants, *(node.outputs[0] for node in tape.nodes)]):
        value.name = f"{pixels.name}{_MADE}{number}"
        while value.name in taken:
            value.name += "_"
    x.type, x.shape = old.type, old.shape
    for value in tape.constants:
        main.register_initializer(value)
    main.inputs[list(main.inputs).index(old)] = pixels
    if len(main):
        main.insert_before(main[0], tape.nodes)
    else:
        main.extend(tape.nodes)
    ir.convenience.replace_all_uses_with(old, x, replace_graph_outputs=True)


def folded_name(folded: Graph) -> str:
    """What the input of a graph is called after `fold_preprocess`: the value that the last of its operations makes."""
    value = folded.model.graph.inputs[0]
    prefix = f"{value.name}{_MADE}"
    while made := [out for node in value.consumers() for out in node.outputs if (out.name or "").startswith(prefix)]:
        value = made[0]
    return value.name or ""


def folded_recipe(about: Mapping[str, Any]) -> Recipe | None:
    """The recipe that is in a graph, by its metadata or by what an engine's sidecar says of it; None where none is.

    Raises:
        InputError: what stands there is no recipe.
    """
    if FOLDED not in about:
        return None
    try:
        stored = json.loads(about[FOLDED]).items()
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stored}
        return Recipe(**fields)
    except (ValueError, TypeError, AttributeError) as err:
        raise InputError(f"the recipe folded into the graph is damaged ({one_line(err)}); build it again") from err


def feeding_recipe(about: Mapping[str, Any], recipe: Recipe | None) -> Recipe | None:
    """The recipe to feed a graph by: the one that was given, or the resize of the one that is in it.

    Raises:
        InputError: another one was given than is in it.
    """
    own = folded_recipe(about)
    if own is None:
        return recipe
    if recipe not in (None, own):
        raise InputError(
            "the recipe is not the one that is folded into the graph: leave it out, or build again with it"
        )
    return leftover(own)


def built_from(engine: str | Path, sidecar: Sidecar) -> Graph:
    """The graph that an engine was built from, its preprocessing folded in; the file may have moved along with it.

    Raises:
        InputError: the file is gone, or has changed since.
    """
    path = Path(str(sidecar.graph.get("path") or ""))
    places = [place for place in (path, Path(engine).parent / path.name) if path.name and place.is_file()]
    if not places:
        raise InputError(f"{engine} was built from {path if path.name else 'a graph in memory'}, which is gone")
    recipe = folded_recipe(sidecar.graph)
    for place in places:
        graph = fold_preprocess(load_graph(place), recipe) if recipe else load_graph(place)
        if graph.sha256 == sidecar.graph.get("sha256"):
            return graph
    raise InputError(f"{places[0]} has changed since {engine} was built from it; build it again")
