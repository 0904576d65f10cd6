"""The command line. A command parses, calls one public function and prints one report.

Results go to stdout, progress and errors to stderr. Exit codes: 0 good, 1 failed, 2 usage, 3 a gate failed,
4 this machine cannot, 5 input refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from edgeattn import __version__
from edgeattn.cli import build, doctor, export, inspect, parity, run
from edgeattn.cli.options import apply_settings, common_options
from edgeattn.errors import EdgeAttnError

COMMANDS = (doctor, export, inspect, build, run, parity)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises but with `--debug`."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(words)
        return int(args.run(args))
    except EdgeAttnError as err:
        if "--debug" in words:
            raise
        print(f"edgeattn: error: {err}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print("edgeattn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout (head, less) has left: nobody to tell
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as err:
        if "--debug" in words:
            raise
        print(f"edgeattn: error: {err}", file=sys.stderr)
        return 1


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
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
        if name in words:
            apply_settings(command, name, words)
    return parser.parse_args(_json_to_stdout(words))


def _json_to_stdout(words: Sequence[str]) -> list[str]:
    """`--json` takes a file or nothing; say so to argparse, which would take any word that follows for the file."""
    following = [*words[1:], ""]
    return [
        "--json=-" if word == "--json" and not after.endswith(".json") else word
        for word, after in zip(words, following, strict=True)
    ]
