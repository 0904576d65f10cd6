"""An engine that takes frames: what is done to them before it, batches, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.backends import open_session
from edgeattn.backends.base import Session
from edgeattn.camera.prepare import preparer
from edgeattn.camera.results import Reading, Value, reading_of
from edgeattn.data import Recipe, default_recipe, load_recipe
from edgeattn.engine import read_sidecar
from edgeattn.errors import UsageError
from edgeattn.folding import feeding_recipe

if TYPE_CHECKING:
    from edgeattn.camera.frame import Frame
    from edgeattn.tensors import Array


@dataclass(frozen=True)
class Runner:
    """A session with its recipe: `prepare` makes a batch of one from a frame's image.

    Batches have `least` to `most` frames. `owned` says that closing the runner closes the session.
    """

    session: Session
    recipe: Recipe
    prepare: Callable[[Array], Array]
    reading: Reading
    least: int
    most: int
    owned: bool

    def run(self, rows: Sequence[Array]) -> list[dict[str, Array]]:
        """Run prepared frames as one batch, which is filled up with the last of them; the outputs of each.

        An output without the batch's axis goes to each frame whole.

        Raises:
            InferenceError: the backend failed.
        """
        size = max(self.least, len(rows))
        filled = [*rows, *[rows[-1]] * (size - len(rows))]
        feed = filled[0] if size == 1 else np.concatenate(filled)
        outputs = self.session.run({self.session.inputs[0].name: feed})
        return [
            {name: array[i : i + 1] if array.shape[:1] == (size,) else array for name, array in outputs.items()}
            for i in range(len(rows))
        ]

    def value(self, frame: Frame, outputs: dict[str, Array]) -> Value | None:
        """What the outputs say of a frame, in its pixels."""
        height, width = frame.image.shape[:2]
        return self.reading.value(outputs, (width, height), self.recipe)

    def close(self) -> None:
        """Close the session, where it was opened for this."""
        if self.owned:
            self.session.close()


def open_runner(
    engine: str | Path | Session,
    *,
    streams: int = 1,
    recipe: str | Path | Recipe | None = None,
    task: str | None = None,
    names: Sequence[str] = (),
    trust: bool = False,
) -> Runner:
    """Open an engine for the frames of so many streams, and run it on a black one.

    Every size of batch that may come is run: a first run allocates, and takes its time. Without a recipe, frames
    follow the one that is folded in, or else `default_recipe`.

    Raises:
        InputError: the engine is refused, or the recipe does not fit it.
        UnsupportedError: the engine cannot run here.
        UsageError: it has several inputs or takes no images, or its outputs do not fit the task.
    """
    given = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    if isinstance(engine, Session):
        return _runner(engine, given, streams, task, names, owned=False)
    given = feeding_recipe(read_sidecar(engine, trust).graph, given)
    session = open_session(engine, trust)
    try:
        return _runner(session, given, streams, task, names, owned=True)
    except BaseException:
        session.close()
        raise


def _runner(
    session: Session, given: Recipe | None, streams: int, task: str | None, names: Sequence[str], *, owned: bool
) -> Runner:
    if len(session.inputs) != 1:
        inputs = ", ".join(spec.name for spec in session.inputs)
        raise UsageError(f"a frame cannot feed {len(session.inputs)} inputs ({inputs}); build an engine with one")
    [spec] = session.inputs
    shapes = session.profile[spec.name]
    if not shapes.max:
        raise UsageError(f"input {spec} has no batch axis; a frame cannot feed it")
    recipe = given or default_recipe(spec)
    least, most = shapes.min[0], min(shapes.max[0], max(shapes.min[0], streams))
    runner = Runner(session, recipe, preparer(spec, recipe), Reading(), least, most, owned)
    black = runner.prepare(np.zeros((*recipe.size, 3), np.uint8))
    for size in range(least, most + 1):
        outputs, *_ = runner.run([black] * size)
    return replace(runner, reading=reading_of(outputs, task, names, recipe.size))
