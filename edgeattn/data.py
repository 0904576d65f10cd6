"""Representative data: images or arrays in a folder, read one sample at a time.

Training, calibration, parity and deployment all read through here, so their preprocessing cannot drift apart.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np

from edgeattn.errors import InputError, UsageError, one_line
from edgeattn.folders import Boxes, Said, find_samples
from edgeattn.images import (
    IMAGE_SUFFIXES,
    Recipe,
    default_recipe,
    load_recipe,
    place_boxes,
    preprocess,
    read_image,
    read_mask,
    upright_size,
)
from edgeattn.metrics.base import Label
from edgeattn.tensors import TensorSpec, check_feeds, format_size, numpy_dtype

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgeattn.tensors import Array, Feeds, Shape

T = TypeVar("T")

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

_Reader: TypeAlias = Callable[[Path, Said], tuple["Feeds", Label | None]]


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample: `feeds` by input name, each with a first axis of 1; `name` is its path inside the folder.

    `label` is a class, a mask of classes (H, W) with -1 where it says nothing, or boxes (K, 5: x1, y1, x2, y2, class)
    of floats, in pixels of the prepared image, with class `-1 - c` for a crowd of class c.
    """

    name: str
    feeds: Feeds
    label: Label | None = None


@dataclass(eq=False)
class Dataset:
    """Samples in the order of their names, read as they are asked for.

    Files that cannot be read are skipped; `bad` says which and why, as far as the last pass over the samples came.
    `len` counts the files, good or bad.
    """

    folder: Path
    files: Sequence[tuple[Path, Said]]
    read: _Reader = field(repr=False)
    recipe: Recipe | None = None  # that images follow; None for arrays
    bad: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the readable samples.

        Raises:
            InputError: at the end, when more than 1 % of the files (and more than one) or all are bad.
        """
        self.bad.clear()
        for index in range(len(self)):
            try:
                sample = self.sample(index)
            except InputError as err:
                self.bad.append(str(err))
                continue
            yield sample
        require_good(self.bad, len(self), self.folder)

    def sample(self, index: int) -> Sample:
        """Read one sample; several threads may.

        Raises:
            InputError: its file cannot be read, or does not fit the inputs.
        """
        path, said = self.files[index]
        feeds, label = self.read(path, said)
        return Sample(path.relative_to(self.folder).as_posix(), feeds, label)


def spread(samples: Iterable[Sample], most: int) -> Iterable[Sample]:
    """At most so many samples, of a folder at even distances, since it has its classes one after the other."""
    if isinstance(samples, Dataset):
        return replace(samples, files=evenly(samples.files, most), bad=[])
    return islice(samples, most)


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many items, at even distances."""
    return [items[place * len(items) // most] for place in range(most)] if len(items) > most else items


def require_good(bad: Sequence[str], files: int, where: Path | str) -> None:
    """Refuse a pass over files in which too many were bad.

    Raises:
        InputError: more than 1 % of them (and more than one), or all; names the first.
    """
    if files == len(bad) == 1:
        raise InputError(bad[0])
    if len(bad) > max(1, MAX_BAD * files) or len(bad) == files:
        raise InputError(
            f"{len(bad)} of {files} files in {where} cannot be used, more than 1 %: "
            f"{'; '.join(bad[:3])}{' ...' if len(bad) > 3 else ''}"
        )


def open_data(
    folder: str | Path,
    inputs: Sequence[TensorSpec],
    recipe: Recipe | None = None,
    *,
    prefer: Literal["masks", "boxes"] = "masks",
) -> Dataset:
    """Open a folder of samples for a model with these inputs; a single file is a folder of one.

    The folder holds images or `.npz` files (arrays by input name, each with a first axis of 1, and maybe `label`),
    either all in it, or in one subfolder per class, or in any place that its `labels.csv` (`file,label`) names.
    Classes are numbered by their sorted names, but names that are all whole numbers are themselves the numbers.
    Or it holds `images/` beside `masks/` (or `labels/`), where an image of the same name has the class of each pixel,
    or beside `annotations.json` (COCO instances), which names images and boxes; categories are numbered in the order
    of their ids. Of a folder with both, `prefer` says which. Without a recipe, images follow `default_recipe`.

    Raises:
        InputError: nothing usable is there, images and arrays are mixed, or the recipe does not fit the input.
        UsageError: images for a model with several inputs, a recipe for arrays, or no recipe where one is needed.
    """
    folder = Path(folder)
    found = find_samples(folder, prefer)
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}) and no .npz files")
    kinds = {path.suffix.lower() == ".npz" for path, _ in found}
    if len(kinds) > 1:
        raise InputError(f"{folder} holds both images and .npz files; keep one kind")
    singles = [_single(spec) for spec in inputs]
    if kinds == {False}:
        read, recipe = _image_reader(singles, recipe)
    elif recipe is None:
        read = _npz_reader(singles)
    else:
        raise UsageError(f"{folder} holds .npz files, which are fed as they are; leave the recipe out")
    return Dataset(folder if folder.is_dir() else folder.parent, found, read, recipe)


