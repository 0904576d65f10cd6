from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeattn.errors import InputError
from tests.scripts import script

BEFORE = "before\n<!-- zoo-int8 -->\nold\n<!-- /zoo-int8 -->\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a README of its own and models that lose nothing."""
    module = script("zoo_int8")
    (tmp_path / "README.md").write_text(BEFORE)
    monkeypatch.setattr(module, "README", tmp_path / "README.md")
    monkeypatch.setattr(module, "drops", lambda *_: (100, 90.0, [0.0, 0.0]))
    return module


def code_of(table: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo_int8", *words])
    with pytest.raises(SystemExit) as caught:
        table.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_readme_gets_the_whole_table(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_of(table, monkeypatch, "--readme") == 0
    assert "\n| vit | top1 | 100 | 90.0 | +0.00 | +0.00 |\n" in table.README.read_text()


def test_some_models_are_not_written_over_all(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(table, monkeypatch, "vit", "--readme") == 2
    assert "leave out their names" in capsys.readouterr().err
    assert table.README.read_text() == BEFORE


def test_after_failures_nothing_is_written(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def drops(entry: Any, *_: Any) -> tuple[int, float, list[float]]:
        if entry.name == "vit":
            raise InputError("no samples")
        return 100, 90.0, [0.0, math.nan if entry.name == "resnet" else 0.5]

    monkeypatch.setattr(table, "drops", drops)
    assert code_of(table, monkeypatch, "--readme") == 3
    assert capsys.readouterr().out.endswith("more than 0.5 points lost by: resnet\nfailed: vit: no samples\n")
    assert table.README.read_text() == BEFORE
