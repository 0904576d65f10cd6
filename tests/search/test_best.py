from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import compose

from edgeattn import search
from edgeattn.backends import backend_named, open_session
from edgeattn.backends.base import BuildConfig, Session, silent
from edgeattn.build import build_engine
from edgeattn.engine import Engine, read_sidecar
from edgeattn.errors import BuildError, InferenceError, UsageError
from edgeattn.graph import Graph, save_graph
from edgeattn.lowering import BODY, FLASH
from edgeattn.reports.latency import LatencyReport, latency_report
from edgeattn.search import build_best, candidates, fastest, timing
from edgeattn.tensors import random_feeds
from tests.clock import CPU_BACKENDS, few_rounds, slowed
from tests.graphs import self_attention


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    few_rounds(monkeypatch)
    save_graph(self_attention().graph, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def two_attentions() -> Graph:
    """Attention over 5 tokens and, apart from it, over 9."""
    first, second = (
        compose.add_prefix(self_attention(batch=1, tokens=tokens).graph.proto(), prefix)
        for tokens, prefix in ((5, "a_"), (9, "b_"))
    )
    return Graph(ir.from_proto(compose.merge_models(first, second, io_map=[])))


@pytest.mark.parametrize("slow", CPU_BACKENDS)
def test_the_backend_that_is_faster_here_is_published(model: Path, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, lambda engine: 0.02 * (engine.sidecar.backend == slow))
    output = model.with_suffix(".engine")
    report = build_best(model, output)
    (other,) = set(CPU_BACKENDS) - {slow}
    sidecar = read_sidecar(output)
    assert sidecar.backend == report.sidecar.backend == other
    assert sidecar.verified
    assert sidecar.rebuild.startswith(f"edgeattn build {model} -o {output} --best --min-shapes")
    rows = {row["candidate"]: row for row in sidecar.search}
    assert list(rows) == [
        *("openvino", "openvino, as exported"),
        *("onnxruntime", f"onnxruntime, {FLASH} for SoftmaxAttention", "onnxruntime, as exported"),
    ]
    assert rows[slow]["ms"] == 21
    assert "times the chosen" in rows[slow]["verdict"]
    assert [row["candidate"] for row in rows.values() if row["verdict"].startswith("chosen: the next")] == [
        name
        for name in rows
        if name.startswith(other) and rows[name]["forms"] == report.plan.config.forms
        if name.endswith("as exported") != report.plan.config.fuse
    ]
    for row in rows.values():
        assert row["candidate"] in str(report)
    with open_session(output) as session:
        feeds = random_feeds(session.inputs, {"x": (3, 7, 8)}, seed=1)
        np.testing.assert_allclose(session.run(feeds)["y"], self_attention().compute(feeds)["y"], atol=1e-3)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.engine", "model.engine.json", "model.onnx"]


def test_forms_that_gain_alone_are_tried_together(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def per_softmax(engine: Engine) -> float:
        operators = [node.op_type for node in onnx.load_from_string(engine.plan).graph.node]
        return 0.02 * operators.count("Softmax")

    slowed(monkeypatch, per_softmax)
    report = build_best(two_attentions(), model.with_suffix(".engine"), backend="onnxruntime")
    assert report.plan.config.forms
    assert set(report.plan.config.forms.values()) == {FLASH}
    assert report.sidecar.rebuild.partition(" -o ")[2].split()[1:4] == ["--best", "--backend", "onnxruntime"]
    planned, *alone, exported, together = (row["candidate"] for row in report.sidecar.search)
    assert (planned, exported) == ("onnxruntime", "onnxruntime, as exported")
    assert len(set(alone)) == 2
    assert together == f"{alone[0]} and 1 more"


def test_what_is_short_is_tried_in_one_thread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, lambda engine: 0.0 if engine.sidecar.config["threads"] == 1 else 0.02)
    output = model.with_suffix(".engine")
    for limit, asked, tried in ((1e9, None, [None] * 3 + [1]), (1e9, 2, [None] * 3), (1.0, None, [None] * 3)):
        monkeypatch.setattr(search, "SHORT_MS", limit)
        report = build_best(model, output, BuildConfig(threads=asked), backend="onnxruntime")
        assert [row["threads"] for row in report.sidecar.search] == tried
        assert read_sidecar(output).config["threads"] == (1 if 1 in tried else asked)
        assert ("--threads" in report.sidecar.rebuild) == (asked is not None)
        assert [row["candidate"].endswith(", 1 thread") for row in report.sidecar.search] == [t == 1 for t in tried]


def test_equal_attentions_change_their_form_together() -> None:
    assert [way.forms for way in candidates(self_attention().graph, "openvino")] == [{}, {}]
    planned, other, exported = candidates(self_attention(tokens=2048).graph, "onnxruntime")
    assert not planned.forms
    assert list(other.forms.values()) == [BODY]
    assert [way.fuse for way in (planned, other, exported)] == [True, True, False]
    ways = candidates(two_attentions(), "onnxruntime")
    assert [list(way.forms.values()) for way in ways] == [[], [FLASH], [FLASH], []]
    assert len({name for way in ways for name in way.forms}) == 2


def test_a_graph_that_is_faster_as_it_was_exported_stays_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slowed(monkeypatch, lambda engine: 0.02 * engine.sidecar.config["fuse"])
    report = build_best(model, model.with_suffix(".engine"), backend="openvino")
    assert [row["candidate"] for row in report.sidecar.search] == ["openvino", "openvino, as exported"]
    assert not report.plan.config.fuse
    assert not report.plan.attention
    assert report.parity is not None
    assert report.parity.passed
    assert "--no-fuse" in build_engine(model, model.with_suffix(".e"), BuildConfig(fuse=False)).sidecar.rebuild
    with pytest.raises(UsageError, match="leave targets, forms and no fusing out"):
        build_best(model, model.with_suffix(".engine"), BuildConfig(fuse=False))


def test_whole_engines_are_timed_and_no_attention_alone() -> None:
    plain, _ = candidates(self_attention().graph, "tensorrt")
    assert plain.config(BuildConfig()).attention == "native"
    assert plain.config(BuildConfig(attention="plugin")).attention == "plugin"
    other, _ = candidates(self_attention(tokens="tokens").graph, "openvino")
    assert other.config(BuildConfig()).attention == "auto"


def test_a_candidate_that_fails_is_named_and_passed_over(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = backend_named("openvino").build
    wrong = self_attention(seed=1).graph
    monkeypatch.setattr(backend_named("openvino"), "build", lambda graph, config: honest(wrong, config))
    report = build_best(model, model.with_suffix(".engine"))
    first, exported, *others = report.sidecar.search
    assert report.sidecar.backend == "onnxruntime"
    assert exported["verdict"].startswith("failed")
    assert (first["candidate"], first["ms"]) == ("openvino", None)
    assert first["verdict"].startswith("failed: the engine does not say what the graph says")
    assert all(row["ms"] > 0 for row in others)


def test_where_every_candidate_fails_the_old_engine_stays(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = model.with_suffix(".engine")
    build_best(model, output, backend="onnxruntime")
    before = {path: path.read_bytes() for path in model.parent.iterdir()}

    def broken(graph: Graph, config: BuildConfig) -> Engine:
        raise BuildError(f"no {config.precision} today")

    for backend in CPU_BACKENDS:
        monkeypatch.setattr(backend_named(backend), "build", broken)
    with pytest.raises(BuildError, match="no float32 today"):
        build_best(model, output)
    assert {path: path.read_bytes() for path in model.parent.iterdir()} == before


def test_an_engine_that_does_not_run_is_passed_over_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(engine: Engine, profiling: bool = False) -> Session:
        raise InferenceError("out of memory")

    monkeypatch.setattr(backend_named("openvino"), "load", broken)
    report = build_best(model, model.with_suffix(".engine"), check=False)
    assert report.sidecar.search[0]["verdict"] == "failed: out of memory"
    assert report.sidecar.backend == "onnxruntime"


def test_lengths_that_vary_are_searched_at_the_optimal_ones(model: Path) -> None:
    case = self_attention(tokens="n")
    config = BuildConfig(min_shapes={"x": (1, 1, 8)}, opt_shapes={"x": (1, 40, 8)}, max_shapes={"x": (3, 90, 8)})
    report = build_best(case.graph, model.with_suffix(".engine"), config, "onnxruntime")
    assert [list(row["forms"].values()) for row in report.sidecar.search] == [[], [FLASH], []]
    assert all(row["ms"] for row in report.sidecar.search)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BuildConfig(precision="float16"), "leave float16 out"),
        (BuildConfig(targets=("sm_87",)), "leave targets, forms and"),
    ],
)
def test_what_is_not_searched_is_refused(model: Path, config: BuildConfig, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_best(model, model.with_suffix(".engine"), config)


def test_shapes_that_the_graph_does_not_admit_are_said_at_once(model: Path) -> None:
    with pytest.raises(UsageError, match="does not admit"):
        build_best(model, model.with_suffix(".engine"), BuildConfig(opt_shapes={"x": (1, 9, 9)}))


def rounds(noise: float) -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(*[st.floats(1 - noise, 1 + noise)] * 11)


@given(rounds(0.004), rounds(0.004))
def test_the_first_stays_within_the_noise(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    assert fastest({"first": first, "same": second}) == "first"


@given(rounds(0.04), rounds(0.04))
def test_what_is_faster_beyond_the_noise_is_taken(slow: tuple[float, ...], fast: tuple[float, ...]) -> None:
    times = {"slow": tuple(1.1 * value for value in slow), "fast": fast, "slower": tuple(1.3 * value for value in slow)}
    assert fastest(times) == "fast"


def test_a_gain_in_few_rounds_is_noise() -> None:
    steady = (1.0,) * 15
    assert fastest({"first": steady, "lucky": (0.5,) * 11 + (1.2,) * 4}) == "first"
    assert fastest({"first": steady, "faster": (0.9,) * 12 + (1.2,) * 3}) == "faster"
    assert fastest({"first": steady, "barely": (0.995,) * 15}) == "first"


@pytest.mark.parametrize(("share", "expected", "longer"), [(0.0, "first", False), (0.68, "often", True)])
def test_what_is_open_is_measured_on(
    share: float, expected: str, longer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = itertools.count(1)

    def measured(calls: Mapping[str, Callable[[], object]], **words: float) -> dict[str, LatencyReport]:
        number = next(count)
        faster = int(number * share) > int((number - 1) * share)  # in that share of the rounds
        spent = {"first": 1.0, "often": 0.9 if faster else 1.1, "wrong": 0.5}
        return {name: latency_report([int(1e6 * spent[name])], 1) for name in calls}

    monkeypatch.setattr(timing, "measure", measured)
    times = timing.timed({"wrong": int, "first": int, "often": int}, silent, ["first", "often"])
    assert fastest({name: times[name] for name in ("first", "often")}) == expected
    assert (len(times["first"]) > timing.ROUNDS[0]) == longer
