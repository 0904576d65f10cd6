"""A profile that was saved as JSON, read back and checked: it may come from anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from edgeattn import files
from edgeattn.errors import InputError, one_line, quote
from edgeattn.profile.report import ProfileReport
from edgeattn.tensors import Dim, Shape

__all__ = ["read_profile"]

MAX_BYTES = 2**26


def read_profile(path: str | Path) -> ProfileReport:
    """Read what `edgeattn profile --json FILE` wrote, with `--compare` or without; single runs are not in it.

    Raises:
        InputError: it cannot be read, or is no profile; says which field is wrong.
    """
    path = Path(path)
    again = "save one with edgeattn profile ENGINE --json FILE"
    try:
        document = json.loads(files.read_bytes(path, MAX_BYTES))
    except (ValueError, RecursionError) as err:
        raise InputError(f"{path} is no profile: not JSON ({one_line(err)}); {again}") from err
    if isinstance(document, dict) and isinstance(document.get("engine"), dict):  # a comparison: what it was about
        document = document["engine"]
    try:
        report: ProfileReport = _decoded(ProfileReport, document, "the file")
    except ValueError as err:
        raise InputError(f"{path} is no profile: {err}; {again}") from err
    return report


def _decoded(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the type that a field declares.

    Raises:
        ValueError: it is of another kind.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _record(hint, value)
    if origin in (Union, types.UnionType):
        for part in parts:
            with contextlib.suppress(ValueError):
                return _decoded(part, value, where)
    if origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        if len(kinds) == len(value):
            return tuple(_decoded(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    elif origin is Mapping and isinstance(value, dict):
        return {key: _decoded(parts[1], item, f"{where} {quote(key)}") for key, item in value.items()}
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is hint or (value is None and hint is type(None)):
        return value
    raise ValueError(f"{where} is {quote(value)}")


def _record(cls: Any, item: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls, localns={"Dim": Dim, "Shape": Shape})
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in item:
            values[field.name] = _decoded(hints[field.name], item[field.name], field.name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{field.name} is missing")
    return cls(**values)
