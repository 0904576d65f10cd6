"""Let an engine watch cameras, streams, videos or folders; `camera doctor` says what is missing on this machine."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.cli.options import TASKS, data_options, json_option, whole
from edgeattn.cli.output import check_outputs, emit
from edgeattn.errors import UsageError

if TYPE_CHECKING:
    from edgeattn.camera import Pipeline

HELP = "let an engine watch a camera, a stream or a video"
_STATUS_S = 1.0  # between two lines on a terminal
_FPS = 30.0  # of images in a folder, where they become a video


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("engine", type=Path, help="the engine; or doctor, to see what cameras lack on this machine")
    parser.add_argument(
        "--source", action="append", default=[], metavar="URI",
        help="csi://0, v4l2:///dev/video0, rtsp://..., a video, an image, a folder, or test:; several are one batch",
    )  # fmt: skip
    data_options(parser)
    meaning = parser.add_argument_group("what the outputs mean")
    meaning.add_argument("--task", choices=TASKS, help="default: what the outputs fit")
    meaning.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one a line")
    sinks = parser.add_argument_group("where results go")
    sinks.add_argument("--preview", metavar="[HOST]:PORT", help="pictures and a dashboard for browsers")
    sinks.add_argument("--metrics", metavar="[HOST]:PORT", help="figures for Prometheus")
    sinks.add_argument(
        "--token",
        default="",
        help="asked of who looks at either (default: made up for a preview that other machines see)",
    )
    sinks.add_argument("--record", type=Path, metavar="FILE.mp4", help="write a video with the overlay")
    sinks.add_argument("--on-result", metavar="COMMAND", help="give a command each result on its stdin, as JSON")
    sinks.add_argument(
        "--attention", action="store_true", help="draw where it looks, of an engine with maps as outputs"
    )
    json_option(parser)
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-age", type=_number, metavar="S", help="drop frames of cameras that are older, in seconds"
    )
    limits.add_argument(
        "--batch-wait", type=_number, default=10.0, metavar="MS",
        help="how long a frame waits for those of other sources, in milliseconds (default: 10)",
    )  # fmt: skip
    limits.add_argument("--frames", type=whole(1), metavar="N", help="end after N results")
    limits.add_argument("--duration", type=_number, metavar="S", help="end after S seconds")
    parser.add_argument("--trust", action="store_true", help="run a plan that its sidecar does not describe")


def run(args: argparse.Namespace) -> int:
    """Open sources and engine, attach what was asked for, and watch until the end, Ctrl-C or SIGTERM."""
    if str(args.engine) == "doctor" and not args.source:
        return _diagnose(args.json)
    if not args.source:
        raise UsageError("no source was given; name one with --source, such as csi://0, rtsp://... or test:")
    from edgeattn import camera
    from edgeattn.camera.results import read_names
    from edgeattn.camera.sinks.recording import track_path
    from edgeattn.camera.uri import parse

    tracks = [track_path(args.record, 1 + index) for index in range(len(args.source))] if args.record else []
    files = [uri.target for uri in map(parse, args.source) if uri.scheme == "file"]
    check_outputs((*tracks, args.json), (args.engine, args.recipe, args.classes, *files))

    pipeline = camera.open(
        args.source,
        args.engine,
        recipe=args.recipe,
        task=args.task,
        names=read_names(args.classes) if args.classes else (),
        max_age=args.max_age,
        batch_wait=args.batch_wait / 1000,
        frames=args.frames,
        duration=args.duration,
        on_state=_say_state,
        trust=args.trust,
    )
    with contextlib.ExitStack() as stack:
        try:
            _attach_sinks(args, pipeline, stack)
            _watch(pipeline, quiet=args.quiet)
        finally:
            _finish(pipeline)
    return 0


def _attach_sinks(args: argparse.Namespace, pipeline: Pipeline, stack: contextlib.ExitStack) -> None:
    """Open what was asked for; what no pipeline closes, the stack does."""
    from edgeattn.camera.sinks.events import Command, Events
    from edgeattn.camera.sinks.metrics import serve_metrics
    from edgeattn.camera.sinks.overlay import Overlay, attention_of
    from edgeattn.camera.sinks.preview import MOST_PIXELS, Preview
    from edgeattn.camera.sinks.recording import Recording
    from edgeattn.camera.sinks.serving import parse_address
    from edgeattn.engine import read_sidecar

    watch = attention_of(read_sidecar(args.engine, args.trust).graph) if args.attention else None
    overlay = Overlay(pipeline.runner.recipe, pipeline.stats, watch)
    smaller = Overlay(pipeline.runner.recipe, pipeline.stats, watch, MOST_PIXELS)
    if args.metrics is not None:
        server = serve_metrics(parse_address(args.metrics), pipeline.stats, args.token or None)
        stack.callback(server.close)
        _say(f"metrics at {server.url_of('/metrics')}")
    if args.preview is not None:
        preview = Preview(parse_address(args.preview), smaller, pipeline.stats, args.token)
        pipeline.attach(preview)
        _say(f"preview at {preview.url}")
    if args.record is not None:
        sources = zip(pipeline.stats().sources, pipeline.sources, strict=True)
        rates = {stats.uri: source.fps or _FPS for stats, source in sources if not source.live}
        pipeline.attach(Recording(args.record, overlay, rates))
    if args.on_result is not None:
        pipeline.attach(Command(args.on_result))
    if args.json is not None:
        path = Path(args.json)
        stream = sys.stdout if args.json == "-" else stack.enter_context(path.open("w", encoding="utf-8"))
        pipeline.attach(Events(stream))


def _finish(pipeline: Pipeline) -> None:
    """Close the pipeline, and sum up."""
    late = pipeline.close()
    stats = pipeline.stats()
    if stats.frames:
        print(stats, file=sys.stderr)
    if late:
        _say(f"left behind, still at work: {', '.join(late)}")


def _watch(pipeline: Pipeline, *, quiet: bool) -> None:
    """Let it run; on a terminal, say every second how it does."""
    from edgeattn.camera.sinks.overlay import hud

    shown, terminal = 0.0, sys.stderr.isatty() and not quiet
    try:
        for result in pipeline:
            if terminal and time.monotonic() - shown >= _STATUS_S:
                shown = time.monotonic()
                print(f"\r{hud(pipeline.stats(), result)}", end="", file=sys.stderr, flush=True)
    finally:
        if shown:
            print(file=sys.stderr)


def _diagnose(as_json: str | None) -> int:
    from edgeattn.camera.doctor import diagnose

    emit(diagnose(), as_json)
    return 0


def _say_state(uri: str, state: str, reason: str) -> None:
    _say(f"{uri}: {state}{f' ({reason})' if reason else ''}")


def _say(text: str) -> None:
    from edgeattn.reports.text import printable

    print(f"edgeattn: {printable(text)}", file=sys.stderr, flush=True)


def _number(text: str) -> float:
    """An argparse type: a number, not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number, 0 or more, got {text!r}")
    return value
