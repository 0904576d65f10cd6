"""Observe the range of every activation of a model on real samples, and write the table that low precision needs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from edgeattn.cli.options import converted, data_options, json_option, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.cli.progress import shown
from edgeattn.cli.samples import recipe_in
from edgeattn.errors import UsageError

HELP = "observe a model's activations on real samples"
METHODS = ("minmax", "entropy", "percentile", "mse")  # edgeattn.calibrate.settings has them, and needs numpy


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", type=Path, nargs="?", help="the ONNX file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="RANGES.json", help="the table")
    parser.add_argument("--data", type=Path, metavar="DIR", help="real samples: images or .npz files")
    data_options(parser)
    parser.add_argument("--method", choices=METHODS, help="where to clip (default: the recipe's, or minmax)")
    parser.add_argument("--percentile", type=float, metavar="P", help="of --method percentile (default: 99.99)")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="look at N samples from all over the folder")
    parser.add_argument("--seed", type=whole(0), metavar="N", help="which samples --limit takes (default: 0)")
    parser.add_argument("--shard", type=converted(parse_shard), metavar="K/N", help="look at the K-th of N parts only")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="put the parts of all shards together")
    json_option(parser)


def parse_shard(text: str) -> tuple[int, int]:
    """Read `2/4`.

    Raises:
        UsageError: not two whole numbers K/N with 1 <= K <= N.
    """
    k, _, n = text.partition("/")
    if not (text.isascii() and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise UsageError(f"not a shard: {text!r}; expected K/N with 1 <= K <= N, such as 2/4")
    return int(k), int(n)


def run(args: argparse.Namespace) -> int:
    """Calibrate, or merge the parts of a calibration."""
    from edgeattn.calibrate import calibrate_file, merge_files
    from edgeattn.calibrate.settings import CalibrationSettings, load_calibration

    check_outputs((args.output, args.json), (args.model, args.recipe, *(args.merge or ())))
    if args.merge:
        others = ("model", "data", "shard", "recipe", "method", "percentile", "limit", "seed")
        if any(getattr(args, name) is not None for name in others):
            raise UsageError("--merge takes parts as they are: leave the model, the data and how to calibrate out")
        emit(merge_files(args.merge, args.output), args.json)
        return 0
    if args.model is None or args.data is None:
        raise UsageError("give a model and --data DIR with real samples; nothing is calibrated on random data")
    given = {name: getattr(args, name) for name in ("method", "percentile", "limit", "seed")}
    settings = load_calibration(args.recipe) if args.recipe else CalibrationSettings()
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    if args.percentile is not None and settings.method != "percentile":
        raise UsageError(f"--percentile is of --method percentile, this is {settings.method}: leave one of them out")
    with shown(args.quiet) as progress:
        report = calibrate_file(
            args.model,
            args.data,
            args.output,
            settings,
            recipe=recipe_in(args.recipe),
            shard=args.shard,
            progress=progress,
        )
    emit(report, args.json)
    return 0
