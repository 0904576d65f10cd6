"""An attention alone: what is cut out computes what it did in its graph, and its fastest form is the one chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import compose

from edgeattn import alone
from edgeattn.alone import Measured, cut_out, fastest_forms, sized
from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.backends.trt.plugins import request_of, requests_in
from edgeattn.build import BuildPlan, plan_build
from edgeattn.engine import Engine, Precision, Sidecar
from edgeattn.errors import BuildError, UnsupportedError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import BODY, FLASH, PLUGIN, forms, tensorrt, to_backend
from edgeattn.ops.base import DOMAIN
from edgeattn.profile import timing
from edgeattn.tensors import random_feeds, resolve_profile
from tests.graphs import Array, self_attention
from tests.lowering.test_tensorrt import canonical
from tests.ops.test_conformance import CASES, assert_close, exported
from tests.plugins import test_layouts as laid
from tests.plugins.offers import offer

SPELLINGS = (
    "SoftmaxAttention-sagan", "SoftmaxAttention-vit", "SoftmaxAttention-multihead-padding",
    "SoftmaxAttention-masked-and-placed", "SoftmaxAttention-shared", "SoftmaxAttention-grouped-query",
    "SoftmaxAttention-swin", "ChannelGate-linears", "ChannelGate-context", "SpatialGate-plain", "CBAM-block",
    "SelectiveKernel-paper", "AttentionGate-same",
)  # fmt: skip
BY_ID = {f"{op.name}-{case.name}": case for op, case in CASES}
NS = 10**6  # nanoseconds a millisecond


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and shorter rounds, and nothing known from before."""
    monkeypatch.setattr(alone, "ROUNDS", 6)
    monkeypatch.setattr(alone, "ROUND_S", 0.0)
    monkeypatch.setattr(alone, "WARMUP_S", 0.0)
    monkeypatch.setattr(timing, "LONGEST_SPIN_S", 0.0)
    monkeypatch.setattr(alone, "_known", {})


# Cutting out


