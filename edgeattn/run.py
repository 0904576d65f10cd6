"""Engine + files -> outputs: what `edgeattn run` shows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn import files
from edgeattn.backends import open_session
from edgeattn.backends.base import Session
from edgeattn.batches import joined_range
from edgeattn.data import batches, load_recipe, open_data, read_npz
from edgeattn.engine import read_sidecar
from edgeattn.errors import UsageError
from edgeattn.folding import feeding_recipe
from edgeattn.reports.text import table
from edgeattn.tensors import format_shape

if TYPE_CHECKING:
    from edgeattn.tensors import Array


@dataclass(frozen=True)
class OutputSummary:
    """One output of one sample: its shape, its range, and for a row of class scores the highest `(class, score)`."""

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    mean: float
    top: tuple[tuple[int, float], ...]

    def __str__(self) -> str:
        if self.top:
            return ", ".join(f"class {index}: {score:.4g}" for index, score in self.top)
        span = f"{self.low:.4g} .. {self.high:.4g}, mean {self.mean:.4g}"
        return f"{self.dtype} {format_shape(self.shape)} in {span}"


@dataclass(frozen=True)
class RunReport:
    """What an engine said of each sample, by sample and output name; `skipped` says which files were not read."""

    engine: Path
    results: Mapping[str, Mapping[str, OutputSummary]]
    skipped: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            (name, output, str(summary))
            for name, summaries in self.results.items()
            for output, summary in summaries.items()
        ]
        return table([*rows, *(("skipped", "", reason) for reason in self.skipped)])

    def to_json(self) -> dict[str, Any]:
        """Plain values: `results` maps sample to output to its summary."""
        results = {
            name: {output: summary.__dict__ for output, summary in summaries.items()}
            for name, summaries in self.results.items()
        }
        return {"engine": str(self.engine), "results": results, "skipped": list(self.skipped)}


def run_engine(
    engine: str | Path,
    source: str | Path,
    *,
    recipe: str | Path | None = None,
    output: str | Path | None = None,
    top: int = 5,
    trust: bool = False,
) -> RunReport:
    """Run an engine on an image, a folder of samples, or the arrays of an `.npz` file as they are.

    With `output`, the outputs of all samples are also written to an `.npz` file: `names`, and per output one array
    whose first axis is the samples.

    Raises:
        InputError: the engine or the samples are refused.
        UsageError: a recipe for arrays, or none where the input does not tell the size of an image.
    """
    source = Path(source)
    with open_session(engine, trust) as session:
        if source.is_file() and source.suffix.lower() == ".npz":
            if recipe is not None:
                raise UsageError(f"{source} is fed as it is; leave the recipe out")
            rows, skipped = _rows((source.name,), session.run(read_npz(source)), 1), []
        else:
            about = read_sidecar(engine, trust).graph
            data = open_data(source, session.inputs, feeding_recipe(about, load_recipe(recipe) if recipe else None))
            rows = [row for group in _groups(data, session) for row in group]
            skipped = data.bad
    if output is not None:
        _write(Path(output), rows)
    summaries = {name: {key: _summary(array, top) for key, array in outputs.items()} for name, outputs in rows}
    return RunReport(Path(engine), summaries, tuple(skipped))


def _groups(data: Any, session: Session) -> Iterator[list[tuple[str, dict[str, Array]]]]:
    """Run the samples in the smallest batch that the engine takes, the last one filled up with its last sample."""
    size, _ = joined_range(session.profile)
    for names, feeds, _ in batches(data, size):
        filled = {
            name: np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
            for name, array in feeds.items()
        }
        yield _rows(names, session.run(filled), size)


def _rows(names: tuple[str, ...], outputs: Mapping[str, Array], size: int) -> list[tuple[str, dict[str, Array]]]:
    """Split the outputs of a batch into samples; an output without the batch's axis goes to each sample whole."""
    return [
        (name, {key: array[i : i + 1] if array.shape[:1] == (size,) else array for key, array in outputs.items()})
        for i, name in enumerate(names)
    ]


def _summary(array: Array, top: int) -> OutputSummary:
    values = np.asarray(array, np.float64)
    scores = values.ravel() if values.ndim == 2 and len(values) == 1 else values[:0].ravel()
    order = np.argsort(-scores, kind="stable")[:top]
    low, high, mean = (float(f(values)) if values.size else 0.0 for f in (np.min, np.max, np.mean))
    best = tuple((int(index), float(scores[index])) for index in order)
    return OutputSummary(array.shape, str(array.dtype), low, high, mean, best)


def _write(path: Path, rows: list[tuple[str, dict[str, Array]]]) -> None:
    arrays: dict[str, Any] = {key: np.concatenate([outputs[key] for _, outputs in rows]) for key in rows[0][1]}
    arrays["names"] = np.array([name for name, _ in rows])
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    files.write_atomic(path, stream.getvalue())
