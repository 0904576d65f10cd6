"""Check an engine against the PyTorch model or the graph it came from, and write the evidence."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.cli.bisect import after_parity
from edgeattn.cli.options import against_options, converted, data_options, json_option, parse_drops, task_option, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.errors import GateError, UsageError

if TYPE_CHECKING:
    from edgeattn.parity.report import MapParity

HELP = "check an engine against its original"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    against_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="real samples; class folders, labels.csv, masks or COCO annotations give labels",
    )
    source.add_argument("--random", action="store_true", help="seeded random inputs instead of real samples")
    data_options(parser)
    parser.add_argument("--limit", type=whole(1), metavar="N", help="use N samples, from all over the folder")
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
    parser.add_argument("--pictures", type=whole(0), default=6, metavar="N", help="of the worst samples (default: 6)")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML, one case a check")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a summary for a pull request")
    parser.add_argument(
        "--rebuilds", type=whole(0), default=0, metavar="K", help="build it K times more and say how far builds spread"
    )
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="what calibration observed, to build again on")
    parser.add_argument("--maps", action="store_true", help="compare where each attention looks, too")
    parser.add_argument("--bisect", action="store_true", help="where it fails, find the part that breaks and a remedy")


def run(args: argparse.Namespace) -> int:
    """Open the engine and its original, compare them on every sample, print and write the report."""
    from edgeattn import files
    from edgeattn.engine import sidecar_path
    from edgeattn.parity import compare_files

    if args.random and (args.limit is not None or args.recipe or args.task):
        raise UsageError("--limit, --recipe and --task are about real samples; leave them out with --random")
    sources = (args.engine, sidecar_path(args.engine), args.against, args.weights, args.recipe, args.ranges)
    check_outputs((args.html, args.junit, args.markdown, args.json), sources)
    maps = _maps(args) if args.maps else ()  # first: what it refuses should not cost a comparison
    with tempfile.TemporaryDirectory() as folder:
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
            pictures=args.pictures,
            rebuilds=_rebuilt(args, Path(folder)) if args.rebuilds else (),
        )
    report = report.with_maps(maps)
    summary = partial(report.to_markdown, args.html.name if args.html else "")
    for path, text in ((args.html, report.to_html), (args.junit, report.to_junit), (args.markdown, summary)):
        if path is not None:
            files.write_atomic(path, text().encode())
    emit(report, args.json)
    if args.html:
        print(f"edgeattn: report in {args.html}", file=sys.stderr)
    if not report.passed:
        after_parity(args, report)
    return 0 if report.passed else GateError.exit_code


def _maps(args: argparse.Namespace) -> tuple[MapParity, ...]:
    """Where each attention of both looks."""
    from edgeattn.maps import map_parity

    return map_parity(
        args.engine,
        args.against,
        weights=args.weights,
        data=args.data,
        recipe=args.recipe,
        ranges=args.ranges,
        seed=args.seed,
        trust=args.trust,
    )


def _rebuilt(args: argparse.Namespace, folder: Path) -> list[Path]:
    """Further builds of the engine from the graph that its sidecar names."""
    from edgeattn.backends import backend_named
    from edgeattn.cli.progress import shown
    from edgeattn.engine import read_sidecar, write_engine
    from edgeattn.maps.rebuilt import rebuilt
    from edgeattn.parity.files import samples_for

    sidecar = read_sidecar(args.engine, args.trust)
    observed = args.data and not args.ranges and sidecar.precision.asked == "int8"
    data = samples_for(sidecar, args.data, args.recipe) if observed else None
    parts = rebuilt(args.engine, sidecar, ranges=args.ranges, data=data)
    for note in parts.notes:
        print(f"edgeattn: {note}", file=sys.stderr)
    backend, paths = backend_named(parts.sidecar.backend), []
    with shown(args.quiet) as progress:
        for number in range(args.rebuilds):
            progress("building again", number / args.rebuilds)
            paths.append(folder / f"{number}.engine")
            write_engine(backend.build(parts.typed, parts.config), paths[-1])
    return paths


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
