"""Check an engine against the PyTorch model or the graph it came from, and write the evidence."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgeattn.cli.options import converted, data_options, json_option, model_options, parse_drops, task_option, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.errors import UsageError

HELP = "check an engine against its original"
GATE_FAILED = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("engine", type=Path, help="the engine")
    parser.add_argument(
        "--against", required=True, metavar="ORIGINAL", help="FILE.py:FACTORY, pkg.mod:FACTORY or an ONNX file"
    )
    model_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="real samples; class folders, labels.csv, masks or COCO annotations give labels",
    )
    source.add_argument("--random", action="store_true", help="seeded random inputs instead of real samples")
    data_options(parser)
    parser.add_argument("--limit", type=whole(1), metavar="N", help="use the first N samples only")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the random inputs (default: 0)")
    parser.add_argument(
        "--max-drop",
        type=converted(parse_drops),
        metavar="METRIC=P%",
        help="such as top1=0.5%% or miou=1%%; of an error (mae), its rise (default: the recipe's [acceptance])",
    )
    task_option(parser)
    parser.add_argument("--no-latency", action="store_true", help="do not time the two")
    parser.add_argument("--trust", action="store_true", help="check a plan that its sidecar does not describe")
    json_option(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")


def run(args: argparse.Namespace) -> int:
    """Open the engine and its original, compare them on every sample, print and write the report."""
    from edgeattn import files
    from edgeattn.engine import sidecar_path
    from edgeattn.parity import compare_files

    if args.random and (args.limit is not None or args.recipe or args.task):
        raise UsageError("--limit, --recipe and --task are about real samples; leave them out with --random")
    sources = (args.engine, sidecar_path(args.engine), args.against, args.weights, args.recipe)
    check_outputs((args.html, args.junit, args.json), sources)
    report = compare_files(
        args.engine,
        args.against,
        weights=args.weights,
        data=args.data,
        recipe=args.recipe,
        limit=args.limit,
        seed=args.seed,
        task=args.task,
        max_drop=args.max_drop or _accepted(args.recipe),
        latency=not args.no_latency,
        trust=args.trust,
    )
    for path, text in ((args.html, report.to_html), (args.junit, report.to_junit)):
        if path is not None:
            files.write_atomic(path, text().encode())
    emit(report, args.json)
    if args.html:
        print(f"edgeattn: report in {args.html}", file=sys.stderr)
    return 0 if report.passed else GATE_FAILED


def _accepted(recipe: Path | None) -> dict[str, float]:
    """What a recipe says that a task's metrics may lose; closeness of outputs is judged here anyway."""
    from edgeattn.calibrate.settings import load_calibration
    from edgeattn.metrics import TASKS

    names = {name for task in TASKS.values() for name in task.NAMES}
    return (
        {metric: drop for metric, drop in load_calibration(recipe).acceptance.items() if metric in names}
        if recipe
        else {}
    )
