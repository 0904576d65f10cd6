"""Build an engine from an ONNX model, check it against the model, and write it with its sidecar."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.cli.calibrate import METHODS
from edgeattn.cli.options import converted, json_option, parse_drops, task_option, whole
from edgeattn.cli.output import check_outputs, emit, passed
from edgeattn.cli.progress import shown
from edgeattn.cli.samples import budget_of, observed
from edgeattn.errors import UsageError
from edgeattn.tensors import parse_shapes, parse_size

if TYPE_CHECKING:
    from edgeattn.backends.base import BuildConfig, Progress

HELP = "build an engine from an ONNX model and verify it"
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
HARDWARE = ("none", "ampere_plus", "same_compute_capability")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the camelCase ones are trtexec's names, for people who have them in their fingers."""
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the engine (default: MODEL.engine)")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="what builds and runs it (default: auto)")
    parser.add_argument("--threads", type=whole(1), metavar="N", help="on a CPU (default: the runtime's own)")
    parser.add_argument("--no-fuse", action="store_true", help="build what the exporter wrote, no attention recognised")
    parser.add_argument("--no-check", action="store_true", help="publish without comparing the engine with the graph")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    json_option(parser)
    _precision_options(parser.add_argument_group("precision (default: as the model is)"))
    _calibration_options(parser.add_argument_group("calibration, which INT8 needs"))
    _budget_options(parser.add_argument_group("what accuracy may cost, on --data"))
    _shape_options(parser.add_argument_group("shapes, as x:1x3x224x224,y:1x10"))
    _tensorrt_options(parser.add_argument_group("TensorRT"))
    _alias(parser, "--saveEngine", dest="output", type=Path)


def _precision_options(group: argparse._ArgumentGroup) -> None:
    kinds = group.add_mutually_exclusive_group()
    kinds.add_argument("--precision", metavar="P", help="fp32, fp16, bf16, int8 or best")
    for name in ("fp32", "fp16", "bf16"):
        kinds.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=f"--precision {name}")
    kinds.add_argument(
        "--best",
        dest="precision",
        action="store_const",
        const="best",
        help="as the model is, by the backend and in the form that are measured fastest here",
    )
    group.add_argument("--int8", action="store_true", help="with --fp16 or --bf16, these for what is not INT8")
    group.add_argument(
        "--keep",
        metavar="GLOB",
        action="append",
        default=[],
        help="nodes or modules to keep high, by name; may be repeated",
    )
    group.add_argument(
        "--no-keep-io-types", action="store_true", help="inputs and outputs take the low precision as well"
    )


def _calibration_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data", type=Path, metavar="DIR", help="real samples: to calibrate on, and to check on")
    group.add_argument("--recipe", type=Path, metavar="R.toml", help="how images become tensors, and how to calibrate")
    group.add_argument(
        "--fold-preprocess", action="store_true", help="put the recipe into the graph, which then takes resized pixels"
    )
    group.add_argument("--ranges", type=Path, metavar="FILE", help="what edgeattn calibrate wrote")
    group.add_argument("--calibration-method", choices=METHODS, help="where to clip (default: the recipe's, or minmax)")


def _budget_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-drop",
        type=converted(parse_drops),
        metavar="METRIC=P%",
        help="top1=0.5%%, miou, fbeta, map, cosine; or sqnr=30dB, which is kept at least (default: the recipe's)",
    )
    task_option(group)
    group.add_argument(
        "--max-builds", type=whole(1), metavar="N", help="engines that --best builds at most (default: 64)"
    )


def _shape_options(group: argparse._ArgumentGroup) -> None:
    for bound in ("min", "opt", "max"):
        group.add_argument(f"--{bound}-shapes", type=converted(parse_shapes), metavar="SHAPES", default={})
        _alias(group, f"--{bound}Shapes", dest=f"{bound}_shapes", type=converted(parse_shapes))
    group.add_argument("--shapes", type=converted(parse_shapes), metavar="SHAPES", help="one shape: min = opt = max")


def _tensorrt_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target", default="", metavar="SM,...", help="compute capabilities, such as sm_86,sm_89")
    group.add_argument("--workspace", type=converted(parse_size), metavar="SIZE", help="such as 2GiB")
    group.add_argument("--timing-cache", metavar="FILE", help="read and written")
    group.add_argument("--opt-level", type=int, choices=range(6), metavar="0-5", help="builder optimisation level")
    group.add_argument("--version-compatible", action="store_true", help="the plan loads in later minor versions")
    group.add_argument("--hardware-compatibility", default="none", choices=HARDWARE, help="the plan runs on other GPUs")
    group.add_argument(
        "--attention",
        default="auto",
        choices=("auto", "native", "plugin"),
        help="TensorRT's own kernels, edgeattn's, or for each attention those that are timed faster here (default)",
    )
    group.add_argument("--tf32", action="store_true", help="allow TensorFloat-32 in float32 layers")
    _alias(group, "--memPoolSize", dest="workspace", type=converted(_mem_pool_size))
    _alias(group, "--timingCacheFile", dest="timing_cache")
    _alias(group, "--builderOptimizationLevel", dest="opt_level", type=int, choices=range(6))
    _alias(group, "--versionCompatible", dest="version_compatible", action="store_true")


