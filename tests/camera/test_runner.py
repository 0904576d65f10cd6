from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import edgeattn.camera
from edgeattn.backends import onnxruntime
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.build import build_engine
from edgeattn.camera.runner import open_runner
from edgeattn.errors import InputError, UsageError
from edgeattn.folding import fold_preprocess
from edgeattn.graph import Graph
from edgeattn.images import Recipe
from edgeattn.tensors import ShapeRange
from tests.cameras import SIDE, gray, level_of, mean_session
from tests.graphs import FLOAT, gathered_gate, graph_of


def session_of(graph: Graph, **shapes: tuple[int, ...]) -> Session:
    profile = {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()}
    return onnxruntime.load(onnxruntime.build(graph, BuildConfig(profile=profile)))


def test_a_recipe_in_the_engine_and_one_beside_it_say_the_same(tmp_path: Path) -> None:
    shape = ["batch", 3, SIDE, SIDE]
    graph = graph_of([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, shape)], [("y", FLOAT, shape)])
    recipe = Recipe((SIDE, SIDE), resize="letterbox", color="bgr", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    build_engine(graph, tmp_path / "plain.engine", backend="onnxruntime")
    build_engine(fold_preprocess(graph, recipe), tmp_path / "folded.engine", backend="onnxruntime")
    frames = list(np.random.default_rng(0).integers(0, 256, (3, 11, 17, 3), np.uint8))
    plain = list(edgeattn.camera.open(frames, tmp_path / "plain.engine", recipe=recipe))
    folded = list(edgeattn.camera.open(frames, tmp_path / "folded.engine"))
    for one, other in zip(plain, folded, strict=True):
        np.testing.assert_array_equal(one.outputs["y"], other.outputs["y"])
    with pytest.raises(InputError, match="not the one that is folded"):
        open_runner(tmp_path / "folded.engine", recipe=Recipe((SIDE, SIDE)))


def test_every_size_of_batch_that_may_come_is_run_before_the_first_frame() -> None:
    sizes: list[int] = []
    with mean_session(2, 4) as session:
        infer = session.infer
        session.infer = lambda feeds: (sizes.append(len(feeds["x"])), infer(feeds))[1]
        runner = open_runner(session, streams=3)
        assert (runner.least, runner.most, sizes) == (2, 3, [2, 3])
        assert (open_runner(session, streams=9).most, open_runner(session).most) == (4, 2)


def test_an_output_without_a_batch_goes_to_each_frame_whole() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
    ]
    shape = (3, 3, SIDE, SIDE)
    outputs = [("y", FLOAT, (3, 3)), ("m", FLOAT, ())]
    graph = graph_of(nodes, [("x", FLOAT, shape)], outputs, {"axes": np.array([2, 3])})
    with session_of(graph, x=shape) as session:
        runner = open_runner(session, streams=3)
        rows = runner.run([runner.prepare(gray(level)) for level in (10, 20)])
    assert [level_of(row) for row in rows] == [10, 20]
    assert [row["m"].shape for row in rows] == [(), ()]


def test_what_no_frame_can_feed_is_refused() -> None:
    with session_of(gathered_gate().graph, x=(1, 6), ids=(1,)) as two, pytest.raises(UsageError, match="2 inputs"):
        open_runner(two)
    scalar = graph_of([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, ())], [("y", FLOAT, ())])
    with session_of(scalar, x=()) as session, pytest.raises(UsageError, match="no batch axis"):
        open_runner(session)
    with mean_session() as session:
        with pytest.raises(InputError, match="expected shape"):
            open_runner(session, recipe=Recipe((SIDE, SIDE + 1)))
        with pytest.raises(UsageError, match="segmentation is read from"):
            open_runner(session, task="segmentation")
