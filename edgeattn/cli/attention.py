"""Show where each attention of a model looks on one input: the original's maps and the engine's, and their distance."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeattn.cli.options import data_options, json_option, model_options, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.errors import UsageError

HELP = "show where a model's attention looks"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("target", help="an engine, an ONNX file, FILE.py:FACTORY, pkg.mod:FACTORY or zoo:NAME")
    parser.add_argument("--input", type=Path, metavar="FILE", help="an image or an .npz")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="draw the maps")
    parser.add_argument("--against", metavar="ORIGINAL", help="the PyTorch original of an engine or an ONNX file")
    parser.add_argument(
        "--expose", type=Path, metavar="FILE.onnx", help="write an ONNX file's graph with its maps as further outputs"
    )
    model_options(parser)
    parser.add_argument(
        "--query", type=whole(0), metavar="N", help="draw what this query sees (default: all, together)"
    )
    parser.add_argument("--trust", action="store_true", help="take a plan that its sidecar does not describe")
    data_options(parser)
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="the ranges that an INT8 engine was built with")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Compute the maps, describe them, draw them; or give the graph them as outputs."""
    from edgeattn.maps import expose, look
    from edgeattn.maps.picture import picture, save_picture

    check_outputs(
        (args.output, args.json, args.expose), (args.target, args.input, args.recipe, args.weights, args.ranges)
    )
    if args.expose is not None:
        for watch in expose(args.target, args.expose):
            print(f"{watch.output}  {watch.op}")
    if args.input is None:
        if args.expose is None:
            raise UsageError("an attention looks at something: give an image or an .npz with --input")
        return 0
    if args.output is not None and args.output.suffix.lower() != ".png":
        raise UsageError(
            f"{args.output} would be a PNG by another name; call it {args.output.with_suffix('.png').name}"
        )
    report = look(
        args.target,
        args.input,
        against=args.against,
        weights=args.weights,
        recipe=args.recipe,
        ranges=args.ranges,
        trust=args.trust,
    )
    if args.output is not None:
        save_picture(args.output, picture(report.maps, report.image, args.query))
    emit(report, args.json)
    return 0