def _alias(group: argparse._ActionsContainer, flag: str, **kwargs: object) -> None:
    group.add_argument(flag, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **kwargs)  # type: ignore[arg-type]


def _mem_pool_size(text: str) -> int:
    pool, _, size = text.partition(":")
    if pool != "workspace" or not size:
        raise UsageError(f"only the workspace pool can be set: expected workspace:1024, got {text!r}")
    return parse_size(size if not size[-1].isdecimal() else size + "MiB")


def _refuse_contradictions(args: argparse.Namespace, best: bool) -> None:
    if best and (args.int8 or args.ranges or args.keep):
        raise UsageError("--best finds out itself what is in INT8: leave --int8, --ranges and --keep out")
    if not best and args.max_builds:
        raise UsageError("--max-builds is about the search: give --best")
    if (args.max_drop or args.task) and not args.data:
        raise UsageError("how much accuracy drops is seen on real samples: give --data DIR")
    if args.max_drop and args.no_check:
        raise UsageError("--max-drop is what the check holds an engine to: leave --no-check out")
    if args.ranges and args.calibration_method:
        raise UsageError("--ranges were found by a method already: leave --calibration-method out")
    if best and args.dry_run:
        raise UsageError("--best is not known before it is measured: leave --dry-run out, or name a precision")
    if args.fold_preprocess and not args.recipe:
        raise UsageError("--fold-preprocess puts a recipe into the graph: give it with --recipe R.toml")
    if args.shapes and (args.min_shapes or args.opt_shapes or args.max_shapes):
        raise UsageError("--shapes is min, opt and max in one; give it alone, or the three without it")


def _config(args: argparse.Namespace, best: bool, progress: Progress) -> BuildConfig:
    """The settings of a build; what real samples say comes later."""
    from edgeattn.backends.base import BuildConfig
    from edgeattn.build import SHORT_NAMES

    long_names = {short: name for name, short in SHORT_NAMES.items()}
    asked = "" if best else long_names.get(args.precision, args.precision or "")
    int8 = args.int8 or asked == "int8"
    return BuildConfig(
        precision="int8" if int8 else asked,
        rest=asked if int8 and asked not in ("", "int8") else "float32",
        min_shapes=args.min_shapes,
        opt_shapes=args.shapes or args.opt_shapes,
        max_shapes=args.max_shapes,
        keep_io_types=not args.no_keep_io_types,
        targets=tuple(name.strip() for name in args.target.split(",") if name.strip()),
        workspace=args.workspace,
        timing_cache=args.timing_cache,
        opt_level=args.opt_level,
        version_compatible=args.version_compatible,
        hardware_compatibility=args.hardware_compatibility,
        attention=args.attention,
        tf32=args.tf32,
        threads=args.threads,
        fuse=not args.no_fuse,
        progress=progress,
    )


def run(args: argparse.Namespace) -> int:
    """Build, or with --dry-run only plan."""
    from edgeattn.build import build_engine, plan_build
    from edgeattn.data import load_recipe
    from edgeattn.engine import sidecar_path
    from edgeattn.folding import fold_preprocess
    from edgeattn.graph import load_graph
    from edgeattn.search import build_best

    best = args.precision == "best"
    _refuse_contradictions(args, best)
    output = args.output or args.model.parent / f"{args.model.stem}.engine"
    check_outputs((output, sidecar_path(output), args.json), (args.model, args.ranges, args.recipe))
    with shown(args.quiet) as progress:
        config = _config(args, best, progress)
        source = load_graph(args.model)
        graph = fold_preprocess(source, load_recipe(args.recipe)) if args.fold_preprocess else source
        if best:
            config, budget = budget_of(args, graph, config)
            report = build_best(graph, output, config, args.backend, check=not args.no_check, budget=budget)
        else:
            config, ranges, data, drops = observed(args, source, graph, config, progress)
            if args.dry_run:
                print(plan_build(graph, config, args.backend, ranges=ranges, samples=data))
                return 0
            report = build_engine(
                graph,
                output,
                config,
                args.backend,
                check=not args.no_check,
                ranges=ranges,
                samples=data,
                max_drop=drops,
                task=args.task,
            )
    emit(report, args.json)
    if args.verbose:
        spent = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in report.seconds.items())
        print(f"edgeattn: {spent}; overhead {report.overhead_s:.2f} s", file=sys.stderr)
    if not report.compared:
        print(f"BUILT: {output}; check: {report.verdict}", file=sys.stderr)
    elif report.plan.config.precision == "int8":
        passed(f"{output}: {report.verdict}", args.json)
    else:
        passed(f"{output} says what {args.model} says", args.json)
    return 0
