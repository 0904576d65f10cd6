"""Representative data: images or arrays in a folder, read one sample at a time.

Training, calibration, parity and deployment all read through here, so their preprocessing cannot drift apart.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import InputError, UsageError, one_line, quote
from edgeattn.images import IMAGE_SUFFIXES, Recipe, default_recipe, load_recipe, preprocess, read_image
from edgeattn.tensors import TensorSpec, check_feeds, format_size, numpy_dtype

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Feeds, Shape

__all__ = [
    "Dataset",
    "Recipe",
    "Sample",
    "batches",
    "default_recipe",
    "load_recipe",
    "open_data",
    "preprocess",
    "read_image",
    "read_npz",
]

MAX_NPZ_BYTES = 4 << 30
MAX_BAD = 0.01  # of the files, or one


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample: `feeds` by input name, each with a first axis of 1; `name` is its path inside the folder."""

    name: str
    feeds: Feeds
    label: int | None = None


@dataclass(eq=False)
class Dataset:
    """Samples in the order of their names, read as they are asked for.

    Files that cannot be read are skipped; `bad` says which and why, as far as the last pass over the samples came.
    `len` counts the files, good or bad.
    """

    folder: Path
    files: Sequence[tuple[Path, int | None]]
    read: Callable[[Path], tuple[Feeds, int | None]] = field(repr=False)
    bad: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the readable samples.

        Raises:
            InputError: at the end, when more than 1 % of the files (and more than one) or all are bad.
        """
        self.bad.clear()
        for path, label in self.files:
            try:
                feeds, own_label = self.read(path)
            except InputError as err:
                self.bad.append(str(err))
                continue
            yield Sample(path.relative_to(self.folder).as_posix(), feeds, label if own_label is None else own_label)
        if len(self) == len(self.bad) == 1:
            raise InputError(self.bad[0])
        if len(self.bad) > max(1, MAX_BAD * len(self)) or len(self.bad) == len(self):
            raise InputError(
                f"{len(self.bad)} of {len(self)} files in {self.folder} cannot be used, more than 1 %: "
                f"{'; '.join(self.bad[:3])}{' ...' if len(self.bad) > 3 else ''}"
            )


def open_data(folder: str | Path, inputs: Sequence[TensorSpec], recipe: Recipe | None = None) -> Dataset:
    """Open a folder of samples for a model with these inputs; a single file is a folder of one.

    The folder holds images or `.npz` files (arrays by input name, each with a first axis of 1, and maybe `label`),
    either all in it, or in one subfolder per class, or in any place that its `labels.csv` (`file,label`) names.
    Classes are numbered by their sorted names, but names that are all whole numbers are themselves the numbers.
    Without a recipe, images follow `default_recipe`.

    Raises:
        InputError: nothing usable is there, images and arrays are mixed, or the recipe does not fit the input.
        UsageError: images for a model with several inputs, a recipe for arrays, or no recipe where one is needed.
    """
    folder = Path(folder)
    files = _find(folder)
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no .npz files")
    kinds = {path.suffix.lower() == ".npz" for path, _ in files}
    if len(kinds) > 1:
        raise InputError(f"{folder} holds both images and .npz files; keep one kind")
    singles = [_single(spec) for spec in inputs]
    if kinds == {False}:
        read = _image_reader(singles, recipe)
    elif recipe is None:
        read = _npz_reader(singles)
    else:
        raise UsageError(f"{folder} holds .npz files, which are fed as they are; leave the recipe out")
    return Dataset(folder if folder.is_dir() else folder.parent, files, read)


def _single(spec: TensorSpec) -> TensorSpec:
    if spec.shape == ():
        raise UsageError(f"input {spec} has no batch axis; samples cannot feed it")
    return TensorSpec(spec.name, spec.dtype, spec.shape and (1, *spec.shape[1:]))


def _image_reader(inputs: Sequence[TensorSpec], recipe: Recipe | None) -> Callable[[Path], tuple[Feeds, int | None]]:
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"an image cannot feed {len(inputs)} inputs ({names}); give .npz files with one array each")
    spec = inputs[0]
    chosen = recipe or default_recipe(spec)
    dtype = numpy_dtype(spec.dtype)
    try:
        check_feeds(inputs, {}, {spec.name: np.zeros((1, *chosen.shape), dtype)})
    except InputError as err:
        raise InputError(f"the recipe does not fit the model: {err}") from err

    def read(path: Path) -> tuple[Feeds, int | None]:
        x = preprocess(read_image(path), chosen)[None]
        if np.issubdtype(dtype, np.integer):
            x = np.clip(np.rint(x), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return {spec.name: x.astype(dtype)}, None

    return read


def _npz_reader(inputs: Sequence[TensorSpec]) -> Callable[[Path], tuple[Feeds, int | None]]:
    names = {spec.name for spec in inputs}

    def read(path: Path) -> tuple[Feeds, int | None]:
        arrays = read_npz(path)
        label = None if "label" in names else arrays.pop("label", None)
        try:
            feeds = check_feeds(inputs, {}, arrays)
        except InputError as err:
            raise InputError(f"{path}: {err}") from err
        for name, array in feeds.items():
            if not np.isfinite(array).all():
                raise InputError(f"{path}: input {name!r} has values that are not finite")
        if label is not None and (label.size != 1 or not np.issubdtype(label.dtype, np.integer)):
            raise InputError(f"{path}: label is {label.dtype} of shape {label.shape}; expected one whole number")
        return feeds, None if label is None else int(label.item())

    return read


def _find(folder: Path) -> list[tuple[Path, int | None]]:
    if folder.is_file():
        return [(folder, None)] if _is_data(folder) else []
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as err:
        raise InputError(f"cannot read the data in {folder}: {err.strerror}") from err
    if (table := folder / "labels.csv").is_file():
        return _from_table(folder, table)
    loose = [path for path in inside if _is_data(path)]
    classes = {path.name: sorted(filter(_is_data, path.rglob("*"))) for path in inside if path.is_dir()}
    if loose and any(classes.values()):
        raise InputError(f"{folder} holds samples beside subfolders with samples; keep one or the other")
    if loose or not any(classes.values()):
        return [(path, None) for path in loose]
    for name, paths in classes.items():
        if not paths:
            raise InputError(f"the class folder {folder / name} holds no samples; remove it or fill it")
    numbers = _class_numbers(classes)
    return [(path, numbers[name]) for name, paths in classes.items() for path in paths]


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | {".npz"} and not path.name.startswith(".") and path.is_file()


def _class_numbers(names: Iterable[str]) -> dict[str, int]:
    distinct = sorted(set(names))
    if all(name.isdecimal() for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(distinct)}


def _from_table(folder: Path, table: Path) -> list[tuple[Path, int | None]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as err:
        raise InputError(f"cannot read {table}: {one_line(err)}") from err
    files: dict[Path, str] = {}
    for number, row in enumerate(rows, start=2):
        name, label = row.get("file"), row.get("label")
        if not name or not label:
            raise InputError(f"{table}, line {number}: expected the columns file,label, got {row}")
        path = folder / name
        inside = "\0" not in name and path.resolve().is_relative_to(folder.resolve())
        if not inside or path.suffix.lower() not in IMAGE_SUFFIXES | {".npz"}:
            raise InputError(f"{table}, line {number}: {quote(name)} is not an image or .npz file inside {folder}")
        if files.setdefault(path, label.strip()) != label.strip():
            raise InputError(f"{table}, line {number}: {name} has a second label, {label.strip()}; keep one")
    numbers = _class_numbers(files.values())
    return [(path, numbers[label]) for path, label in sorted(files.items())]


def read_npz(path: str | Path) -> dict[str, Array]:
    """Read the arrays of an `.npz` file by name; nothing in it is unpickled.

    Raises:
        InputError: no such file, not an `.npz`, damaged, pickled, or larger than 4 GiB unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > MAX_NPZ_BYTES:
            raise InputError(f"{path} unpacks to {format_size(size)}; at most {format_size(MAX_NPZ_BYTES)} is read")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except InputError:
        raise
    except FileNotFoundError as err:
        raise InputError(f"no such file: {path}") from err
    except Exception as err:  # zipfile, zlib and numpy raise whatever the bytes lead them to
        raise InputError(f"cannot read {path} as .npz: {one_line(err)}") from err


def batches(
    samples: Iterable[Sample], size: int
) -> Iterator[tuple[tuple[str, ...], dict[str, Array], tuple[int, ...] | None]]:
    """Join samples to batches of (names, feeds, labels), in order; labels are None unless every sample has one.

    A batch is smaller than `size` at the end, and where the next sample has other shapes.
    """
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == size or _shapes(sample) != _shapes(group[0])):
            yield _join(group)
            group = []
        group.append(sample)
    if group:
        yield _join(group)


def _shapes(sample: Sample) -> dict[str, Shape]:
    return {name: array.shape for name, array in sample.feeds.items()}


def _join(group: Sequence[Sample]) -> tuple[tuple[str, ...], dict[str, Array], tuple[int, ...] | None]:
    feeds = {name: np.concatenate([sample.feeds[name] for sample in group]) for name in group[0].feeds}
    labels = tuple(sample.label for sample in group if sample.label is not None)
    return tuple(sample.name for sample in group), feeds, labels if len(labels) == len(group) else None
