"""Find the part of an engine that breaks first, and try what cures it, cheapest first."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.cli.options import against_options, data_options, json_option, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.cli.progress import shown
from edgeattn.errors import GateError

if TYPE_CHECKING:
    from edgeattn.bisect import BisectReport
    from edgeattn.parity import ParityReport

HELP = "find where an engine departs from its original, and what cures it"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    against_options(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="real samples (default: seeded random inputs)")
    data_options(parser)
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="the ranges that an INT8 engine was built with")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="look at N samples (default: all, until some fail)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the random inputs (default: 0)")
    parser.add_argument(
        "--max-builds", type=whole(4), default=64, metavar="N", help="parts and engines to build at most (default: 64)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.onnx",
        help="write the graph of the remedy, where it is another graph",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report")
    parser.add_argument("--trust", action="store_true", help="take a plan that its sidecar does not describe")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Bisect and print what was found; 3 where the engine fails."""
    from edgeattn import files
    from edgeattn.engine import sidecar_path

    sources = (args.engine, sidecar_path(args.engine), args.against, args.weights, args.recipe, args.ranges)
    check_outputs((args.output, args.html, args.json), sources)
    report = _bisected(args, limit=args.limit, max_builds=args.max_builds, output=args.output)
    if args.html is not None:
        files.write_atomic(args.html, report.to_html().encode())
    emit(report, args.json)
    return 0 if report.passed else GateError.exit_code


def after_parity(args: argparse.Namespace, report: ParityReport) -> None:
    """What `edgeattn parity` does where an engine failed: bisect as it was asked to, or say how that is done.

    It goes to stdout after the verdict; to stderr where JSON has stdout, and where it is only a hint.
    """
    if all(output.passed for output in report.outputs) and all(shape.passed for shape in report.shapes):
        print(
            "edgeattn: every output is within its limits, so no part of the engine is to blame; "
            "edgeattn build --best --max-drop holds a metric",
            file=sys.stderr,
        )
        return
    if args.bisect:
        print(f"\n{_bisected(args)}", file=sys.stderr if args.json == "-" else sys.stdout)
        return
    given = {"--against": args.against, "--weights": args.weights, "--data": args.data, "--recipe": args.recipe}
    words = [word for flag, value in given.items() if value for word in (flag, str(value))]
    hint = shlex.join(["edgeattn", "bisect", str(args.engine), *words])
    print(f"edgeattn: where it breaks, and what may cure it: {hint}", file=sys.stderr)


def _bisected(args: argparse.Namespace, **more: Any) -> BisectReport:
    from edgeattn.bisect import bisect_engine

    with shown(args.quiet) as progress:
        return bisect_engine(
            args.engine,
            args.against,
            weights=args.weights,
            data=args.data,
            recipe=args.recipe,
            ranges=args.ranges,
            seed=args.seed,
            trust=args.trust,
            progress=progress,
            **more,
        )
