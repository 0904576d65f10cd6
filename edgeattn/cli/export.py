"""Export a PyTorch model to ONNX, and check on the spot that the file computes what the model computes."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from edgeattn.cli.options import json_option, model_options
from edgeattn.cli.output import check_outputs, emit, passed

HELP = "export a PyTorch model to ONNX"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="FILE.py:FACTORY", help="or pkg.mod:FACTORY, zoo:NAME; this runs its code")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the ONNX file")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE",
        help="1x3x224x224, or NAME:SHAPE[@DTYPE] for each input (default: the factory's example_inputs)",
    )
    parser.add_argument(
        "--dynamic", action="append", default=[], metavar="AXIS", help="batch, height, width, or NAME:AXIS=DIM"
    )
    parser.add_argument("--opset", type=int, default=18, help="the ONNX operator set (default: 18)")
    parser.add_argument("--exporter", default="dynamo", choices=("dynamo", "torchscript"), help="default: dynamo")
    parser.add_argument("--no-check", action="store_true", help="do not compare the file with the model")
    model_options(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Load the model, export it, check it."""
    from edgeattn.export import export_model
    from edgeattn.model import load_model, parse_dynamic, parse_inputs

    check_outputs((args.output, args.json), (args.model.rpartition(":")[0], args.weights))
    model = load_model(args.model, args.weights)
    inputs = parse_inputs(args.input, model.module)
    report = export_model(
        dataclasses.replace(model, inputs=inputs),
        args.output,
        dynamic=parse_dynamic(args.dynamic, inputs),
        opset=args.opset,
        exporter=args.exporter,
        check=not args.no_check,
    )
    emit(report, args.json)
    passed(f"{args.output} says what {args.model} says", args.json)
    return 0
