"""What real samples tell a build: the ranges of its values, and how much accuracy it may give up."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.errors import UsageError

if TYPE_CHECKING:
    from edgeattn.backends.base import BuildConfig, Progress
    from edgeattn.calibrate.settings import CalibrationSettings
    from edgeattn.data import Dataset, Recipe
    from edgeattn.graph import Graph
    from edgeattn.precision.ranges import Ranges
    from edgeattn.search import Budget


def recipe_in(path: Path | None) -> Recipe | None:
    """What a file says of images, if it does: for arrays it may hold only how to calibrate."""
    from edgeattn import files
    from edgeattn.data import load_recipe

    tables = files.read_toml(path).keys() if path else set()
    if path is None or (tables and tables <= {"calibration", "acceptance"}):
        return None
    return load_recipe(path)


def observed(
    args: argparse.Namespace, source: Graph, graph: Graph, config: BuildConfig, progress: Progress
) -> tuple[BuildConfig, Ranges | None, Dataset | None, Mapping[str, float]]:
    """What is known of real values: ranges, read or observed now, samples, and what may be lost on these.

    The settings come back with what is to be kept high.

    `graph` is `source`, or that with its preprocessing folded in; the ranges that are read are of `source`.
    """
    from edgeattn.build import judged_here
    from edgeattn.calibrate import calibrate
    from edgeattn.folding import feeding_recipe, folded_name
    from edgeattn.parity.closeness import require_judgeable
    from edgeattn.precision.ranges import load_ranges, require_fresh

    data, settings = _samples(args, graph, config)
    drops = _allowed(args, settings) if data else {}
    if judged_here(args.backend, not args.no_check):
        require_judgeable(drops, data)
    high = config.rest if config.precision == "int8" else "float32"
    config = dataclasses.replace(config, layer_precisions=dict.fromkeys([*settings.keep, *args.keep], high))
    ranges = None
    if args.ranges:
        ranges = load_ranges(args.ranges)
        given = recipe_in(args.recipe)
        fed = feeding_recipe(source.model.metadata_props, given) if given else data.recipe if data else None
        require_fresh(ranges, source, fed)
        if graph is not source:
            renamed = {graph.inputs[0].name: folded_name(graph)}
            tensors = {renamed.get(name, name): item for name, item in ranges.tensors.items()}
            ranges = dataclasses.replace(ranges, tensors=tensors)
    elif data and config.precision not in ("", "float32"):
        ranges = calibrate(graph, data, settings, progress=progress)
    return config, ranges, data, drops


def budget_of(args: argparse.Namespace, graph: Graph, config: BuildConfig) -> tuple[BuildConfig, Budget | None]:
    """What a search may give up, where samples are there to tell."""
    from edgeattn.search import Budget

    if args.data is None:
        if args.max_builds or (args.recipe and not args.fold_preprocess):
            raise UsageError("how much accuracy drops is seen on real samples: give --data DIR")
        _samples(args, graph, config)
        return config, None
    data, settings = _samples(args, graph, config)
    assert data is not None
    config = dataclasses.replace(config, layer_precisions=dict.fromkeys(settings.keep, "float32"))
    return config, Budget(
        data, _allowed(args, settings), args.task, args.max_builds or Budget.builds, settings, args.recipe
    )


def _allowed(args: argparse.Namespace, settings: CalibrationSettings) -> Mapping[str, float]:
    """What accuracy may drop by."""
    return args.max_drop or settings.acceptance


def _samples(args: argparse.Namespace, graph: Graph, config: BuildConfig) -> tuple[Dataset | None, CalibrationSettings]:
    """The samples at the optimal shapes, if there are any, and how to calibrate on them."""
    from edgeattn.calibrate.settings import CalibrationSettings, load_calibration
    from edgeattn.data import open_data
    from edgeattn.folding import feeding_recipe
    from edgeattn.tensors import TensorSpec, resolve_profile

    if args.recipe and not (args.data or args.ranges or args.fold_preprocess):
        raise UsageError("--recipe says how images become inputs: give their folder with --data")
    recipe = feeding_recipe(graph.model.metadata_props, recipe_in(args.recipe))
    settings = load_calibration(args.recipe) if args.recipe else CalibrationSettings()
    if args.calibration_method:
        settings = dataclasses.replace(settings, method=args.calibration_method)
    if not args.data:
        if settings.acceptance:
            print("edgeattn: the recipe's [acceptance] is judged on real samples: give --data DIR", file=sys.stderr)
        return None, settings
    profile = resolve_profile(graph.inputs, config.min_shapes, config.opt_shapes, config.max_shapes)
    specs = [TensorSpec(spec.name, spec.dtype, profile[spec.name].opt) for spec in graph.inputs]
    boxes = args.task == "detection" or (args.task is None and any("map" in name for name in _allowed(args, settings)))
    return open_data(args.data, specs, recipe, prefer="boxes" if boxes else "masks"), settings
