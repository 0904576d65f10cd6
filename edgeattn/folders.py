"""Which samples a data folder holds, and what it says of each: the layouts that `open_data` understands."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgeattn import files
from edgeattn.errors import InputError, one_line, quote
from edgeattn.images import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from edgeattn.tensors import Array

MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes (K, 5: x1, y1, x2, y2, class) in pixels of an image as it is on disk, whose (w, h) is `size`, if said."""

    rows: Array
    size: tuple[int, int] | None


Said: TypeAlias = int | Path | Boxes | None  # a class, the file of a mask, boxes


def find_samples(folder: Path, prefer: str) -> Sequence[tuple[Path, Said]]:
    """The samples in a folder with what it says of each, in the order of their paths; see `open_data`.

    Raises:
        InputError: the folder cannot be read, or contradicts itself.
    """
    if folder.is_file():
        return [(folder, None)] if _is_data(folder) else []
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as err:
        raise InputError(f"cannot read the data in {folder}: {err.strerror}") from err
    if (table := folder / "labels.csv").is_file():
        return _from_table(folder, table)
    if (images := folder / "images").is_dir():
        masks = [path for path in inside if path.name in ("masks", "labels") and path.is_dir()]
        table = folder / "annotations.json"
        if table.is_file() and (prefer == "boxes" or not masks):
            return _from_annotations(images, table)
        if masks:
            return _with_masks(images, masks)
    return _in_classes(folder, inside)


def _in_classes(folder: Path, inside: Sequence[Path]) -> list[tuple[Path, int | None]]:
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


def _with_masks(images: Path, folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Every image with the mask of its name, whatever the suffix."""
    if len(folders) > 1:
        raise InputError(f"{images.parent} holds both masks/ and labels/; keep one")
    masks: dict[Path, Path] = {}
    for path in sorted(filter(_is_image, folders[0].rglob("*"))):
        if (other := masks.setdefault(path.relative_to(folders[0]).with_suffix(""), path)) != path:
            raise InputError(f"two masks of one name: {other} and {path}; keep one")
    pairs = []
    for path in sorted(filter(_is_image, images.rglob("*"))):
        stem = path.relative_to(images).with_suffix("")
        if stem not in masks:
            raise InputError(f"{path} has no mask: expected {folders[0] / stem}.png, or another kind of image")
        pairs.append((path, masks[stem]))
    return pairs


def _from_annotations(images: Path, table: Path) -> list[tuple[Path, Boxes]]:
    """Every image that a COCO file names, with its boxes in pixels of the image."""
    content = files.read_bytes(table, MAX_JSON_BYTES)
    try:
        found = json.loads(content)
        images_by_id = {entry["id"]: (str(entry["file_name"]), _size(entry)) for entry in found["images"]}
        numbers = {key: number for number, key in enumerate(sorted(entry["id"] for entry in found["categories"]))}
        boxes: dict[Any, list[list[float]]] = {key: [] for key in images_by_id}
        for entry in found["annotations"]:
            number = numbers[entry["category_id"]]
            x, y, width, height = (float(value) for value in entry["bbox"])
            if not math.isfinite(x + y + width + height) or min(width, height) < 0:
                raise ValueError(f"annotation {entry.get('id')} has the box {entry['bbox']}, expected [x, y, w, h]")
            crowd = bool(entry.get("iscrowd"))
            boxes[entry["image_id"]].append([x, y, x + width, y + height, -1 - number if crowd else number])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        what = f"{err} is missing or unknown" if isinstance(err, KeyError) else one_line(err)
        raise InputError(f"cannot read {table} as COCO instances: {what}") from err
    pairs = []
    for key, (name, size) in images_by_id.items():
        if not _is_inside(images, name, IMAGE_SUFFIXES):
            raise InputError(f"{table}: {quote(name)} is not an image inside {images}")
        pairs.append((images / name, Boxes(np.array(boxes[key], np.float64).reshape(-1, 5), size)))
    return sorted(pairs, key=lambda pair: pair[0])


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    return (int(entry["width"]), int(entry["height"])) if {"width", "height"} <= entry.keys() else None


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES | {".npz"} and not path.name.startswith(".") and path.is_file()


def _is_image(path: Path) -> bool:
    return _is_data(path) and path.suffix.lower() != ".npz"


def _is_inside(folder: Path, name: str, suffixes: Set[str]) -> bool:
    """Whether a name from a foreign table is one of a file of that kind in the folder, links followed."""
    path = folder / name
    try:
        return path.suffix.lower() in suffixes and path.resolve().is_relative_to(folder.resolve())
    except (ValueError, RuntimeError):  # no name of a file, a loop of links
        return False


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
    found: dict[Path, str] = {}
    for number, row in enumerate(rows, start=2):
        name, label = row.get("file"), row.get("label")
        if not name or not label:
            raise InputError(f"{table}, line {number}: expected the columns file,label, got {row}")
        if not _is_inside(folder, name, IMAGE_SUFFIXES | {".npz"}):
            raise InputError(f"{table}, line {number}: {quote(name)} is not an image or .npz file inside {folder}")
        if found.setdefault(folder / name, label.strip()) != label.strip():
            raise InputError(f"{table}, line {number}: {name} has a second label, {label.strip()}; keep one")
    numbers = _class_numbers(found.values())
    return [(path, numbers[label]) for path, label in sorted(found.items())]
