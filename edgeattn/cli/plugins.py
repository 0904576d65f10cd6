"""Build the TensorRT plugin library with the kernels that models need, or say what is in one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgeattn.cli.options import json_option
from edgeattn.cli.output import check_outputs, emit
from edgeattn.cli.progress import shown
from edgeattn.errors import UnsupportedError, UsageError

HELP = "build the TensorRT plugin library, or list what is in it"
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "action", choices=("build", "kernels", "list"), help="kernels: only what `cmake -S plugins` takes"
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE",
        help="ONNX files whose attention gets kernels (default: common attentions of any size); for list the library",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("build/plugins"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--arch", default="", metavar="SM,...", help="such as sm_87,sm_110 (default: all)")
    parser.add_argument("--precision", default="fp16", metavar="P,...", help="of fp32, fp16, bf16 (default: fp16)")
    parser.add_argument("--int8", action="store_true", help="also kernels of gates that write INT8, for INT8 builds")
    parser.add_argument("--tensorrt-include", type=Path, metavar="DIR", help="TensorRT's headers (default: installed)")
    parser.add_argument("--platform", default="", help="such as linux-aarch64 (default: this machine's)")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Build or list."""
    from edgeattn.backends.trt import plugin_library as library
    from edgeattn.backends.trt.plugins import answerable, requests_in
    from edgeattn.graph import load_graph

    check_outputs((args.json,))
    if args.action == "list":
        emit(library.read_library(args.files[0] if args.files else args.output / library.NAME), args.json)
        return 0
    archs = _archs(args.arch)
    dtypes = [_dtype(name.strip()) for name in args.precision.split(",")]
    with shown(args.quiet) as progress:
        found = [request for path in args.files for request in requests_in(load_graph(path), dtypes, args.int8)]
        asked = {request.digest: request for request in found}
        requests, notes = answerable(asked.values() if args.files else library.COMMON, archs)
        if not requests:
            raise UnsupportedError(f"no attention in {', '.join(map(str, args.files))} has kernels", notes)
        if args.action == "kernels":
            library.write_kernels(requests, archs, args.output, progress)
            return 0
        made = library.build_library(
            requests,
            archs,
            args.output,
            tensorrt_include=args.tensorrt_include,
            platform=args.platform,
            progress=progress,
        )
    emit(made, args.json)
    for note in notes:
        print(f"edgeattn: {note}", file=sys.stderr)
    return 0


def _archs(text: str) -> list[int]:
    from edgeattn.backends.trt.plugins import architectures

    known = architectures()
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"no kernels for {name!r}; known: {', '.join(known)}")
    return [known[name] for name in names or known]


def _dtype(name: str) -> str:
    if name not in PRECISIONS:
        raise UsageError(f"no kernels in {name!r}; known: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
