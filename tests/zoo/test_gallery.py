"""The README's tables and pictures of the zoo are those of its records."""

from __future__ import annotations

import pytest
from PIL import Image

from edgeattn import zoo
from edgeattn.zoo import MODELS
from tests.test_house import ROOT

OWN = [name for name, entry in MODELS.items() if not entry.weights]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OWN)
def test_the_readme_says_what_the_record_says(name: str) -> None:
    (line,) = (line for line in README.splitlines() if f"`{name}`<br>" in line)
    record, entry = MODELS[name].record(), MODELS[name]
    assert f"{record['parameters']:,}" in line
    assert f"{100 * record['metrics'][entry.metric]:.1f} %" in line
    assert all(op in line for op in entry.ops)


@pytest.mark.parametrize("name", OWN)
def test_a_picture_is_there_and_small(name: str) -> None:
    path = zoo.FOLDER.parent / "gallery" / f"{name}.png"
    assert path.stat().st_size < 100_000
    with Image.open(path) as picture:
        assert picture.width > picture.height