def whole(graph: Graph, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    """All values of a graph on random inputs."""
    feeds = random_feeds(graph.inputs, shapes, seed)
    return {**feeds, **run_as_written(graph, every=True)(feeds)}


def run_alone(part: Graph, values: Mapping[str, Array]) -> tuple[str, Array]:
    ((name, found),) = run_as_written(part)({spec.name: values[spec.name] for spec in part.inputs}).items()
    return name, found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_cut_out_computes_what_the_whole_computes_there(spelling: str, tmp_path: Path) -> None:
    case = BY_ID[spelling]
    graph, model = exported(case, "dynamo", "dynamic", tmp_path)
    shapes = {spec.name: (3, *spec.shape[1:]) if case.dynamic else spec.shape for spec in model.inputs}  # type: ignore[index]
    fused, report = fuse(graph)
    whole_sized = sized(fused, resolve_profile(graph.inputs, opt_shapes=shapes))  # type: ignore[arg-type]
    values, original = whole(fused, shapes), whole(graph, shapes)  # type: ignore[arg-type]
    for found in report.found:
        part = cut_out(whole_sized, found.name)
        assert all(spec.shape == values[spec.name].shape for spec in part.inputs)
        name, y = run_alone(part, values)
        assert_close(y, original.get(name, values[name]))


@pytest.mark.parametrize("reshaped", [False, True])
def test_a_map_attention_comes_with_its_scaled_sum(reshaped: bool) -> None:
    graph = laid.scaled(reshaped=reshaped)
    fused, report = fuse(graph)
    part = cut_out(sized(fused, resolve_profile(graph.inputs)), report.found[0].name)
    assert {spec.name for spec in part.inputs} == {"q", "k", "v", "x"}
    assert "Relu" not in part.op_counts()
    values = whole(graph, {spec.name: spec.shape for spec in graph.inputs})  # type: ignore[misc]
    q, k, v, x = (values[name].astype(np.float64) for name in "qkvx")
    scores = np.exp(q.transpose(0, 2, 1) @ k)
    y = v @ (scores / scores.sum(-1, keepdims=True)).transpose(0, 2, 1)
    name, found = run_alone(part, values)
    assert name == "sum"
    assert_close(found, np.float32(0.7) * y.reshape(x.shape) + x)


@pytest.mark.parametrize("graph", [laid.maps(), laid.heads(), laid.heads(seen=True), laid.scaled()])
def test_it_reaches_as_far_as_a_plugin_does(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, requests_in(graph, ["float32"]))
    fused, report = fuse(graph)
    part = cut_out(sized(fused, resolve_profile(graph.inputs)), report.found[0].name)
    lowered = to_backend(part, "tensorrt", {report.found[0].name: PLUGIN})
    assert set(lowered.op_counts()) <= {"Unsqueeze", "Squeeze", f"{DOMAIN}::SoftmaxAttention"}
    asked, there = (next(node for node in own.model.graph if node.domain == DOMAIN) for own in (part, fused))
    assert request_of(asked) == request_of(there)


def test_a_deep_graph_is_no_matter() -> None:
    from onnx import helper

    attention = self_attention(batch=1).graph.proto()
    attention.graph.input[0].name = "x0"
    nodes = [helper.make_node("Relu", [f"x{n}"], [f"x{n + 1}"], name=f"relu{n}") for n in range(3000)]
    for node in attention.graph.node:
        node.input[:] = ["x3000" if name == "x" else name for name in node.input]
    before = [*nodes, *attention.graph.node]
    del attention.graph.node[:]
    attention.graph.node.extend(before)
    graph = Graph(ir.from_proto(attention))
    fused, report = fuse(graph)
    part = cut_out(sized(fused, resolve_profile(graph.inputs)), report.found[0].name)
    assert "Relu" not in part.op_counts()


def test_what_is_not_there_or_of_no_known_size_is_refused() -> None:
    fused, report = fuse(self_attention().graph)
    with pytest.raises(UnsupportedError, match="no attention 'absent'"):
        cut_out(fused, "absent")
    with pytest.raises(UnsupportedError, match=r"the sizes of what .* reads do not follow from the shapes"):
        cut_out(fused, report.found[0].name)


# Choosing


def two_attentions(*tokens: int) -> Graph:
    """Attention over some tokens and, apart from it, over others."""
    first, second = (
        compose.add_prefix(self_attention(batch=1, tokens=count).graph.proto(), prefix)
        for count, prefix in zip(tokens, "ab", strict=True)
    )
    return Graph(ir.from_proto(compose.merge_models(first, second, io_map=[])))


def ways(fused: Graph) -> dict[str, tuple[str, ...]]:
    return {node.name or "": forms(node, "onnxruntime") for node in fused.model.graph if node.domain == DOMAIN}


def chosen(graph: Graph, config: BuildConfig | None = None) -> tuple[list[Measured], tuple[str, ...]]:
    """What comes of a graph's attentions in ONNX Runtime."""
    fused, _ = fuse(graph)
    config = config or BuildConfig(profile=resolve_profile(graph.inputs))
    found, notes = fastest_forms(fused, "onnxruntime", config, ways(fused))
    return list(found.values()), notes


def loading(monkeypatch: pytest.MonkeyPatch, change: Callable[[Session, bool], None]) -> list[Engine]:
    """Have ONNX Runtime's sessions changed as they are opened, by whether they run the flash kernel; all engines."""
    module, seen = backend_named("onnxruntime"), []
    load = module.load

    def changed(engine: Engine, profiling: bool = False) -> Session:
        seen.append(engine)
        session = load(engine, profiling)
        change(session, b"MultiHeadAttention" in engine.plan)
        return session

    monkeypatch.setattr(module, "load", changed)
    return seen


def clocked(flash_ms: float, body_ms: float) -> Callable[[Session, bool], None]:
    """Sessions that say what they took on their device."""

    def change(session: Session, flash: bool) -> None:
        session.details = {"timings": lambda: {"h2d": 9.0, "compute": flash_ms if flash else body_ms, "d2h": 9.0}}

    return change


@pytest.mark.usefixtures("quick")
def test_both_forms_run_for_real_at_the_optimal_shapes() -> None:
    graph = self_attention(tokens="n").graph
    config = BuildConfig(profile=resolve_profile(graph.inputs, opt_shapes={"x": (2, 33, 8)}))
    ((found,), (note,)) = chosen(graph, config)
    assert set(found.ms) == {BODY, FLASH}
    assert all(ms > 0 for ms in found.ms.values())
    assert found.failures == {}
    assert "ms natively" in note
    assert f"ms as {FLASH}, alone on " in note


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("flash_ms", "body_ms", "form"),
    [(0.1, 0.2, FLASH), (0.2, 0.1, BODY), (0.1, 0.1, BODY), (0.0995, 0.1, BODY), (0.098, 0.1, FLASH)],
)
def test_the_fastest_on_the_device_is_chosen_and_the_planned_one_wins_ties(
    flash_ms: float, body_ms: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading(monkeypatch, clocked(flash_ms, body_ms))
    ((found,), _) = chosen(self_attention(batch=1).graph)
    assert found.form == form
    assert found.ms == pytest.approx({BODY: body_ms, FLASH: flash_ms})


@pytest.mark.usefixtures("quick")
def test_without_a_device_clock_the_runs_are_timed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(session: Session, flash: bool) -> None:
        infer = session.infer
        if not flash:
            session.infer = lambda feeds: time.sleep(0.005) or infer(feeds)

    loading(monkeypatch, slow)
    ((found,), _) = chosen(self_attention(batch=1).graph)
    assert found.form == FLASH
    assert found.ms[BODY] >= 5 > found.ms[FLASH]


@pytest.mark.usefixtures("quick")
def test_a_form_that_fails_alone_loses_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: Session, flash: bool) -> None:
        if not flash:
            raise BuildError("no kernel fits")

    loading(monkeypatch, broken)
    ((found,), (note,)) = chosen(self_attention(batch=1).graph)
    assert found.form == FLASH
    assert found.failures == {BODY: "no kernel fits"}
    assert note.endswith("; natively it does not run alone: no kernel fits")


