from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import InputError
from edgeattn.profile.report import Run, Stages
from edgeattn.profile.saved import read_profile
from tests.profile.samples import sample_report, without_layers


def saved(document: Any, folder: Path) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(document))
    return path


def test_a_saved_profile_is_read_back_whole_but_for_its_runs(tmp_path: Path) -> None:
    report = sample_report()
    report = replace(report, stages=Stages(*[report.latency] * 3))
    path = saved(replace(report, runs=(Run(0.0, 1.0),)).to_json(), tmp_path)
    assert read_profile(path) == report


def test_an_unknown_dimension_is_read_back(tmp_path: Path) -> None:
    report = without_layers()
    layers = (replace(sample_report().layers[0], input_shapes=(("?", 3),)),)
    report = replace(report, layers=layers)
    assert read_profile(saved(report.to_json(), tmp_path)).layers == layers


def spoilt(document: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("latency", "p50_ms"), "fast", "p50_ms is"),
        (("latency", "p50_ms"), None, "p50_ms is"),
        (("layers", 2, "median_ms"), [1], "median_ms is"),
        (("layers", 2, "interval_ms"), [1.0], "interval_ms is"),
        (("layers", 2, "nodes"), "a b", "nodes is"),
        (("blocks", 0, "fused"), 1, "fused is"),
        (("shapes",), [1, 3], "shapes is"),
        (("environment", "cpu"), 3, "environment 'cpu' is"),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(
    tmp_path: Path, path: tuple[Any, ...], value: Any, said: str
) -> None:
    document = spoilt(sample_report().to_json(), *path, value=value)
    with pytest.raises(InputError, match=said):
        read_profile(saved(document, tmp_path))


@pytest.mark.parametrize("text", ["", "[1]", "nan", '{"latency": {}}', "[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"is no profile: .*--json FILE"):
        read_profile(path)
