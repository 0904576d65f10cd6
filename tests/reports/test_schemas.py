"""The JSON of a real profile is what its published schema says; that of parity is tested beside its report."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgeattn.build import build_engine
from edgeattn.files import json_text
from edgeattn.profile import engine, profile_engine
from tests.graphs import self_attention
from tests.profile.samples import sample_report

SCHEMA = json.loads((files("edgeattn.reports") / "schemas" / "profile.json").read_text())


def errors(plain: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(plain)]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_real_profile_is_valid_and_the_schema_knows_every_key(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WARMUP_S", 0.0)
    build_engine(self_attention().graph, tmp_path / "m.engine", backend=backend, check=False)
    report = profile_engine(tmp_path / "m.engine", duration_s=0.1, memory=False)
    plain = json.loads(json_text(report.to_json()))
    assert plain["layers"]
    assert plain["blocks"]
    assert errors(plain) == []
    assert set(plain) == set(SCHEMA["properties"])
    assert {key for layer in plain["layers"] for key in layer} == set(SCHEMA["$defs"]["layer"]["properties"])
    assert {key for block in plain["blocks"] for key in block} == set(SCHEMA["$defs"]["block"]["properties"])


def test_a_profile_with_everything_in_it_is_valid_and_one_that_lacks_a_key_is_not() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    plain = json.loads(json_text(sample_report().to_json()))
    assert plain["ceilings"]
    assert plain["roofline"]
    assert errors(plain) == []
    plain["blocks"][0].pop("why")
    assert len(errors(plain)) == 1
