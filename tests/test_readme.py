"""The README's tour, run as it stands: what a newcomer types has to work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeattn.backends import backend_named
from edgeattn.cli import main
from edgeattn.zoo.data import write_digits
from tests.test_house import ROOT, readme_commands


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_tour_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEATTN_PROFILE_DURATION", "0.2")
    shutil.copytree(ROOT / "calibration", tmp_path / "calibration")
    made = tmp_path / "build" / "quickstart"
    write_digits(made / "digits")
    (made / "samples").mkdir()
    shutil.copy(next((made / "digits" / "3").iterdir()), made / "samples" / "3.png")
    without_rtx = bool(backend_named("tensorrt-rtx").missing(running=False))
    for words in readme_commands():
        if words[0] == "edgeattn" and words[1] != "plugins":  # which needs TensorRT's headers: see tests/plugins
            expected = 4 if "tensorrt-rtx" in words and without_rtx else 0
            # Ports that somebody may use; the server takes a free one.
            assert main([":0" if word in (":8080", ":9100") else word for word in words[1:]]) == expected, words
    sidecar = json.loads((made / "cbam_resnet.engine.json").read_text())
    assert sidecar["verified"]
    assert (made / "parity.html").stat().st_size > 5000
