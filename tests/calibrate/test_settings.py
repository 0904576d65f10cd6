"""What a recipe says of calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image

from edgeattn.calibrate import CalibrationSettings, load_calibration
from edgeattn.cli import main
from edgeattn.errors import InputError
from edgeattn.graph import load_graph, save_graph
from edgeattn.images import load_recipe
from edgeattn.precision.ranges import load_ranges, require_fresh
from tests.graphs import FLOAT, graph_of


def test_a_recipe_sets_how_to_calibrate_and_flags_win(tmp_path: Path, capsys: Any) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    save_graph(graph_of([node], [("x", FLOAT, [1, 3, 4, 4])], [("y", FLOAT, [1, 3, 4, 4])]), tmp_path / "m.onnx")
    (tmp_path / "photos").mkdir()
    for index in range(5):
        Image.new("RGB", (8, 8), (50 * index, 0, 255)).save(tmp_path / "photos" / f"{index}.png")
    text = """
        [preprocess]
        size = [4, 4]
        [calibration]
        method = "percentile"
        percentile = 99
        limit = 3
        keep = ["head.*"]
        [acceptance]
        top1 = "0.5%"
        miou = 0.01
        sqnr = "30dB"
    """
    (tmp_path / "r.toml").write_text(text)
    acceptance = {"top1": 0.005, "miou": 0.01, "sqnr": 30}
    settings = CalibrationSettings("percentile", 99, 3, keep=("head.*",), acceptance=acceptance)
    assert load_calibration(tmp_path / "r.toml") == settings
    words = ["calibrate", "m.onnx", "--data", "photos", "--recipe", "r.toml", "-o", "r.json", "--seed", "4"]
    words = [str(tmp_path / word) if "." in word or word == "photos" else word for word in words]
    assert main([*words, "--method", "mse", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["method"], report["samples"]) == ("mse", 3)
    ranges = load_ranges(tmp_path / "r.json")
    assert ranges.settings["seed"] == 4
    require_fresh(ranges, load_graph(tmp_path / "m.onnx"), load_recipe(tmp_path / "r.toml"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[calibration]\nmethd = 'mse'", "'methd' is unknown; did you mean 'method'"),
        ("[calibration]\nmethod = 'mas'", "method 'mas' is unknown; did you mean 'mse'"),
        ("[calibration]\npercentile = 0", "percentile is 0; expected a number above 0"),
        ("[calibration]\nlimit = 0", "limit is 0; expected a whole number"),
        ("[calibration]\nkeep = 'head'", "keep is 'head'; expected a list"),
        ("[calibration]\nkeep = [1]", "expected a list of names"),
        ("[acceptance]\ntop1 = 'little'", "top1 is 'little'; expected for example \"0.5%\""),
        ("[acceptance]\ntop1 = 3", 'top1 is 3; expected for example "0.5%"'),
        ("[acceptance]\nsqnr = '-3dB'", "sqnr is '-3dB'; expected for example \"30dB\""),
        ("[acceptance]\ntop1 = true", 'top1 is True; expected for example "0.5%"'),
        ("calibration = 3", "no \\[calibration\\] table"),
    ],
    ids=lambda value: value[:30],
)
def test_a_mistake_in_a_recipe_is_refused_in_words(table: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(table)
    with pytest.raises(InputError, match=message):
        load_calibration(tmp_path / "r.toml")
