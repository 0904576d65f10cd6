"""Printing a result: text or JSON on stdout, or JSON into a file."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def emit(report: Any, as_json: str | None) -> None:
    """Print `str(report)`, or its `to_json()` where `--json` was given (`-` is stdout, else a file)."""
    if as_json is None:
        _print(report)
        return
    from edgeattn import files

    plain = files.finite(report.to_json())
    if as_json == "-":
        sys.stdout.write(files.json_text(plain))
    else:
        _print(report)
        files.write_json(Path(as_json), plain)


def _print(report: Any) -> None:
    """Print lines that are no wider than the terminal; what is in a file stays as it is."""
    if not sys.stdout.isatty():
        print(report)
        return
    width = shutil.get_terminal_size().columns
    print("\n".join(_wrapped(line, width) for line in str(report).split("\n")))


def _wrapped(line: str, width: int) -> str:
    """A line whose last column goes on below itself where it is too long; one that leaves no room there stays."""
    if not line.strip("- "):
        return line[:width]
    start = max((gap.end() for gap in re.finditer(r" {2,}", line[: 2 * width // 3])), default=0)
    if len(line) <= width or "  " in line[start:]:
        return line
    words = textwrap.wrap(line[start:], width - start, break_long_words=False, break_on_hyphens=False)
    return line[:start] + f"\n{' ' * start}".join(words)


def check_outputs(outputs: Iterable[str | Path | None], sources: Iterable[str | Path | None] = ()) -> None:
    """Refuse, before the work, what could not be written after it, or would overwrite a source or another output.

    Raises:
        EdgeAttnError: see `files.output_file`.
    """
    from edgeattn import files

    taken = [Path(source) for source in sources if source is not None]
    for output in outputs:
        if output is not None and output != "-":
            files.output_file(Path(output), *taken)
            taken.append(Path(output))


def passed(text: str, as_json: str | None = None) -> None:
    """The last line of a command that checked what it made; it leaves stdout to JSON where that was asked for."""
    stream = sys.stderr if as_json == "-" else sys.stdout
    print(f"PASSED: {text}", file=stream)
