"""Write what DeepStream or Triton Inference Server needs to run an engine as edgeattn does."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeattn.cli.options import TASKS, data_options, json_option
from edgeattn.cli.output import check_outputs, emit
from edgeattn.errors import UsageError

HELP = "hand an engine to DeepStream or Triton"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("engine", type=Path, help="the engine")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--deepstream", type=Path, metavar="FILE", help="write the configuration of nvinfer")
    target.add_argument(
        "--triton", type=Path, metavar="DIR", help="put it into a model repository, as its next version"
    )
    parser.add_argument("--name", default="", help="of the model in the repository (default: the engine's)")
    data_options(parser)
    parser.add_argument("--task", choices=TASKS, help="what the outputs are (default: what they fit)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--trust", action="store_true", help="take a plan that its sidecar does not describe")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files, and say what their reader does otherwise."""
    from edgeattn.deploy import deploy_deepstream, deploy_triton
    from edgeattn.engine import sidecar_path

    sources = (args.engine, sidecar_path(args.engine), args.recipe, args.classes)
    check_outputs((args.deepstream, args.json), sources)
    about = {"task": args.task, "names": args.classes, "trust": args.trust}
    if args.deepstream is not None:
        if args.name:
            raise UsageError("--name is of a model in a repository; leave it out with --deepstream")
        report = deploy_deepstream(args.engine, args.deepstream, recipe=args.recipe, **about)
    else:
        if args.recipe is not None:
            raise UsageError("Triton does not prepare pictures: leave --recipe out, or fold it in when you build")
        report = deploy_triton(args.engine, args.triton, name=args.name, **about)
    emit(report, args.json)
    return 0
