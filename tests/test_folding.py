"""A folded graph on pixels against the graph on what `preprocess` makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from edgeattn.calibrate import calibrate_file
from edgeattn.cli import main
from edgeattn.data import open_data
from edgeattn.engine import read_engine, read_sidecar
from edgeattn.errors import InputError, UsageError
from edgeattn.folding import FOLDED, fold_preprocess
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.images import Recipe, leftover, preprocess
from edgeattn.precision.ranges import load_ranges
from tests.graphs import FLOAT, gathered_gate, graph_of

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RECIPES = {
    "imagenet": Recipe((5, 7), resize="crop", **IMAGENET),
    "letterboxed-bgr": Recipe((9, 4), resize="letterbox", color="bgr", scale=1.0, mean=(103.5, 116.3, 123.7)),
    "channels-last": Recipe((5, 7), layout="nhwc", std=(0.5, 0.25, 2.0)),
    "gray": Recipe((3, 3), color="gray", mean=(0.3,), std=(0.4,)),
    "only-scale": Recipe((1, 11)),
}


def identity(shape: tuple[Any, ...], dtype: int = FLOAT) -> Graph:
    return graph_of([onnx.helper.make_node("Identity", ["x"], ["y"])], [("x", dtype, shape)], [("y", dtype, shape)])


def run(graph: Graph, x: Any) -> Any:
    return ort.InferenceSession(graph.serialized).run(["y"], {"x": x})[0]


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 10, 3), np.uint8))


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_folded_graph_computes_what_preprocess_does_to_the_bit(
    name: str, batch: int | str, photo: Image.Image, tmp_path: Path
) -> None:
    recipe = RECIPES[name]
    graph = identity((batch, *recipe.shape))
    folded = fold_preprocess(graph, recipe)
    photo.save(tmp_path / "p.png")
    [sample] = open_data(tmp_path / "p.png", folded.inputs, leftover(recipe))
    assert sample.feeds["x"].dtype == np.uint8
    assert sample.feeds["x"].shape == (1, *recipe.size, recipe.channels)
    assert np.array_equal(run(folded, sample.feeds["x"]), preprocess(photo, recipe)[None])
    assert graph.inputs[0].dtype == "float32", "the given graph stays as it was"
    onnx.checker.check_model(onnx.load_from_string(folded.serialized), full_check=True)


def test_a_half_precision_input_is_prepared_in_float32(photo: Image.Image) -> None:
    recipe = RECIPES["imagenet"]
    folded = fold_preprocess(identity((1, *recipe.shape), onnx.TensorProto.FLOAT16), recipe)
    pixels = preprocess(photo, leftover(recipe)).astype(np.uint8)[None]
    assert np.array_equal(run(folded, pixels), preprocess(photo, recipe)[None].astype(np.float16))


def test_a_folded_file_says_which_recipe_is_in_it(tmp_path: Path) -> None:
    recipe = RECIPES["gray"]
    save_graph(fold_preprocess(identity((1, *recipe.shape)), recipe), tmp_path / "f.onnx")
    loaded = load_graph(tmp_path / "f.onnx")
    assert '"mean": [0.3]' in loaded.model.metadata_props[FOLDED]
    assert (loaded.inputs[0].dtype, loaded.inputs[0].shape) == ("uint8", (1, 3, 3, 1))


def test_what_cannot_be_folded_is_refused_in_words() -> None:
    recipe = RECIPES["imagenet"]
    with pytest.raises(UsageError, match="the graph has 2 inputs"):
        fold_preprocess(gathered_gate().graph, recipe)
    with pytest.raises(UsageError, match="takes no floating-point images"):
        fold_preprocess(identity((1, 5, 7, 3), onnx.TensorProto.UINT8), recipe)
    with pytest.raises(InputError, match="the recipe does not fit the model: input 'x'"):
        fold_preprocess(identity((1, 3, 7, 5)), recipe)


def test_an_engine_on_pixels_is_built_run_and_held_against_its_original(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    weights = {"w": generator.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        onnx.helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        onnx.helper.make_node("Flatten", ["p"], ["y"], name="flatten"),
    ]
    save_graph(graph_of(nodes, [("x", FLOAT, [1, 3, 5, 7])], [("y", FLOAT, [1, 4])], weights), tmp_path / "m.onnx")
    (tmp_path / "r.toml").write_text(
        '[preprocess]\nsize = [5, 7]\ncolor = "bgr"\nmean = [0.4, 0.5, 0.6]\nstd = [0.2, 0.3, 0.4]\n'
    )
    (tmp_path / "data").mkdir()
    for number in range(3):
        picture = generator.integers(0, 256, (11, 9, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "data" / f"{number}.png")
    model, recipe, data = (str(tmp_path / name) for name in ("m.onnx", "r.toml", "data"))
    engine = str(tmp_path / "m.engine")
    built = ["build", model, "-o", engine, "--backend", "onnxruntime", "--fold-preprocess", "--recipe", recipe, "-q"]
    assert main(built) == 0
    assert (read_sidecar(engine).inputs[0].dtype, read_sidecar(engine).inputs[0].shape) == ("uint8", (1, 5, 7, 3))
    assert main(["parity", engine, "--against", model, "--data", data, "--recipe", recipe, "--no-latency"]) == 0
    assert main(["parity", engine, "--against", model, "--data", data, "--no-latency"]) == 0, "the engine knows it"
    assert main(["parity", engine, "--against", model, "--random", "--no-latency"]) == 0
    assert main(["run", engine, "--input", f"{data}/0.png", "--output", str(tmp_path / "y.npz")]) == 0
    x = preprocess(Image.open(f"{data}/0.png"), Recipe((5, 7), color="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    with np.load(tmp_path / "y.npz") as found:
        np.testing.assert_allclose(found["y"], run(load_graph(model), x[None]), rtol=1e-4)
    assert main([*built, "--int8", "--data", data]) == 0
    assert main(["parity", engine, "--against", model, "--data", data, "--recipe", recipe, "--no-latency"]) == 0


def test_a_folded_graph_is_calibrated_by_the_rest_of_its_recipe(tmp_path: Path) -> None:
    """Its resize is not the default one, and decides what is seen."""
    recipe = Recipe((5, 7), resize="stretch", mean=(0.5, 0.25, 0.125))
    save_graph(fold_preprocess(identity((1, *recipe.shape)), recipe), tmp_path / "m.onnx")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 10, 3), np.uint8))
    image.save(tmp_path / "p.png")
    calibrate_file(tmp_path / "m.onnx", tmp_path / "p.png", tmp_path / "r.json")
    found, expected = load_ranges(tmp_path / "r.json"), preprocess(image, recipe)
    assert (found.tensors["y"].min, found.tensors["y"].max) == pytest.approx((expected.min(), expected.max()), rel=1e-6)
    with pytest.raises(InputError, match="not the one that is folded"):
        calibrate_file(tmp_path / "m.onnx", tmp_path / "p.png", tmp_path / "r.json", recipe=Recipe((5, 7)))


def test_ranges_of_a_model_hold_for_its_folded_form_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"w": np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)}
    kinds = {"Conv": ["x", "w"], "Relu": ["Conv"], "GlobalAveragePool": ["Relu"], "Neg": ["GlobalAveragePool"]}
    nodes = [onnx.helper.make_node(kind, fed, ["y" if kind == "Neg" else kind]) for kind, fed in kinds.items()]
    save_graph(
        graph_of(nodes, [("x", FLOAT, (1, 3, 5, 7))], [("y", FLOAT, (1, 8, 1, 1))], weights), tmp_path / "m.onnx"
    )
    (tmp_path / "data").mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (13, 10, 3), np.uint8)).save(tmp_path / "data" / "p.png")
    for name, mean in (("r", 0.5), ("other", 0.25)):
        (tmp_path / f"{name}.toml").write_text(f"[preprocess]\nsize = [5, 7]\nmean = [{mean}, 0.5, 0.5]\n")
    common = [str(tmp_path / "m.onnx"), "-q", "--recipe"]
    ranges = str(tmp_path / "r.json")
    data = ["--data", str(tmp_path / "data")]
    assert main(["calibrate", *common, str(tmp_path / "r.toml"), *data, "-o", ranges]) == 0
    asked = ["--int8", "--fold-preprocess", "--backend", "onnxruntime", "-o", str(tmp_path / "m.engine")]
    assert main(["build", *common, str(tmp_path / "r.toml"), *asked, "--ranges", ranges]) == 0
    scales = [scales_of(tmp_path / "m.engine")]
    assert main(["build", *common, str(tmp_path / "r.toml"), *asked, *data]) == 0
    assert [scales_of(tmp_path / "m.engine")] == scales
    assert main(["build", *common, str(tmp_path / "other.toml"), *asked, "--ranges", ranges]) == 5
    assert main(["build", *common, str(tmp_path / "other.toml"), *asked[:1], *asked[2:], "--ranges", ranges]) == 5
    assert capsys.readouterr().err.count("the ranges are stale: another recipe was followed (mean") == 2


def scales_of(engine: Path) -> list[float]:
    """Of an INT8 engine's inputs to its quantisers."""
    stored = onnx.load_from_string(read_engine(engine).plan).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in stored.initializer}
    return [float(values[node.input[1]]) for node in stored.node if node.op_type == "QuantizeLinear"]


def test_there_is_nothing_to_fold_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_graph(identity((1, 3, 5, 7)), tmp_path / "m.onnx")
    assert main(["build", str(tmp_path / "m.onnx"), "--fold-preprocess"]) == 2
    assert "give it with --recipe" in capsys.readouterr().err
