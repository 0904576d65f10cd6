"""Run an engine on an image, a folder of images, or tensors in an .npz file."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeattn.cli.options import data_options, json_option, whole
from edgeattn.cli.output import check_outputs, emit

HELP = "run an engine on images or tensors"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("engine", type=Path, help="the engine")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="an image, a folder, or an .npz")
    parser.add_argument("--output", type=Path, metavar="FILE.npz", help="write the outputs, one row a sample")
    parser.add_argument("--top", type=whole(1), default=5, help="how many classes to list (default: 5)")
    parser.add_argument("--trust", action="store_true", help="run a plan that its sidecar does not describe")
    data_options(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Open the engine, run every sample, describe the outputs."""
    from edgeattn.run import run_engine

    check_outputs((args.output, args.json), (args.engine, args.input, args.recipe))
    report = run_engine(args.engine, args.input, recipe=args.recipe, output=args.output, top=args.top, trust=args.trust)
    emit(report, args.json)
    return 0
