"""Samples of the data that the zoo's models were trained on, for the benches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeattn import zoo
from edgeattn.data import Dataset, Recipe, load_recipe, open_data
from edgeattn.tensors import TensorSpec
from edgeattn.zoo.catalogue import write_data

RECIPES = Path(__file__).resolve().parents[1] / "calibration"


@dataclass(frozen=True)
class ZooData:
    """A folder of labelled samples, and how they are read; `recipe` is empty where they need none."""

    folder: Path
    recipe: Path | None

    @property
    def options(self) -> list[str]:
        """What tells `edgeattn build` of it."""
        return ["--data", str(self.folder), *(["--recipe", str(self.recipe)] if self.recipe else [])]

    def read(self, specs: Sequence[TensorSpec], prefer: str) -> Dataset:
        """The samples, as inputs of these specs."""
        recipe: Recipe | None = load_recipe(self.recipe) if self.recipe else None
        return open_data(self.folder, specs, recipe, prefer=prefer)


def zoo_data(entry: zoo.Entry, folder: Path, split: str, count: int) -> ZooData:
    """Write the first samples of a split of a model's data, once for all models on the same data."""
    place = folder / entry.data / split
    if not place.is_dir():
        write_data(entry.data, place, split, count)
    recipe = RECIPES / f"{entry.data}.toml"
    return ZooData(place, recipe if recipe.is_file() else None)


def labels_of(entry: zoo.Entry) -> str:
    """The kind of labels that a model's task is judged by."""
    return "boxes" if entry.task == "detection" else "masks"
