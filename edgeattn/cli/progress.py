"""How a long command says where it is: a bar on a terminal, one plain line a phase elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeattn.backends.base import Progress


@contextlib.contextmanager
def shown(quiet: bool = False) -> Iterator[Progress]:
    """Yield a callback `(phase, fraction)`; a fraction of None is a phase whose length is not known.

    A fraction with an attribute `of` is one of so many things: the bar shows their number and rate.
    """
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
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many of the things that a phase counts are done in a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            counted = task.total is not None and task.total != 1
            return Text(f"{task.completed:.0f}/{task.total:.0f} {speed:.1f}/s" if counted and speed else "")

    named = TextColumn("{task.description}", markup=False)
    columns = (named, BarColumn(), Rate(), TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(phase: str, fraction: float | None = None) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=None)
            if fraction is not None:
                count = getattr(fraction, "of", 1)
                bars.update(tasks[phase], total=count, completed=fraction * count)

        yield progress
