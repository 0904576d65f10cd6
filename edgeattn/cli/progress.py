"""How a long command says where it is: a bar on a terminal, one plain line a phase elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

Progress = Callable[[str, "float | None"], None]


@contextlib.contextmanager
def shown(quiet: bool = False) -> Iterator[Progress]:
    """Yield a callback `(phase, fraction)`; a fraction of None is a phase whose length is not known."""
    if quiet:
        yield lambda phase, fraction: None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar() as progress:
            yield progress
    else:
        yield _plain_lines()


def _plain_lines() -> Progress:
    seen: set[str] = set()

    def progress(phase: str, fraction: float | None = None) -> None:
        if phase not in seen:
            seen.add(phase)
            print(f"edgeattn: {phase}", file=sys.stderr, flush=True)

    return progress


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, fraction: float | None = None) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=None)
            if fraction is not None:
                bars.update(tasks[phase], total=1.0, completed=fraction)

        yield progress