@pytest.mark.usefixtures("quick")
def test_where_nothing_runs_the_plan_stands_and_a_note_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(session: Session, flash: bool) -> None:
        raise ValueError("a fault\nof ours")

    loading(monkeypatch, broken)
    found, (note,) = chosen(self_attention(batch=1).graph)
    assert found == []
    assert "not timed alone, and run as planned: it does not run alone; natively: ValueError: a fault" in note
    monkeypatch.setattr(backend_named("onnxruntime"), "missing", lambda running=True: ["no ONNX Runtime"])
    found, (note,) = chosen(two_attentions(5, 9))
    assert found == []
    assert note.endswith("and 1 more: not timed alone, and run as planned: no ONNX Runtime")


@pytest.mark.usefixtures("quick")
def test_of_equal_attentions_one_is_timed_and_only_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = loading(monkeypatch, clocked(0.1, 0.2))
    found, notes = chosen(two_attentions(5, 9))
    assert len(found) == 2
    assert len(notes) == 2
    assert len(seen) == 4
    chosen(two_attentions(5, 9))
    assert len(seen) == 4
    found, (note,) = chosen(two_attentions(7, 7))
    assert [item.form for item in found] == [FLASH, FLASH]
    assert "and 1 more: 0.2 ms natively, 0.1 ms as" in note
    assert len(seen) == 6


# In a build for TensorRT


def engine_of(graph: Graph, config: BuildConfig) -> Engine:
    """What a TensorRT that only writes down would build."""
    sidecar = Sidecar("tensorrt", "10.3", graph.inputs, graph.outputs, config.profile, Precision(config.precision))
    return Engine(b"plugin" if any(node.domain == DOMAIN for node in graph.model.graph) else b"native", sidecar)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Callable[..., BuildPlan]:
    """Plans a build with a TensorRT whose plugins and own kernels take the milliseconds that are given."""
    module = backend_named("tensorrt")
    case = canonical(d_qk=8)
    offer(tmp_path, monkeypatch, requests_in(case.graph, ["float16"]))
    times: dict[bytes, float] = {}

    def load(engine: Engine, profiling: bool = False) -> Session:
        if engine.plan not in times:
            raise BuildError("no tactic")
        sidecar = engine.sidecar
        assert {spec.dtype for spec in sidecar.inputs} == {"float16"}
        assert sidecar.profile["q"].opt == (1, 4, 37, 8)
        details = {"timings": lambda: {"compute": times[engine.plan]}}
        return Session(sidecar.inputs, (), sidecar.profile, lambda feeds: {}, device="GPU (sm_87)", details=details)

    for name, value in (("missing", lambda running=True: []), ("unsupported", lambda graph: [])):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "build", engine_of)
    monkeypatch.setattr(module, "load", load)

    def plan(**ms: float) -> BuildPlan:
        times.clear()
        times.update({name.encode(): value for name, value in ms.items()})
        return plan_build(case.graph, BuildConfig(precision="float16"), "tensorrt")

    return plan


@pytest.mark.parametrize(
    ("ms", "form", "why"),
    [
        ({"plugin": 0.12, "native": 0.31}, PLUGIN, "0.12 ms as a plugin, 0.31 ms natively, alone on GPU (sm_87)"),
        ({"plugin": 0.31, "native": 0.12}, BODY, "0.31 ms as a plugin, 0.12 ms natively, alone on GPU (sm_87)"),
        ({"plugin": 0.2, "native": 0.2}, PLUGIN, "0.2 ms as a plugin, 0.2 ms natively, alone on GPU (sm_87)"),
        (
            {"native": 0.2},
            BODY,
            "0.2 ms natively, alone on GPU (sm_87); as a plugin it does not run alone: no tactic",
        ),
    ],
    ids=["plugin", "native", "tie", "no plugin"],
)
def test_a_build_takes_the_faster_of_native_and_plugin_and_records_both(
    planned: Callable[..., BuildPlan], ms: dict[str, float], form: str, why: str
) -> None:
    plan = planned(**ms)
    (item,) = plan.attention
    assert (item.plans["tensorrt"].runs, item.plans["tensorrt"].why) == (form, why)
    assert plan.config.forms == {item.found.name: form}
    assert plan.notes == (f"{item.found.name}: {why}",)
    nodes = [node.op_type for node in plan.typed.model.graph if node.domain == DOMAIN]
    assert nodes == (["SoftmaxAttention"] if form == PLUGIN else [])


def test_a_form_that_was_chosen_before_is_not_timed_again(planned: Callable[..., BuildPlan]) -> None:
    before = planned(plugin=0.3, native=0.1).config
    again = plan_build(canonical(d_qk=8).graph, before, "tensorrt")
    assert again.config.forms == before.forms
    assert again.notes == ()
    assert tensorrt.choose(fuse(canonical(d_qk=8).graph)[0], "auto", "float16")[0] != before.forms
