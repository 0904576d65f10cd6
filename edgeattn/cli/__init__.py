"""The command line. A command parses, calls one public function and prints one report.

Results go to stdout, progress and errors to stderr. Exit codes: 0 good, 1 failed, 2 usage, 3 a gate failed,
4 this machine cannot, 5 input refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import NoReturn

from edgeattn import __version__
from edgeattn.cli import (
    attention,
    bisect,
    build,
    calibrate,
    camera,
    deploy,
    doctor,
    export,
    inspect,
    parity,
    plugins,
    profile,
    run,
    zoo,
)
from edgeattn.cli.options import apply_settings, common_options
from edgeattn.errors import EdgeAttnError, UnsupportedError, redact
from edgeattn.reports.text import printable

COMMANDS = (
    doctor,
    export,
    inspect,
    calibrate,
    build,
    run,
    parity,
    bisect,
    profile,
    camera,
    deploy,
    zoo,
    attention,
    plugins,
)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises but with `--debug`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # what stops a service cleans up as Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    _ready_streams()
    try:
        args = _parse(words)
        return int(args.run(args))
    except KeyboardInterrupt:
        print("edgeattn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout (head, less) has left: nobody to tell
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as err:
        if "--debug" in words:
            raise
        text, code = _described(err)
        print(f"edgeattn: error: {printable(text)}", file=sys.stderr)
        return code


def _described(err: Exception) -> tuple[str, int]:
    """What to say of an error, and its exit code."""
    if isinstance(err, EdgeAttnError):
        return str(err), err.exit_code
    if isinstance(err, ImportError):
        return f"the package {err.name} cannot be imported ({err}): install edgeattn again", UnsupportedError.exit_code
    if isinstance(err, OSError | MemoryError):
        return str(err) or "out of memory", 1
    return f"unexpected {type(err).__name__}: {err}; --debug shows where: please report it", 1


def _ready_streams() -> None:
    """Let output neither fail on a name that the terminal cannot show, nor go into a file where a stream is closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with 2; a camera's address may be among the words that are no options."""
        super().error(redact(message))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser: argparse.ArgumentParser = _Parser(
        prog="edgeattn",
        description="From a PyTorch vision model with attention to a verified engine.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edgeattn {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = common_options()
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2]
        command = subparsers.add_parser(
            name, help=module.HELP, description=module.__doc__, parents=[common], allow_abbrev=False
        )
        module.configure(command)
        command.set_defaults(run=module.run)
        if words[:1] == [name]:
            apply_settings(command, name, [module.__name__.rpartition(".")[2] for module in COMMANDS], words)
    return parser.parse_args(_json_to_stdout(words))


def _json_to_stdout(words: Sequence[str]) -> list[str]:
    """`--json` takes a file or nothing; say so to argparse, which would take any word that follows for the file."""
    return [
        "--json=-" if word == "--json" and not after.endswith(".json") else word
        for word, after in zip_longest(words, words[1:], fillvalue="")
    ]
