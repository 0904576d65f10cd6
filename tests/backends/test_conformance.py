"""What every backend owes: run over `BACKENDS`, skipping with the backend's own words where it cannot run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeattn.backends import BACKENDS, backend_named, choose_backend, open_session
from edgeattn.backends.amx import ISA_VARIABLE, ISA_WITHOUT_AMX
from edgeattn.backends.base import Backend, BuildConfig, Session
from edgeattn.engine import Engine, Precision, write_engine
from edgeattn.errors import BuildError, EdgeAttnError, EngineMismatchError, InputError, UnsupportedError, UsageError
from edgeattn.graph import Graph, save_graph
from edgeattn.precision.fp16 import lower
from edgeattn.tensors import TensorSpec, random_feeds, resolve_profile
from edgeattn.tolerance import tolerance_for
from tests.graphs import FLOAT, INT64, GraphCase, gathered_gate, graph_of, self_attention


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    module = backend_named(request.param)
    if reasons := module.missing():
        pytest.skip("; ".join(reasons))
    return module


def load(backend: Backend, graph: Graph, **settings: object) -> Session:
    config = BuildConfig(precision="float32", profile=resolve_profile(graph.inputs), **settings)  # type: ignore[arg-type]
    return backend.load(backend.build(graph, config))


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
@pytest.mark.parametrize("case", [self_attention(), gathered_gate()], ids=["attention", "gate"])
def test_an_engine_computes_its_graph_at_every_batch(backend: Backend, case: GraphCase, batch: int) -> None:
    shapes = {spec.name: (batch, *spec.shape[1:]) for spec in case.graph.inputs}  # type: ignore[index]
    feeds = random_feeds(case.graph.inputs, shapes, seed=batch)  # type: ignore[arg-type]
    with load(backend, case.graph) as session:
        found = session.run(feeds)
    expected = case.compute(feeds)
    assert list(found) == [spec.name for spec in session.outputs]
    for name, array in found.items():
        assert array.dtype == np.float32
        assert array.shape == expected[name].shape
        off = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert off <= tolerance_for("float32").floor


def test_feeds_are_refused_with_name_expected_and_got(backend: Backend) -> None:
    good = {"x": np.zeros((2, 6), np.float32), "ids": np.zeros(2, np.int64)}
    with load(backend, gathered_gate().graph) as session:
        for feeds, said in [
            ({"x": good["x"]}, "missing input 'ids'; got x"),
            ({**good, "z": good["x"]}, "unknown input 'z'; expected x, ids"),
            ({**good, "x": np.zeros((2, 6))}, "input 'x': expected float32, got float64"),
            ({**good, "x": np.zeros((9, 6), np.float32)}, r"input 'x': expected shape 1x6 .. 1x6 .. 8x6, got 9x6"),
        ]:
            with pytest.raises(InputError, match=said):
                session.run(feeds)
        assert set(session.run(good)) == {"y", "m"}


def test_results_stay_when_the_engine_runs_again(backend: Backend) -> None:
    case = self_attention()
    first, second = (random_feeds(case.graph.inputs, {"x": (2, 7, 8)}, seed) for seed in (0, 1))
    with load(backend, case.graph) as session:
        kept = session.run(first)["y"]
        copy = kept.copy()
        session.run(second)
    np.testing.assert_array_equal(kept, copy)


def test_an_input_that_is_not_contiguous_runs(backend: Backend) -> None:
    case = self_attention()
    x = np.random.default_rng(0).standard_normal((3, 8, 7)).astype(np.float32).transpose(0, 2, 1)
    with load(backend, case.graph) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], case.compute({"x": x})["y"], rtol=1e-4, atol=1e-4)


def test_the_sidecar_says_what_was_built(backend: Backend) -> None:
    case = self_attention()
    engine = backend.build(case.graph, BuildConfig(precision="float32", profile=resolve_profile(case.graph.inputs)))
    assert engine.sidecar.inputs == case.graph.inputs
    assert engine.sidecar.outputs == case.graph.outputs
    assert engine.sidecar.precision.asked == "float32"
    assert set(engine.sidecar.precision.compute) == {"float32"}
    assert engine.sidecar.precision.notes == ()


def test_a_graph_that_lies_about_its_shapes_is_a_build_error(backend: Backend) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = graph_of([node], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 5])], {"w": np.zeros((4, 5), np.float32)})
    with pytest.raises(BuildError):
        load(backend, graph)


def test_a_plan_of_garbage_is_refused(backend: Backend) -> None:
    case = self_attention()
    engine = backend.build(case.graph, BuildConfig(precision="float32", profile=resolve_profile(case.graph.inputs)))
    with pytest.raises(EdgeAttnError):
        backend.load(dataclasses.replace(engine, plan=b"garbage" * 100))


PLANS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda plan: b"",
    "half": lambda plan: plan[: len(plan) // 2],
    "longer": lambda plan: plan + b"x" * 100,
    "not-utf8": lambda plan: plan.replace(b"x", b"\xbd"),
}
SIDECARS: dict[str, dict[str, Any]] = {
    "no-config": {"config": {}},
    "config-of-nonsense": {"config": {"inference_precision": ["f99"]}},
    "another-input": {"inputs": (TensorSpec("z", "float32", ("batch", 7, 8)),)},
    "another-output": {"outputs": (TensorSpec("z", "float32", None), TensorSpec("y", "float32", None))},
    "unknown-precision": {"precision": Precision("float99")},
}


@pytest.mark.parametrize("name", [*PLANS, *SIDECARS])
def test_no_foreign_error_leaks_from_a_damaged_engine(backend: Backend, name: str) -> None:
    graph = self_attention().graph
    engine = backend.build(graph, BuildConfig(precision="float32", profile=resolve_profile(graph.inputs)))
    plan = PLANS.get(name, bytes)(engine.plan)
    damaged = Engine(plan, dataclasses.replace(engine.sidecar, **SIDECARS.get(name, {})))
    with contextlib.suppress(EdgeAttnError), backend.load(damaged) as session:
        session.infer({"x": np.zeros((1, 7, 8), np.float32)})


@pytest.mark.parametrize(
    "feeds", [{}, {"x": np.zeros((1, 9, 9), np.float32)}, {"x": np.zeros(3)}, {"x": None}, {"z": 1}]
)
def test_no_foreign_error_leaks_from_feeds_that_nobody_checked(backend: Backend, feeds: Any) -> None:
    with load(backend, self_attention().graph) as session, contextlib.suppress(EdgeAttnError):
        session.infer(feeds)


GRAPHS: dict[str, tuple[list[Any], int, int]] = {
    "no-kernel": ([helper.make_node("Det", ["x"], ["y"])], TensorProto.FLOAT16, TensorProto.FLOAT16),
    "wrong-attribute": ([helper.make_node("Softmax", ["x"], ["y"], axis=9)], FLOAT, FLOAT),
    "wrong-type": ([helper.make_node("Sin", ["x"], ["y"])], INT64, INT64),
    "missing-input": ([helper.make_node("Add", ["x"], ["y"])], FLOAT, FLOAT),
    "unknown": ([helper.make_node("NoSuchThing", ["x"], ["y"], domain="com.microsoft")], FLOAT, FLOAT),
}


@pytest.mark.parametrize("builder", BACKENDS)
@pytest.mark.parametrize("name", GRAPHS)
def test_no_foreign_error_leaks_from_a_graph_that_cannot_be_built(builder: str, name: str) -> None:
    backend = backend_named(builder)
    if reasons := backend.missing(running=False):
        pytest.skip("; ".join(reasons))
    nodes, takes, gives = GRAPHS[name]
    graph = graph_of(nodes, [("x", takes, [2, 3])], [("y", gives, [2, 3])])
    with contextlib.suppress(EdgeAttnError):
        backend.unsupported(graph)
        backend.build(graph, BuildConfig(precision="float32", profile=resolve_profile(graph.inputs)))


def test_an_openvino_engine_of_another_release_says_how_to_rebuild(tmp_path: Path) -> None:
    backend = backend_named("openvino")
    if backend.missing():
        pytest.skip("; ".join(backend.missing()))
    case = self_attention()
    engine = backend.build(case.graph, BuildConfig(precision="float32", profile=resolve_profile(case.graph.inputs)))
    foreign = dataclasses.replace(engine.sidecar, backend_version="2019.1", rebuild="edgeattn build m.onnx")
    write_engine(dataclasses.replace(engine, sidecar=foreign), tmp_path / "m.engine")
    with pytest.raises(EngineMismatchError, match=r"built for OpenVINO 2019\.1, this is .*: edgeattn build m\.onnx"):
        open_session(tmp_path / "m.engine")


def test_auto_takes_the_first_backend_that_can_run_and_says_why_not_the_others() -> None:
    name, why = choose_backend()
    earlier = list(BACKENDS)[: list(BACKENDS).index(name)]
    assert not backend_named(name).missing()
    assert all(backend_named(other).missing() and f"not {other}: " in why for other in earlier)


def test_an_unknown_backend_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown backend 'tpu'"):
        choose_backend("tpu")


def test_a_backend_asked_for_by_name_that_is_missing_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_named("openvino"), "missing", lambda running=True: ["no wheel", "no luck"])
    with pytest.raises(UnsupportedError, match="no wheel; no luck"):
        choose_backend("openvino")


def test_bfloat16_after_another_precision_is_refused_where_amx_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = backend_named("openvino")
    if reasons := openvino.missing():
        pytest.skip("; ".join(reasons))
    # oneDNN reads its settings once, so what would protect bfloat16 comes too late: the process would die.
    monkeypatch.setenv(ISA_VARIABLE, ISA_WITHOUT_AMX)
    monkeypatch.setattr(openvino, "_told", [""])
    with pytest.raises(UnsupportedError, match="ONEDNN_MAX_CPU_ISA"):
        openvino.build(self_attention().graph, BuildConfig(precision="bfloat16"))


def test_openvino_engines_of_all_precisions_load_beside_each_other_in_a_new_process(tmp_path: Path) -> None:
    if reasons := backend_named("openvino").missing():
        pytest.skip("; ".join(reasons))

    def in_a_new_process(script: str, *words: str) -> None:  # oneDNN reads but once what it may not use
        environment = {name: value for name, value in os.environ.items() if name != ISA_VARIABLE}
        subprocess.run([sys.executable, "-c", script, *words], check=True, env=environment)

    save_graph(self_attention(batch=1).graph, tmp_path / "m.onnx")
    building = (
        "import sys; from edgeattn.backends.base import BuildConfig; from edgeattn.build import build_engine\n"
        "build_engine(*sys.argv[1:3], BuildConfig(precision=sys.argv[3]), 'openvino')"
    )
    engines = {precision: str(tmp_path / f"{precision}.engine") for precision in ("float32", "bfloat16")}
    for precision, engine in engines.items():
        in_a_new_process(building, str(tmp_path / "m.onnx"), engine, precision)
    loading = (
        "import sys; from edgeattn.backends import open_session; from edgeattn.tensors import random_feeds\n"
        "for path in sys.argv[1:]:\n"
        "    session = open_session(path)\n"
        "    session.run(random_feeds(session.inputs, {'x': (1, 7, 8)}, 0))"
    )
    in_a_new_process(loading, *engines.values(), engines["float32"])
    record = tmp_path / "bfloat16.engine.json"  # as it was written before it told the instructions
    described = json.loads(record.read_text())
    del described["config"]["max_cpu_isa"]
    record.write_text(json.dumps(described))
    in_a_new_process(loading, engines["bfloat16"])


def test_an_input_that_nothing_reads_is_taken_and_ignored(backend: Backend) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    graph = graph_of([node], [("x", FLOAT, [2]), ("unread", FLOAT, [3])], [("y", FLOAT, [2])])
    with load(backend, graph) as session:
        found = session.run({"x": np.array([-1, 2], np.float32), "unread": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(found["y"], [0, 2])


@pytest.mark.parametrize("kind", ["Identity", "Pad", "Transpose", "Cast", "Dropout"])
def test_inputs_keep_their_names_behind_nodes_that_do_nothing(backend: Backend, kind: str) -> None:
    """A runtime may leave such a node out and call the input after its result, `a`."""
    attributes = {"Transpose": {"perm": [0, 1]}, "Cast": {"to": FLOAT}}.get(kind, {})
    pads = {"pads": np.zeros(4, np.int64)} if kind == "Pad" else {}
    nodes = [
        helper.make_node(kind, ["x", *pads], ["a"], name="nothing", **attributes),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="product"),
    ]
    inputs = [("nobody", FLOAT, ["batch", 2]), ("x", FLOAT, ["batch", 2])]
    graph = graph_of(nodes, inputs, [("y", FLOAT, ["batch", 2])], {"w": np.eye(2, dtype=np.float32), **pads})
    feeds = {"nobody": np.zeros((3, 2), np.float32), "x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    with load(backend, graph) as session:
        np.testing.assert_array_equal(session.run(feeds)["y"], feeds["x"])


def test_openvino_does_not_lower_what_the_graph_keeps_in_float32() -> None:
    backend = backend_named("openvino")
    if backend.missing():
        pytest.skip("; ".join(backend.missing()))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Mul", ["a", "large"], ["b"], name="beyond"),
        helper.make_node("Mul", ["b", "small"], ["y"], name="back"),
    ]
    weights = {"w": np.eye(8, dtype=np.float32), "large": np.float32([1e6]), "small": np.float32([1e-6])}
    graph = lower(graph_of(nodes, [("x", FLOAT, [1, 8])], [("y", FLOAT, [1, 8])], weights), "float16").graph
    config = BuildConfig(precision="float16", profile=resolve_profile(graph.inputs))
    engine = backend.build(graph, config)
    x = np.arange(1, 9, dtype=np.float32)[None]
    with backend.load(engine) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], x, rtol=1e-2)
    assert any("float32" in note for note in engine.sidecar.precision.notes)
