"""Say what this machine can do: versions, devices, and one real inference in each usable backend."""

from __future__ import annotations

import argparse

from edgeattn.cli.options import json_option
from edgeattn.cli.output import check_outputs, emit

HELP = "say what this machine can do"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Look around; exit 0 where at least one backend runs, else 4."""
    from edgeattn.doctor import examine

    check_outputs((args.json,))
    report = examine()
    emit(report, args.json)
    return 0 if report.usable else 4
