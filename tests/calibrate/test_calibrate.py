"""Calibration of a graph on a folder: what comes out, what interrupts it, what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeattn import calibrate as module
from edgeattn.calibrate import CalibrationSettings, Share, calibrate, calibrate_file, merge_files
from edgeattn.calibrate.observers import Seen
from edgeattn.cli import main
from edgeattn.data import Dataset, open_data
from edgeattn.errors import InputError, UnsupportedError, UsageError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.images import Recipe
from edgeattn.precision.ranges import load_ranges, require_fresh
from tests.graphs import FLOAT, graph_of, self_attention

SAMPLES = 7
ROADS = os.environ.get("EDGEATTN_CAMVID")  # read now: tests do not see the settings of the machine


def write_samples(folder: Path, count: int = SAMPLES, shape: tuple[int, ...] = (1, 7, 8)) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal(shape) * (1 + index) / count).astype(np.float32) for index in range(count)]
    folder.mkdir(exist_ok=True)
    for index, array in enumerate(arrays):
        np.savez(folder / f"{index}.npz", x=array)
    return arrays


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_graph(self_attention().graph, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_samples(tmp_path / "data")
    return tmp_path / "data"


def opened(model: Path, folder: Path) -> tuple[Graph, Dataset]:
    graph = load_graph(model)
    return graph, open_data(folder, graph.inputs)


# What comes out


def test_ranges_are_those_of_the_values_in_float64(model: Path, folder: Path, tmp_path: Path) -> None:
    ranges = calibrate(*opened(model, folder))
    case, x = self_attention(), write_samples(tmp_path / "again")
    weights = {name: array.const_value.numpy() for name, array in case.graph.model.graph.initializers.items()}  # type: ignore[union-attr]
    v = np.concatenate(x).astype(np.float64) @ weights["wv"]
    y = np.concatenate([case.compute({"x": array})["y"] for array in x])
    for name, exact in (("x", np.concatenate(x)), ("v", v), ("y", y)):
        found = ranges.tensors[name]
        np.testing.assert_allclose((found.min, found.max), (exact.min(), exact.max()), rtol=1e-5)
        assert (found.low, found.high) == (found.min, found.max)
    assert ranges.samples == SAMPLES
    assert ranges.method == "minmax"
    require_fresh(ranges, load_graph(model))


def test_the_inside_of_an_attention_is_observed(model: Path, folder: Path) -> None:
    graph, data = opened(model, folder)
    ranges = calibrate(graph, data)
    fused, report = fuse(graph)
    outside = {value.name for node in fused.model.graph for value in node.outputs}
    assert len(report.found) == 1
    inside = [name for name in ranges.tensors if name not in outside | {"x"}]
    assert inside
    assert any((ranges.tensors[name].min, ranges.tensors[name].max) == (0, 1) for name in inside), "the softmax"


@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_a_method_clips_within_what_minmax_sees(method: str, model: Path, folder: Path) -> None:
    wide = calibrate(*opened(model, folder))
    table = calibrate(*opened(model, folder), CalibrationSettings(method, percentile=90.0))
    assert table.tensors.keys() == wide.tensors.keys()
    for name, found in table.tensors.items():
        assert (found.min, found.max) == (wide.tensors[name].min, wide.tensors[name].max)
        assert found.min <= found.low <= found.high <= found.max
    if method == "percentile":
        assert table.tensors["x"].high < wide.tensors["x"].high


def test_a_fixed_batch_is_filled_and_sees_every_sample(folder: Path, tmp_path: Path) -> None:
    save_graph(self_attention(batch=3).graph, tmp_path / "three.onnx")
    save_graph(self_attention(batch=1).graph, tmp_path / "one.onnx")
    three, one = (calibrate(*opened(tmp_path / name, folder)) for name in ("three.onnx", "one.onnx"))
    assert three.samples == one.samples == SAMPLES
    assert three.tensors["x"] == one.tensors["x"]
    np.testing.assert_allclose(three.tensors["y"].max, one.tensors["y"].max, rtol=1e-5)


def test_runs_of_a_fixed_batch_take_turns_and_not_samples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else histograms would hold a batch's share of what is enough, and some nothing."""
    save_graph(self_attention(batch=8).graph, tmp_path / "eight.onnx")
    write_samples(folder, 64)
    told: list[int] = []
    observe = module.observe

    def watched(values: Any, floors: Any, start: int, before: Seen, runs: int) -> Seen:
        told.append(runs)
        return observe(values, floors, start, before, runs)

    monkeypatch.setattr(module, "observe", watched)
    calibrate(*opened(tmp_path / "eight.onnx", folder), CalibrationSettings("entropy"))
    assert told == [8] * 8


