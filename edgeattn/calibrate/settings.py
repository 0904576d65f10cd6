"""How to calibrate: the tables of a recipe that are about it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeattn import files
from edgeattn.calibrate.observers import THRESHOLDS
from edgeattn.errors import InputError, did_you_mean
from edgeattn.images import refuse_unknown, table_of

METHODS = ("minmax", *THRESHOLDS)


@dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate, and what the result must hold.

    Attributes:
        method: minmax, entropy, percentile or mse; see `edgeattn.calibrate.observers.range_of`.
        percentile: the share of magnitudes, in percent, that `percentile` keeps.
        limit: look at this many samples only; None for all.
        seed: which ones: those whose names come first by a hash of name and seed.
        keep: globs of the names of nodes that stay in high precision.
        acceptance: how much of a metric may be lost, as a fraction, by its name; of `sqnr`, the least dB.

    Raises:
        InputError: a value is not of its form.
    """

    method: str = "minmax"
    percentile: float = 99.99
    limit: int | None = None
    seed: int = 0
    keep: tuple[str, ...] = ()
    acceptance: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"calibration: method {self.method!r} is unknown; {did_you_mean(str(self.method), METHODS)}"
            )
        expected = {
            "percentile": ("a number above 0, at most 100", _is_number(self.percentile) and 0 < self.percentile <= 100),
            "limit": ("a whole number, 1 or more", self.limit is None or (type(self.limit) is int and self.limit > 0)),
            "seed": ("a whole number", type(self.seed) is int),
            "keep": ("a list of names or globs", all(isinstance(item, str) for item in self.keep)),
        }
        for name, (form, holds) in expected.items():
            if not holds:
                raise InputError(f"calibration: {name} is {getattr(self, name)!r}; expected {form}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def load_calibration(path: str | Path) -> CalibrationSettings:
    """Read the tables `[calibration]` (the fields of `CalibrationSettings`) and `[acceptance]` of a recipe.

    `[acceptance]` has a loss by metric: `top1 = "0.5%"` or `top1 = 0.005`; of `sqnr = "30dB"` what is left at least.
    Both tables may be absent.

    Raises:
        InputError: the file cannot be read, a key is unknown, or a value is not of its form.
    """
    document = files.read_toml(Path(path))
    table = table_of(document, "calibration", path)
    known = [name for name in CalibrationSettings.__dataclass_fields__ if name != "acceptance"]
    refuse_unknown(table, known, f"{path}: key")
    if not isinstance(table.get("keep", []), list):
        raise InputError(f"{path}: keep is {table['keep']!r}; expected a list of names or globs")
    acceptance = {name: _loss(name, loss, path) for name, loss in table_of(document, "acceptance", path).items()}
    try:
        return CalibrationSettings(**{**table, "keep": tuple(table.get("keep", ()))}, acceptance=acceptance)
    except InputError as err:
        raise InputError(f"{path}: {err}") from err


def _loss(metric: str, value: object, path: str | Path) -> float:
    text = str(value) if isinstance(value, str) or _is_number(value) else ""
    unit, most, example = ("dB", math.inf, "30dB") if metric == "sqnr" else ("%", 1.0, "0.5%")
    with contextlib.suppress(ValueError):
        loss = float(text.removesuffix(unit)) / (100 if text.endswith("%") else 1)
        if 0 <= loss <= most:
            return loss
    raise InputError(f'{path}: [acceptance] {metric} is {value!r}; expected for example "{example}"')
