"""Measure an engine, whole and layer by layer, and write the evidence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.cli.options import converted, data_options, json_option, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.cli.progress import shown
from edgeattn.errors import GateError, UsageError
from edgeattn.tensors import parse_shapes

if TYPE_CHECKING:
    from edgeattn.backends.base import Progress
    from edgeattn.profile.compare import ComparisonReport
    from edgeattn.profile.report import ProfileReport

HELP = "show where an engine's time goes, layer by layer and block by block"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("engine", type=Path, help="the engine")
    fed = parser.add_argument_group("what is fed (default: seeded random numbers, at the shapes it is best at)")
    fed.add_argument("--shapes", type=converted(parse_shapes), metavar="SHAPES", help="such as x:8x3x224x224")
    fed.add_argument("--batch", type=whole(1), metavar="N", help="the first size of every input")
    fed.add_argument(
        "--data", type=Path, metavar="DIR", help="real samples, the first of which is fed, or an .npz file"
    )
    data_options(fed)
    parser.add_argument(
        "--duration", type=_seconds, default=3.0, metavar="S", help="how long the whole is timed (default: 3)"
    )
    parser.add_argument("--no-layers", action="store_true", help="time the whole only")
    parser.add_argument("--trust", action="store_true", help="profile a plan that its sidecar does not describe")
    parser.add_argument("--ablate", action="store_true", help="take attention blocks out, to see what they cost")
    against = parser.add_argument_group("against another engine")
    against.add_argument(
        "--compare", type=Path, metavar="FILE", help="an engine, or a profile of one that was saved by --json FILE.json"
    )
    against.add_argument(
        "--max-slowdown", type=_share, metavar="P%", help="exit with 3 if it is slower by more, beyond the noise"
    )
    json_option(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained report")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the layers as a table")
    exports = parser.add_argument_group("for other tools")
    exports.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a typical run for Perfetto (ui.perfetto.dev)"
    )
    for flag, alias, what in (
        ("--export-profile", "--exportProfile", "the layers' times"),
        ("--export-layer-info", "--exportLayerInfo", "the layers"),
        ("--export-times", "--exportTimes", "single runs"),
    ):
        option = exports.add_argument(flag, type=Path, metavar="FILE", help=f"write {what} as trtexec does")
        exports.add_argument(alias, type=Path, dest=option.dest, help=argparse.SUPPRESS, default=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write the report."""
    from edgeattn.engine import sidecar_path

    _require_sense(args)
    written = (args.html, args.csv, args.trace, args.export_profile, args.export_layer_info, args.export_times)
    check_outputs((*written, args.json), (args.engine, sidecar_path(args.engine), args.recipe, args.compare))
    with shown(args.quiet) as progress:
        comparison = _compared(args, progress) if args.compare else None
        report = comparison.engine if comparison else _profiled(args, progress)
    _write(args, report, (comparison or report).to_html)
    emit(comparison or report, args.json)
    return GateError.exit_code if comparison and comparison.gate == "failed" else 0


def _require_sense(args: argparse.Namespace) -> None:
    """Refuse flags that say nothing, or nothing together."""
    if args.max_slowdown is not None and not args.compare:
        raise UsageError("--max-slowdown is about a comparison: say with what, by --compare")
    if args.ablate and args.compare:
        raise UsageError("--ablate is about one engine: leave out --compare")
    layered = {"--csv": args.csv, "--trace": args.trace, "--export-profile": args.export_profile}
    for flag, path in {**layered, "--export-layer-info": args.export_layer_info}.items():
        if args.no_layers and path:
            raise UsageError(f"{flag} writes layers: leave out --no-layers")


def _profiled(args: argparse.Namespace, progress: Progress) -> ProfileReport:
    from edgeattn.profile import profile_engine
    from edgeattn.profile.ablation import ablated, dissectable
    from edgeattn.profile.ceilings import with_ceilings

    graph = dissectable(args.engine, args.trust) if args.ablate else None
    report = profile_engine(args.engine, layers=not args.no_layers, progress=progress, **_measuring(args))
    if graph is not None:
        seconds = args.duration / 3
        report = ablated(report, args.engine, graph, duration_s=seconds, trust=args.trust, progress=progress)
    if args.no_layers:
        return report
    progress("measuring what the machine reaches", None)
    return with_ceilings(report)


def _compared(args: argparse.Namespace, progress: Progress) -> ComparisonReport:
    from edgeattn.profile.compare import compare_engines

    return compare_engines(
        args.engine,
        args.compare,
        layers=not args.no_layers,
        max_slowdown=args.max_slowdown,
        progress=progress,
        **_measuring(args),
    )


def _measuring(args: argparse.Namespace) -> dict[str, Any]:
    """What is measured on what, and for how long."""
    names = ("shapes", "batch", "data", "recipe", "trust")
    return {**{name: getattr(args, name) for name in names}, "duration_s": args.duration}


def _write(args: argparse.Namespace, report: ProfileReport, to_html: Callable[[], str]) -> None:
    """Write the files that were asked for."""
    from edgeattn import files
    from edgeattn.profile import exports

    for path, text in ((args.html, to_html), (args.csv, report.to_csv)):
        if path is not None:
            files.write_atomic(path, text().encode())
    for path, form in (
        (args.trace, exports.chrome_trace),
        (args.export_profile, exports.trtexec_profile),
        (args.export_layer_info, exports.trtexec_layer_info),
        (args.export_times, exports.trtexec_times),
    ):
        if path is not None:
            files.write_json(path, form(report))
    if args.html:
        print(f"edgeattn: report in {args.html}", file=sys.stderr)


def _share(text: str) -> float:
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found < (100 if text.endswith("%") else 1):
        raise argparse.ArgumentTypeError(f"expected a share such as 5% or 0.05, got {text!r}")
    return found


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds, above 0, got {text!r}")
    return found
