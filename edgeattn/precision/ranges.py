"""What calibration observed: the range of every activation, as a value that precision passes read, and as a file.

The file is JSON for people to read, review and keep: what was calibrated, on what and how, then one line a tensor.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn import files
from edgeattn.errors import InputError, did_you_mean, one_line, quote
from edgeattn.images import plain_recipe

if TYPE_CHECKING:
    from edgeattn.graph import Graph
    from edgeattn.images import Recipe

FORMAT = 1
MAX_FILE_BYTES = 1 << 28
LARGEST = (2 - 2**-23) * 2.0**127  # that a float32 holds
AGAIN = "calibrate again: edgeattn calibrate MODEL --data DIR -o RANGES.json"


@dataclass(frozen=True)
class Range:
    """The values of one tensor over all samples: `min` and `max` as seen, `low` and `high` as the method clips them."""

    min: float
    max: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranges:
    """Ranges by tensor name, in the graph whose attentions are canonical nodes expanded into their bodies.

    What only a Relu or a Clip reads has none, since it may be cut off, nor has what an Erf gives inside a Gelu. The
    ranges of a product before its bias are bounds.

    Attributes:
        method: how `low` and `high` were found: minmax, entropy, percentile or mse.
        samples: how many were looked at.
        bad: the files that could not be, and why.
        graph_sha256: of the model file; empty where the ranges do not come from a calibration.
        data_sha256: of the names and the bytes of the sample files.
        recipe: how images became inputs; empty for arrays.
        settings: what else the result depends on.
        version: edgeattn's.
    """

    method: str
    samples: int
    tensors: Mapping[str, Range]
    bad: tuple[str, ...] = ()
    graph_sha256: str = ""
    data_sha256: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""


_HEADER = {
    "method": str, "samples": int, "bad": list, "graph_sha256": str, "data_sha256": str,
    "recipe": dict, "settings": dict, "version": str,
}  # fmt: skip
_NUMBERS = tuple(item.name for item in dataclasses.fields(Range))


def digest(value: Any) -> str:
    """Hex SHA-256 of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_ranges(ranges: Ranges, path: str | Path) -> None:
    """Write the table, replacing what was there in one step.

    Raises:
        EdgeAttnError: the file cannot be written.
    """
    header = {name: getattr(ranges, name) for name in _HEADER}
    header = {"format": FORMAT, **header, "recipe_sha256": digest(ranges.recipe)}
    files.write_atomic(Path(path), lines(header, {name: asdict(item) for name, item in ranges.tensors.items()}))


def lines(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> bytes:
    """A header and `tensors` as JSON, one line an item, the tensors sorted by name."""
    rows = [f"  {_text(name)}: {_text(tensors[name])}" for name in sorted(tensors)]
    body = "{\n" + ",\n".join(rows) + "\n }" if rows else "{}"
    heads = [f" {_text(name)}: {_text(value)}" for name, value in header.items()]
    return ("{\n" + ",\n".join([*heads, f' "tensors": {body}']) + "\n}\n").encode()


def _text(value: Any) -> str:
    return json.dumps(value)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The document of a table of this format.

    Raises:
        InputError: it cannot be read, is no JSON object, or of another format.
    """
    data = files.read_bytes(path, MAX_FILE_BYTES)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise InputError(f"{path} is no {what}: not JSON ({one_line(err)}); {AGAIN}") from err
    if not isinstance(document, dict) or not isinstance(document.get("tensors"), dict):
        raise InputError(f"{path} is no {what}: expected an object with tensors; {AGAIN}")
    if document.get("format") != FORMAT:
        found = quote(document.get("format"))
        raise InputError(f"{path} has format {found}; this edgeattn reads format {FORMAT}; {AGAIN}")
    return document


def load_ranges(path: str | Path) -> Ranges:
    """Read a table of ranges; every field is checked, since people edit these files.

    Raises:
        InputError: it cannot be read, a field is missing, unknown or of the wrong kind, or a range is none.
    """
    path = Path(path)
    document = read_json(path, "table of ranges")
    known = [*_HEADER, "format", "recipe_sha256", "tensors"]
    if "shard" in document:
        raise InputError(f"{path} is one part of a calibration: put all together with edgeattn calibrate --merge")
    for name in document:
        if name not in known:
            raise InputError(f"{path}: field {quote(name)} is unknown; {did_you_mean(name, known)}")
    for name, kind in _HEADER.items():
        if type(document.get(name)) is not kind:
            raise InputError(f"{path}: field {name!r} is {quote(document.get(name))}; expected {kind.__name__}")
    if document.get("recipe_sha256") != digest(document["recipe"]):
        raise InputError(f"{path}: the recipe was edited after calibration, which followed another; {AGAIN}")
    tensors = {name: _range(item, name, path) for name, item in document["tensors"].items()}
    header = {name: document[name] for name in _HEADER}
    return Ranges(**{**header, "bad": tuple(map(str, document["bad"]))}, tensors=tensors)


def _range(item: Any, name: str, path: Path) -> Range:
    whole = isinstance(item, dict) and len(item) == len(_NUMBERS)
    numbers: list[Any] = [item.get(key) for key in _NUMBERS] if whole else []
    if not numbers or not all(type(each) in (int, float) and abs(each) <= LARGEST for each in numbers):
        raise InputError(f"{path}: tensor {quote(name)} is {quote(item)}; expected finite {', '.join(_NUMBERS)}")
    found = Range(*map(float, numbers))
    if found.min > found.max or found.low > found.high:
        raise InputError(f"{path}: tensor {quote(name)} has an empty range; expected min <= max and low <= high")
    return found


def require_fresh(ranges: Ranges, graph: Graph, recipe: Recipe | None = None) -> None:
    """Refuse ranges of another graph than this one or, where a recipe is given, of another preprocessing.

    Raises:
        InputError: they are stale; says in what.
    """
    if ranges.graph_sha256 != graph.sha256:
        was = ranges.graph_sha256[:12] or "no calibrated model"
        raise InputError(
            f"the ranges are stale: they were observed on {was}, this model is {graph.sha256[:12]} (SHA-256); {AGAIN}"
        )
    if recipe is not None and (wanted := plain_recipe(recipe)) != ranges.recipe:
        pairs = {name: (ranges.recipe.get(name), wanted.get(name)) for name in {**ranges.recipe, **wanted}}
        said = ", ".join(f"{name} {was!r}, now {now!r}" for name, (was, now) in pairs.items() if was != now)
        raise InputError(f"the ranges are stale: another recipe was followed ({said}); {AGAIN}")