def _single(spec: TensorSpec) -> TensorSpec:
    if spec.shape == ():
        raise UsageError(f"input {spec} has no batch axis; samples cannot feed it")
    return TensorSpec(spec.name, spec.dtype, spec.shape and (1, *spec.shape[1:]))


def _image_reader(inputs: Sequence[TensorSpec], recipe: Recipe | None) -> tuple[_Reader, Recipe]:
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

    def read(path: Path, said: Said) -> tuple[Feeds, Label | None]:
        image = read_image(path)
        x = preprocess(image, chosen)[None]
        if np.issubdtype(dtype, np.integer):
            x = np.clip(np.rint(x), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return {spec.name: x.astype(dtype)}, _fitted(said, image, path, chosen)

    return read, chosen


def _fitted(said: Said, image: Image, path: Path, recipe: Recipe) -> Label | None:
    """What is said of an image, as a label of what the recipe makes of it."""
    if not isinstance(said, Path | Boxes):
        return said
    size = upright_size(image)
    if isinstance(said, Path):
        return read_mask(said, size, recipe)
    if said.size not in (None, size):
        raise InputError(f"{path} has {size[0]}x{size[1]} pixels, its boxes are of {said.size[0]}x{said.size[1]}")
    return place_boxes(said.rows, size, recipe)


def _npz_reader(inputs: Sequence[TensorSpec]) -> _Reader:
    names = {spec.name for spec in inputs}

    def read(path: Path, said: Said) -> tuple[Feeds, Label | None]:
        arrays = read_npz(path)
        label = None if "label" in names else arrays.pop("label", None)
        try:
            feeds = check_feeds(inputs, {}, arrays)
        except InputError as err:
            raise InputError(f"{path}: {err}") from err
        for name, array in feeds.items():
            if not np.isfinite(array).all():
                raise InputError(f"{path}: input {name!r} has values that are not finite")
        if label is None:
            return feeds, said if isinstance(said, int) else None
        return feeds, _label(label, path)

    return read


def _label(label: Array, path: Path) -> Label:
    """A label from a file: a whole number is a class, several are a mask or the like, floats (K, 5) are boxes."""
    if label.ndim == 3 and len(label) == 1:
        label = label[0]  # like the inputs, it has a first axis of 1
    if label.dtype.kind in "iub":
        return int(label.item()) if label.size == 1 else label.astype(np.int64)
    if label.dtype.kind != "f" or label.shape[1:] != (5,) or not np.isfinite(label).all():
        raise InputError(
            f"{path}: label is {label.dtype} of shape {label.shape}; expected whole numbers, or finite boxes (K, 5)"
        )
    return label


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
) -> Iterator[tuple[tuple[str, ...], dict[str, Array], tuple[Label, ...] | None]]:
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


def _join(group: Sequence[Sample]) -> tuple[tuple[str, ...], dict[str, Array], tuple[Label, ...] | None]:
    feeds = {name: np.concatenate([sample.feeds[name] for sample in group]) for name in group[0].feeds}
    labels = tuple(sample.label for sample in group if sample.label is not None)
    return tuple(sample.name for sample in group), feeds, labels if len(labels) == len(group) else None
