from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from edgeattn.backends import open_session
from edgeattn.build import build_engine
from edgeattn.camera.frame import Frame
from edgeattn.camera.outlets import Result
from edgeattn.camera.results import Boxes, Classes, Mask, Saliency
from edgeattn.camera.sinks.overlay import OPACITY, Overlay, attention_of, colour_of
from edgeattn.camera.timing import Meter
from edgeattn.engine import read_sidecar
from edgeattn.errors import InputError, UsageError
from edgeattn.graph import save_graph
from edgeattn.images import Recipe
from edgeattn.maps import Watch, watched
from tests.cameras import gray
from tests.graphs import FLOAT, graph_of

SIZE = (256, 192)
RECIPE = Recipe((12, 16))
SHAPE = [1, 3, 12, 16]


def drawn(value: Any, **settings: Any) -> NDArray[Any]:
    image = gray(100, SIZE[::-1])
    before = image.copy()
    picture = Overlay(RECIPE, **settings)(Result(Frame(image, 0, 0.0, 0.0, "cam:"), {}, value, {"age": 0.0416}))
    assert np.array_equal(image, before)
    return np.asarray(picture)


def test_without_a_value_the_frame_is_shown_as_it_is() -> None:
    assert np.array_equal(drawn(None), gray(100, SIZE[::-1]))


def test_a_mask_is_blended_where_it_lies() -> None:
    plane = np.zeros((12, 16), np.int16)
    plane[:6, 8:] = 3
    picture = drawn(Mask(plane, SIZE, RECIPE)).astype(float)
    for place, number in (((4, 250), 3), ((4, 4), 0)):
        expected = (1 - OPACITY) * 100 + OPACITY * np.array(colour_of(number))
        assert np.abs(picture[place] - expected).max() <= 1
    assert (picture[:96, 128:] == picture[4, 250]).all()
    assert (picture[:96, :128] == picture[4, 4]).all()


def test_what_a_crop_left_out_is_dark() -> None:
    picture = drawn(Mask(np.ones((16, 16), np.int16), SIZE, Recipe((16, 16), "crop")))
    assert (picture[2, :32] == 50).all()
    assert (picture[2, 32:224] != 50).any(1).all()
    assert (picture[2, 224:] == 50).all()


def test_boxes_have_their_edges_where_they_are() -> None:
    picture = drawn(Boxes(np.array([[10, 20, 50, 40, 0.9, 2]], np.float32), SIZE, ("a", "b", "c")))
    edge = np.array(colour_of(2))
    for y, x in ((20, 49), (39, 30), (30, 10), (30, 49)):
        assert (picture[y, x] == edge).all()
    assert (picture[30, 30] == 100).all()
    assert (picture[30, 9] == 100).all()
    assert (picture[44, 30] == 100).all()


def test_a_box_without_area_or_name_is_drawn_too() -> None:
    drawn(Boxes(np.array([[255, 191, 256, 192, 0.9, 7000], [0, 0, 0.2, 0.2, 0.5, 1]], np.float32), SIZE))


def test_heat_grows_with_the_map() -> None:
    plane = np.repeat(np.linspace(0, 1, 16, dtype=np.float32)[None], 12, 0)
    picture = drawn(Saliency(plane, SIZE, RECIPE)).astype(float)
    change = np.abs(picture - 100).sum(2)[24]
    assert change[0] < 5
    assert change[-1] > 100
    # Viridis: yellow where it is hottest.
    assert picture[24, -1, 2] < picture[24, -1, 0]


def test_classes_and_numbers_are_written() -> None:
    meter = Meter([])
    plain, named = drawn(None), drawn(Classes(((4, 0.97),), ("a", "b", "c", "d", "emu")))
    assert (plain[:160] == named[:160]).all()
    assert (plain[160:] != named[160:]).any()
    assert (drawn(None, stats=meter.snapshot)[:21] != 100).any()


@pytest.mark.parametrize("value", [Mask(np.eye(12, 16, dtype=np.int16), SIZE, RECIPE), None])
def test_a_large_frame_is_drawn_small(value: Any) -> None:
    assert drawn(value, largest=32).shape == (24, 32, 3)
    assert drawn(value, largest=640).shape == (192, 256, 3)


def test_a_tiny_frame_is_drawn_large() -> None:
    frame = Frame(np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3), 0, 0.0, 0.0, "cam:")
    picture = np.asarray(Overlay(RECIPE)(Result(frame, {}, None, {"age": 0.0})))
    assert np.array_equal(picture, frame.image.repeat(32, 0).repeat(32, 1))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of a spatial gate with its map as an output; beside it `plain.engine`, without."""
    folder = tmp_path_factory.mktemp("overlay")
    weights = np.random.default_rng(0).normal(size=(1, 2, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("ReduceMax", ["x", "axes"], ["max"]),
        helper.make_node("Concat", ["mean", "max"], ["planes"], axis=1),
        helper.make_node("Conv", ["planes", "w"], ["scores"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["scores"], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]
    graph = graph_of(nodes, [("x", FLOAT, SHAPE)], [("y", FLOAT, SHAPE)], {"axes": np.array([1]), "w": weights})
    save_graph(watched(graph)[0], folder / "maps.onnx")
    build_engine(folder / "maps.onnx", folder / "maps.engine", backend="onnxruntime")
    build_engine(graph, folder / "plain.engine", backend="onnxruntime", check=False)
    return folder / "maps.engine"


def test_the_attention_of_an_engine_with_maps_is_laid_over_the_frame(engine: Path) -> None:
    watch = attention_of(read_sidecar(engine).graph)
    assert (watch.op, watch.kind) == ("SpatialGate", "weights")
    with open_session(engine) as session:
        outputs = session.run({"x": np.random.default_rng(1).random(SHAPE, np.float32)})
    assert outputs["y"].shape == tuple(SHAPE)
    frame = Frame(gray(100, SIZE[::-1]), 0, 0.0, 0.0, "cam:")
    picture = np.asarray(Overlay(RECIPE, watch=watch)(Result(frame, outputs, None, {"age": 0.0}))).astype(float)
    # Where the gate is most open, the picture is changed most.
    changed = np.abs(picture - 100).sum(2).reshape(12, 16, 16, 16).mean((1, 3))
    gate = outputs[watch.output].squeeze()
    assert changed[np.unravel_index(gate.argmax(), gate.shape)] >= np.quantile(changed, 0.97)
    assert changed[np.unravel_index(gate.argmin(), gate.shape)] <= np.quantile(changed, 0.1)


def test_an_engine_without_maps_says_how_to_get_them(engine: Path) -> None:
    with pytest.raises(UsageError, match=r"edgeattn attention MODEL\.onnx --expose"):
        attention_of(read_sidecar(engine.with_name("plain.engine")).graph)
    about = read_sidecar(engine).graph
    name = attention_of(about).name
    assert attention_of(about, name).name == name
    with pytest.raises(UsageError, match="no attention 'nowhere' has a map"):
        attention_of(about, "nowhere")
    with pytest.raises(InputError, match="damaged"):
        attention_of({"edgeattn.maps": json.dumps([{"what": 1}])})


def test_maps_without_places_are_not_offered() -> None:
    watches = [
        Watch("ChannelGate", "a", "weights"),
        Watch("CBAM", "b", "channel"),
        Watch("SpatialGate", "c", "weights"),
    ]
    about = {"edgeattn.maps": json.dumps([watch.__dict__ for watch in watches])}
    assert attention_of(about).name == "c"
