"""Say what is in an ONNX model or an engine, without running it."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeattn.cli.options import json_option
from edgeattn.cli.output import check_outputs, emit

HELP = "say what is in a model or an engine"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=Path, help="an ONNX model or an engine")
    parser.add_argument("--trust", action="store_true", help="read a sidecar that does not describe the plan")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Read and describe."""
    from edgeattn.inspect import inspect_file

    check_outputs((args.json,), (args.file,))
    emit(inspect_file(args.file, trust=args.trust), args.json)
    return 0