def test_a_limit_takes_the_same_samples_each_time_from_all_over(model: Path, folder: Path) -> None:
    write_samples(folder, 40)
    graph, data = opened(model, folder)
    chosen = [module._chosen(data, CalibrationSettings(limit=8, seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 8
    assert chosen[0] == sorted(chosen[0])
    assert calibrate(graph, data, CalibrationSettings(limit=8)).samples == 8


def test_progress_tells_the_share_and_of_how_many(model: Path, folder: Path) -> None:
    told: list[tuple[str, Any]] = []
    calibrate(*opened(model, folder), progress=lambda phase, share: told.append((phase, share)))
    shares = [share for phase, share in told if phase == "calibrating"]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert all(isinstance(share, Share) and share.of == SAMPLES for share in shares)


@pytest.mark.skipif(not ROADS, reason="EDGEATTN_CAMVID does not name CamVid's folder (train/ and val/)")
def test_road_scenes_calibrate_a_network(tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), [1, 3, 90, 120]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    weights = {"w": rng.standard_normal((16, 3, 3, 3)), "v": rng.standard_normal((2, 16, 1, 1))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    save_graph(graph_of(nodes, [("x", FLOAT, shape)], [("y", FLOAT, [1, 2, 90, 120])], arrays), tmp_path / "m.onnx")
    recipe = Recipe((90, 120))
    settings = CalibrationSettings("mse", limit=16)
    report = calibrate_file(tmp_path / "m.onnx", f"{ROADS}/train", tmp_path / "r.json", settings, recipe=recipe)
    assert (report.samples, report.bad) == (16, ())
    ranges = load_ranges(tmp_path / "r.json")
    require_fresh(ranges, load_graph(tmp_path / "m.onnx"), recipe)
    assert 0 <= ranges.tensors["x"].min < 0.1
    assert 0.9 < ranges.tensors["x"].max <= 1
    assert ranges.tensors["b"].low == 0
    assert ranges.tensors["y"].high < ranges.tensors["y"].max


# Interrupted and shared


def hooked(monkeypatch: pytest.MonkeyPatch, hook: Callable[[int], None]) -> list[int]:
    """Call a hook with the number of each read of a sample; returns the samples read."""
    read, reads = Dataset.sample, list[int]()

    def sample(self: Dataset, index: int) -> Any:
        reads.append(index)
        hook(len(reads))
        return read(self, index)

    monkeypatch.setattr(Dataset, "sample", sample)
    return reads


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    method: str, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CalibrationSettings(method)
    calibrate_file(model, folder, tmp_path / "whole.json", settings)

    def stop(count: int) -> None:
        if count == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        hooked(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            calibrate_file(model, folder, tmp_path / "r.json", settings)
    assert not (tmp_path / "r.json").exists()
    done = json.loads((tmp_path / "r.json.part").read_text())["done"]
    assert 0 < done < SAMPLES
    reads = hooked(monkeypatch, lambda count: None)
    calibrate_file(model, folder, tmp_path / "r.json", settings)
    assert sorted(reads)[1:] == list(range(done, SAMPLES)), "the first is read once more, for its shape"
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not (tmp_path / "r.json.part").exists()


def test_what_a_killed_run_left_is_whole_at_any_moment(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    state, left = tmp_path / "r.json.part", list[Path]()

    def keep(count: int) -> None:
        if state.exists():
            left.append(tmp_path / f"left-{count}")
            shutil.copy(state, left[-1])

    with monkeypatch.context() as patch:
        hooked(patch, keep)
        calibrate_file(model, folder, tmp_path / "r.json", CalibrationSettings("entropy"))
    whole = (tmp_path / "r.json").read_bytes()
    assert left
    for path in (left[0], left[-1]):
        shutil.copy(path, state)
        calibrate_file(model, folder, tmp_path / "r.json", CalibrationSettings("entropy"))
        assert (tmp_path / "r.json").read_bytes() == whole


@pytest.mark.parametrize("change", ["method", "data", "model"])
def test_the_state_of_another_calibration_is_not_taken(
    change: str, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = module.calibrate_shard(*opened(model, folder))
    state = tmp_path / "state"
    module.save_partial(part, state)
    if change == "data":
        np.savez(folder / "0.npz", x=np.zeros((1, 7, 8), np.float32))
    if change == "model":
        save_graph(self_attention(seed=5).graph, model)
    settings = CalibrationSettings("mse" if change == "method" else "minmax")
    graph, data = opened(model, folder)
    reads = hooked(monkeypatch, lambda count: None)
    calibrate(graph, data, settings, state=state)
    assert len(reads) == 1 + SAMPLES


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_give_the_same_bytes_as_one_run(count: int, model: Path, folder: Path, tmp_path: Path) -> None:
    settings = CalibrationSettings("percentile")
    whole = calibrate_file(model, folder, tmp_path / "whole.json", settings)
    parts = [tmp_path / f"part-{number}.json" for number in range(1, count + 1)]
    for number, path in enumerate(parts, 1):
        calibrate_file(model, folder, path, settings, shard=(number, count))
    merged = merge_files(parts, tmp_path / "merged.json")
    assert (merged.samples, merged.tensors) == (whole.samples, whole.tensors)
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


# What it refuses


def test_files_that_cannot_be_read_are_counted_and_listed(model: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "3.npz").write_bytes(b"PK damaged")
    report = calibrate_file(model, folder, tmp_path / "r.json")
    assert report.samples == SAMPLES - 1
    assert "3.npz" in str(report)
    [reason] = load_ranges(tmp_path / "r.json").bad
    assert "3.npz" in reason
    parts = [tmp_path / "1.json", tmp_path / "2.json"]
    for number, path in enumerate(parts, 1):
        calibrate_file(model, folder, path, shard=(number, 2))
    merge_files(parts, tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    (folder / "5.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 7 files .*3.npz.*5.npz"):
        calibrate_file(model, folder, tmp_path / "r.json")


def test_a_sample_whose_activations_are_not_finite_is_named_and_left_out(model: Path, folder: Path) -> None:
    np.savez(folder / "2.npz", x=np.full((1, 7, 8), 1e30, np.float32))
    ranges = calibrate(*opened(model, folder))
    assert ranges.samples == SAMPLES - 1
    [reason] = ranges.bad
    assert reason.startswith("2.npz: value ")
    assert ranges.tensors["x"].max < 1e3


def test_an_empty_folder_is_refused_before_any_work(model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    words = ["calibrate", str(model), "--data", str(tmp_path / "empty"), "-o", str(tmp_path / "r.json")]
    assert main(words) == 5
    captured = capsys.readouterr()
    assert "holds no images" in captured.err
    assert "preparing" not in captured.err
    assert not (tmp_path / "r.json").exists()


def test_a_half_precision_graph_is_observed_too(folder: Path, tmp_path: Path) -> None:
    half = onnx.TensorProto.FLOAT16
    nodes = [onnx.helper.make_node("Cast", ["x"], ["h"], to=half), onnx.helper.make_node("Neg", ["h"], ["y"])]
    save_graph(graph_of(nodes, [("x", FLOAT, [1, 7, 8])], [("y", half, [1, 7, 8])]), tmp_path / "m.onnx")
    tensors = calibrate(*opened(tmp_path / "m.onnx", folder), CalibrationSettings("mse")).tensors
    assert (tensors["y"].min, tensors["y"].max) == (-tensors["h"].max, -tensors["h"].min)
    assert tensors["y"].low == -tensors["h"].high or tensors["y"].high == -tensors["h"].low


def test_a_graph_that_cannot_be_run_is_unsupported_in_words(folder: Path, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Unheard", ["x"], ["y"], domain="of.nowhere")
    shape = ["batch", 7, 8]
    graph = graph_of([node], [("x", FLOAT, shape)], [("y", FLOAT, shape)])
    graph.model.opset_imports["of.nowhere"] = 1
    with pytest.raises(UnsupportedError, match="ONNX Runtime cannot run the graph to observe it"):
        calibrate(graph, open_data(folder, graph.inputs))


def test_without_onnx_runtime_the_extra_is_named(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(UnsupportedError, match=r"cannot be observed: .*pip install 'edgeattn\[cpu\]'"):
        calibrate(*opened(model, folder))


# Recipes and the command line


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/", "a/b", "-1/2", "1/2/3"])
def test_a_shard_is_k_of_n(text: str) -> None:
    from edgeattn.cli.calibrate import parse_shard

    with pytest.raises(UsageError, match="expected K/N"):
        parse_shard(text)
    assert parse_shard("2/4") == (2, 4)


def test_the_command_merges_what_its_shards_wrote(model: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    common = ["calibrate", str(model), "--data", str(folder), "-q"]
    for number in (1, 2):
        assert main([*common, "--shard", f"{number}/2", "-o", str(tmp_path / f"{number}.json")]) == 0
    parts = [str(tmp_path / "1.json"), str(tmp_path / "2.json")]
    assert main(["calibrate", "--merge", *parts, "-o", str(tmp_path / "r.json")]) == 0
    assert f"{SAMPLES} in" in capsys.readouterr().out
    assert load_ranges(tmp_path / "r.json").samples == SAMPLES
    for ignored in (["--shard", "1/2"], ["--method", "mse"], ["--limit", "3"], ["--recipe", "r.toml"]):
        assert main(["calibrate", "--merge", *parts, *ignored, "-o", str(tmp_path / "r.json")]) == 2
    assert main(["calibrate", str(model), "-o", str(tmp_path / "r.json")]) == 2
    assert "random" in capsys.readouterr().err


def test_a_recipe_for_arrays_may_only_say_how_to_calibrate(model: Path, folder: Path, tmp_path: Path) -> None:
    recipe, ranges = tmp_path / "r.toml", tmp_path / "r.json"
    recipe.write_text('[calibration]\nmethod = "mse"\nlimit = 3\n')
    common = [str(model), "--data", str(folder), "--recipe", str(recipe), "-q"]
    assert main(["calibrate", *common, "-o", str(ranges)]) == 0
    assert (load_ranges(ranges).method, load_ranges(ranges).samples) == ("mse", 3)
    asked = ["--int8", "--backend", "onnxruntime", "--dry-run"]
    assert main(["build", *common, *asked]) == main(["build", *common, *asked, "--ranges", str(ranges)]) == 0
    recipe.write_text("[calibration]\n[preproces]\nsize = [4, 4]\n")
    assert main(["calibrate", *common, "-o", str(ranges)]) == 5
    recipe.write_text("")
    assert main(["calibrate", *common, "-o", str(ranges)]) == 5


def test_a_sample_is_not_overwritten_by_what_is_seen_of_it(model: Path, folder: Path) -> None:
    (folder / "link.json").symlink_to(folder / "3.npz")
    before = (folder / "3.npz").read_bytes()
    for output in (folder / "3.npz", folder / "link.json", model):
        with pytest.raises(UsageError, match="would overwrite"):
            calibrate_file(model, folder, output)
    assert (folder / "3.npz").read_bytes() == before


def test_a_percentile_that_no_method_reads_is_refused(model: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["calibrate", str(model), "--data", str(folder), "-q", "-o", str(tmp_path / "r.json"), "--percentile", "99"]
    assert main([*asked, "--method", "mse"]) == 2
    assert "--percentile is of --method percentile, this is mse" in capsys.readouterr().err
    assert main([*asked, "--method", "percentile"]) == 0
