"""Printing a result: text or JSON on stdout, or JSON into a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def emit(report: Any, as_json: str | None) -> None:
    """Print `str(report)`, or its `to_json()` where `--json` was given (`-` is stdout, else a file)."""
    if as_json is None:
        print(report)
        return
    from edgeattn import files

    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if as_json == "-":
        sys.stdout.write(text)
    else:
        print(report)
        files.write_atomic(Path(as_json), text.encode())


def passed(text: str, as_json: str | None = None) -> None:
    """The last line of a command that checked what it made; it leaves stdout to JSON where that was asked for."""
    stream = sys.stderr if as_json == "-" else sys.stdout
    print(f"PASSED: {text}", file=stream)
