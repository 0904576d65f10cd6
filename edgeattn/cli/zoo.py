"""List the ready models, show one of them, or write samples of the data that they were trained for."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeattn.cli.options import json_option, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.errors import UsageError

HELP = "list the ready models, show one, write data for it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action", nargs="?", default="list", choices=("list", "show", "data"), help="default: list all models"
    )
    parser.add_argument("name", nargs="?", help="the model to show, or the data set to write")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the folder for the samples of `data`")
    parser.add_argument("--split", default="test", choices=("train", "test"), help="of the data (default: test)")
    parser.add_argument("--count", type=whole(1), metavar="N", help="how many samples to write")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """List, show or write."""
    from edgeattn.zoo import catalogue

    check_outputs((args.json,))
    if args.output is not None and args.action != "data":
        raise UsageError(f"zoo {args.action} writes no samples; leave -o out, or use --json FILE for a file")
    if args.action == "list":
        if args.name is not None:
            raise UsageError(f"zoo list takes no name; edgeattn zoo show {args.name} shows one model")
        emit(catalogue.list_models(), args.json)
        return 0
    if args.name is None:
        raise UsageError(f"zoo {args.action} needs a name; edgeattn zoo lists the models, each with its data set")
    if args.action == "show":
        emit(catalogue.show_model(args.name), args.json)
        return 0
    if args.output is None:
        raise UsageError("zoo data needs the folder to write to: add -o DIR")
    emit(catalogue.write_data(args.name, args.output, args.split, args.count), args.json)
    return 0
