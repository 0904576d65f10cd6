"""What the zoo holds, as reports: the list, one model's page, and data to try it on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.errors import UsageError, did_you_mean
from edgeattn.model import parse_inputs
from edgeattn.reports.text import table
from edgeattn.tensors import TensorSpec, format_size
from edgeattn.zoo import MODELS, Entry, factory, find
from edgeattn.zoo.data import DATASETS
from edgeattn.zoo.data.sources import Split

__all__ = ["Catalogue", "Page", "Written", "list_models", "show_model", "write_data"]


@dataclass(frozen=True)
class Catalogue:
    """All models."""

    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        rows = []
        for row in self.to_json()["models"]:
            value = "not trained" if row["value"] is None else f"{row['value']:.1%}"
            size = "" if row["size_bytes"] is None else format_size(row["size_bytes"])
            rows.append((row["name"], row["task"], row["op"] or "none", row["metric"], value, size))
        return table(rows, ("model", "task", "attention", "metric", "test", "weights"), "llllrr")

    def to_json(self) -> dict[str, Any]:
        """`op` is the attention mechanism, several joined by commas; `value` is a fraction, of the test samples."""
        return {
            "models": [
                {
                    "name": entry.name,
                    "task": entry.task,
                    "op": ", ".join(entry.ops),
                    "metric": entry.metric,
                    "value": entry.record().get("metrics", {}).get(entry.metric),
                    "size_bytes": entry.size_bytes,
                }
                for entry in self.entries
            ]
        }


@dataclass(frozen=True)
class Page:
    """One model: what it takes, how it was trained, what it reached, and the commands that take it to an engine."""

    entry: Entry
    about: str
    inputs: tuple[TensorSpec, ...]
    record: dict[str, Any]
    commands: tuple[str, ...]

    def __str__(self) -> str:
        entry, record = self.entry, self.record
        rows = [
            ("model", f"zoo:{entry.name}: {self.about}"),
            ("task", entry.task),
            ("attention", ", ".join(entry.ops) or "none"),
            *(("input", str(spec)) for spec in self.inputs),
            ("test", _figures(record.get("metrics", {}))),
            ("training", _figures(record.get("train_metrics", {}))),
            *(
                (name.replace("_", " "), _plain(value))
                for name, value in record.items()
                if not name.endswith("metrics")
            ),
            *(("command", command) for command in self.commands),
        ]
        return table(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values under the field names, the entry's own first."""
        return {
            **dataclasses.asdict(self.entry),
            "about": self.about,
            "inputs": [dataclasses.asdict(spec) for spec in self.inputs],
            "record": self.record,
            "commands": list(self.commands),
        }


@dataclass(frozen=True)
class Written:
    """Samples of a data set, now in a folder."""

    name: str
    folder: Path
    split: str
    samples: int

    def __str__(self) -> str:
        return f"{self.samples} {self.split} samples of {self.name} in {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def list_models() -> Catalogue:
    """Every model of the zoo, in the order of its table; needs no torch."""
    return Catalogue(tuple(MODELS.values()))


def show_model(name: str) -> Page:
    """One model's page.

    Raises:
        UsageError: the zoo has no such model.
    """
    entry = find(name)
    make = factory(name)
    inputs = parse_inputs(make.example_inputs, make(pretrained=False))  # type: ignore[attr-defined]
    about = (make.__doc__ or "").strip().partition("\n")[0]
    return Page(entry, about, inputs, entry.record(), _commands(entry, inputs))


def write_data(name: str, folder: Path, split: Split = "test", count: int | None = None) -> Written:
    """Write the samples of a data set into an empty or new folder, as many as it writes of itself unless `count` says.

    Raises:
        UsageError: there is no such data set, or the folder holds something: samples of two sets or counts would mix.
        EdgeAttnError: the folder cannot be written.
    """
    if name not in DATASETS:
        raise UsageError(f"the zoo has no data set {name!r}; {did_you_mean(name, DATASETS)}")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty, and what is in it would be mixed with the samples; name a new folder")
    given = {} if count is None else {"count": count}
    return Written(name, folder, split, DATASETS[name](folder, split, **given))


def _commands(entry: Entry, inputs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    name, data = entry.name, f"build/zoo/{entry.data}"
    recipe = f" --recipe calibration/{entry.data}.toml" if len(inputs[0].shape or ()) == 4 and len(inputs) == 1 else ""
    return (
        f"edgeattn zoo data {entry.data} -o {data}",
        f"edgeattn export zoo:{name} -o {name}.onnx --dynamic batch",
        f"edgeattn build {name}.onnx -o {name}.engine",
        f"edgeattn parity {name}.engine --against zoo:{name} --data {data}{recipe}",
    )


def _figures(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()) or "not trained"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
