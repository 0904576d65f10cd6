from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.engine import write_engine
from edgeattn.errors import InferenceError, InputError, UsageError
from edgeattn.files import sha256_file
from edgeattn.graph import save_graph
from edgeattn.parity import check, check_parity, compare_files, reference_from_graph
from edgeattn.parity.reference import Reference
from edgeattn.tensors import resolve_profile
from tests.graphs import FLOAT, Array, graph_of, self_attention
from tests.parity.samples import batched, opened, replaced


def test_an_overflow_in_float16_fails() -> None:
    square = helper.make_node("Mul", ["x", "x"], ["xx"])
    half = helper.make_node("Cast", ["xx"], ["y"], to=TensorProto.FLOAT16)
    x = ("x", FLOAT, ["n", 2])
    reference = reference_from_graph(graph_of([square], [x], [("xx", FLOAT, ["n", 2])]))
    feeds = {"x": np.array([[1.0, 2.0], [3.0, 300.0]], np.float32)}
    with opened(graph_of([square, half], [x], [("y", TensorProto.FLOAT16, ["n", 2])])) as session:
        report = check_parity(session, reference, [(["a", "b"], feeds, None)], "float16", latency=False)
    assert report.reasons[0] == "output 'y': 1 of 4 values are not finite"


@pytest.mark.parametrize(("noise", "passed"), [(0.05, True), (0.5, False)])
def test_int8_is_judged_by_its_noise_on_samples_and_not_at_all_on_random_input(noise: float, passed: bool) -> None:
    graph = self_attention().graph

    def engine(feeds: Mapping[str, Array]) -> list[Array]:
        (y,) = right.oracle(feeds)
        return [y + noise * np.sqrt(np.mean(y**2)) * np.random.default_rng(0).standard_normal(y.shape)]

    right = reference_from_graph(graph)
    noisy = Reference("noisy", right.inputs, engine, engine, lambda feeds, dtype: None)
    samples = batched(np.random.default_rng(1).standard_normal((3, 7, 8)).astype(np.float32), 1)
    with opened(graph) as session:
        report = check_parity(session, noisy, samples, "int8", seed=0, latency=False)
        random = check_parity(session, noisy, None, "int8", seed=0, latency=False)
    assert report.passed == passed
    assert report.outputs[0].sqnr_db == pytest.approx(-20 * np.log10(noise), abs=2)
    assert random.passed
    assert random.verdict.startswith("PASSED: int8 gives finite numbers on random input")
    for found in (report, random):  # whose single values have no limit
        assert found.to_json()["outputs"][0]["limit_max"] is None
        assert ">limit</text>" not in found.to_html()


def test_an_engine_that_mixes_up_its_batch_fails_only_at_larger_batches() -> None:
    case = self_attention()
    graph = replaced(case.graph, lambda graph: None)

    def infer(feeds: dict[str, Array]) -> dict[str, Array]:
        return {"y": session.run({"x": feeds["x"][::-1]})["y"]}

    with opened(graph) as session:
        mixed = replace(session, infer=infer)
        x = np.random.default_rng(0).standard_normal((8, 7, 8)).astype(np.float32)
        report = check_parity(mixed, reference_from_graph(graph), batched(x, 1), "float32", latency=False)
    assert [shape.passed for shape in report.shapes] == [True, False, False]
    assert report.outputs[0].passed
    assert report.reasons[0].startswith("at x 8x7x8: output 'y': the largest error over max|y| is")


def test_a_data_set_is_cut_and_filled_to_the_batches_that_the_engine_takes() -> None:
    case = self_attention()
    seen = []

    def infer(feeds: dict[str, Array]) -> dict[str, Array]:
        seen.append(feeds["x"].shape[0])
        return session.infer(feeds)

    shapes = {key: {"x": (size, 7, 8)} for key, size in (("min_shapes", 3), ("opt_shapes", 3), ("max_shapes", 4))}
    x = np.random.default_rng(0).standard_normal((9, 7, 8)).astype(np.float32)
    with opened(case.graph, **shapes) as session:
        report = check_parity(
            replace(session, infer=infer), reference_from_graph(case.graph), batched(x, 9), "float32", latency=False
        )
    assert report.passed
    assert seen == [4, 4, 3, 3, 4]
    assert report.samples == 9


def test_another_size_than_the_data_gets_random_input_and_says_so() -> None:
    case = self_attention(tokens="tokens")
    shapes = {"min_shapes": {"x": (1, 3, 8)}, "opt_shapes": {"x": (2, 7, 8)}, "max_shapes": {"x": (4, 9, 8)}}
    x = np.random.default_rng(0).standard_normal((2, 7, 8)).astype(np.float32)
    with opened(case.graph, **shapes) as session:
        report = check_parity(session, reference_from_graph(case.graph), batched(x, 2), "float32", latency=False)
    assert {str(shape): shape.data for shape in report.shapes} == {
        "x 1x3x8": "random, seed 0", "x 2x7x8": "real", "x 4x9x8": "random, seed 0", "x 1x7x8": "real",
        "x 4x7x8": "real",
    }  # fmt: skip


def classifier(scores: Array) -> tuple[Session, Reference]:
    """An engine that says `scores`, whatever it is fed, and a reference that is an identity."""
    nodes = [helper.make_node("Mul", ["x", "zero"], ["none"]), helper.make_node("Add", ["none", "scores"], ["y"])]
    io = [("x", FLOAT, list(scores.shape))], [("y", FLOAT, list(scores.shape))]
    engine = graph_of(nodes, *io, {"zero": np.float32(0).reshape(()), "scores": scores})
    return opened(engine), reference_from_graph(graph_of([helper.make_node("Identity", ["x"], ["y"])], *io))


def test_top1_is_counted_on_both_sides_and_a_drop_beyond_the_limit_fails() -> None:
    truth = np.eye(4, dtype=np.float32)
    got = truth.copy()
    got[3] = [0, 0, 1.0001, 1]
    truth[3] = [0, 0, 1, 1.0001]
    session, reference = classifier(got)
    batch = (["a", "b", "c", "d"], {"x": truth}, [0, 1, 3, 3])
    with session:
        loose = check_parity(session, reference, [batch], "float16", latency=False)
        strict = check_parity(session, reference, [batch], "float16", latency=False, max_drop={"top1": 0.2})
    assert loose.passed
    assert loose.compared["task"] == "classification"
    found = loose.to_json()["metrics"]["top1"]
    interval = found.pop("confidence_interval")
    assert found == {
        "reference": 0.75, "engine": 0.5, "agreement": 0.75, "samples": 4, "max_drop": None, "drop": 0.25,
        "standing": "",
    }  # fmt: skip
    assert interval["drop"][0] <= 0.25 <= interval["drop"][1]
    assert strict.reasons == ("top1 drops by 25.00 %, at most 20.00 % is allowed",)
    assert "top1 drops by 25.00 %" in strict.to_html()
    assert "top1      75.00 %  50.00 %  25.00 %  0.00 .. 75.00 %  75.00 %        4" in str(strict)
    assert "top1: beyond the bound, but 4 samples cannot tell 25.00 % from 0.00 %" in str(strict)
    assert [case.get("name") for case in ElementTree.fromstring(strict.to_junit()).findall(".//failure/..")] == [
        "metric top1"
    ]


def test_labels_that_fit_no_task_are_said() -> None:
    session, reference = classifier(np.eye(4, dtype=np.float32))
    batch = (["a", "b", "c", "d"], {"x": np.eye(4, dtype=np.float32)}, [np.zeros((3, 5), int)] * 4)
    with session:
        report = check_parity(session, reference, [batch], "float32", latency=False)
    assert report.passed
    assert "task: none of classification, saliency, segmentation, detection fits the labels" in str(report)
    assert report.to_json()["metrics"] == {}


def test_filled_rows_are_not_counted_in_the_metric() -> None:
    session, reference = classifier(np.eye(4, dtype=np.float32))
    with session:
        report = check_parity(
            session, reference, [(["a", "b"], {"x": np.eye(4, dtype=np.float32)[:2]}, [0, 0])], "float32", latency=False
        )
    assert [(metric.name, metric.samples, metric.engine) for metric in report.metrics] == [("top1", 2, 0.5)]


def test_a_label_outside_the_classes_is_refused() -> None:
    session, reference = classifier(np.eye(2, dtype=np.float32))
    with session, pytest.raises(InputError, match=r"sample 'b': label 2, but the model has 2 classes"):
        check_parity(session, reference, [(["a", "b"], {"x": np.eye(2, dtype=np.float32)}, [0, 2])], "float32")


def test_names_that_differ_are_matched_by_order_and_dtypes_converted() -> None:
    nodes = [helper.make_node("Sub", ["a", "b"], ["y"])]
    ours = graph_of(nodes, [("a", FLOAT, [1, 3]), ("b", FLOAT, [1, 3])], [("y", FLOAT, [1, 3])])
    nodes = [helper.make_node("Sub", ["p", "q"], ["z"])]
    half = TensorProto.FLOAT16
    theirs = graph_of(nodes, [("p", half, [1, 3]), ("q", half, [1, 3])], [("z", half, [1, 3])])
    with opened(ours) as session:
        assert check_parity(session, reference_from_graph(theirs), None, "float16", seed=0, latency=False).passed
        swapped = replace(reference_from_graph(theirs), inputs=reference_from_graph(theirs).inputs[::-1])
        assert not check_parity(session, swapped, None, "float16", seed=0, latency=False).passed


def test_a_corner_where_the_engine_fails_is_a_reason_not_a_crash() -> None:
    case = self_attention()

    def infer(feeds: dict[str, Array]) -> dict[str, Array]:
        if feeds["x"].shape[0] == 8:
            raise InferenceError("out of memory")
        return session.infer(feeds)

    with opened(case.graph) as session:
        broken = replace(session, infer=infer)
        report = check_parity(broken, reference_from_graph(case.graph), None, "float32", seed=0, latency=False)
    assert report.reasons == ("at x 8x7x8: out of memory",)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["shapes"][1]["relative_l2"] is None
    assert "at x 8x7x8: out of memory" in report.to_html()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": None}, "nothing to compare on"),
        ({"batches": [], "max_drop": {"moiu": 0.1}}, "unknown metric 'moiu'; did you mean 'miou'"),
        ({"batches": [], "task": "segment"}, "unknown task 'segment'; did you mean 'segmentation'"),
        ({"batches": None, "seed": 0, "max_drop": {"top1": 0.1}}, "needs labels"),
        ({"batches": None, "seed": 0, "precision": "int16"}, "no tolerance is known for int16"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(arguments: dict[str, Any], message: str) -> None:
    case = self_attention()
    with opened(case.graph) as session, pytest.raises(UsageError, match=message):
        check_parity(session, reference_from_graph(case.graph), **{"precision": "float32", **arguments})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """An engine, its graph, its model as Python, and labelled data, of which one file is no sample."""
    case = self_attention(batch=1)
    save_graph(case.graph, tmp_path / "m.onnx")
    config = BuildConfig(precision="float32", profile=resolve_profile(case.graph.inputs))
    write_engine(backend_named("onnxruntime").build(case.graph, config), tmp_path / "m.engine")
    (tmp_path / "m.py").write_text("import torch\n\ndef make():\n    return torch.nn.Identity()\n")
    (tmp_path / "data").mkdir()
    for index in range(5):
        x = np.random.default_rng(index).standard_normal((1, 7, 8)).astype(np.float32)
        np.savez(tmp_path / "data" / f"{index}.npz", x=x)
    (tmp_path / "data" / "bad.npz").write_bytes(b"nothing")
    return tmp_path


def test_files_are_compared_and_the_report_says_which(files: Path) -> None:
    against = str(files / "m.onnx")
    report = compare_files(files / "m.engine", against, data=files / "data", latency=False)
    assert report.passed
    assert report.samples == 5
    assert report.compared["reference"] == against
    assert report.compared["engine sha256"] == sha256_file(files / "m.engine")
    assert report.compared["reference sha256"] == sha256_file(files / "m.onnx")
    assert report.compared["data"] == str(files / "data")
    assert "recipe" not in report.compared  # arrays have none
    assert "bad.npz" in report.compared["skipped files"]
    limited = compare_files(files / "m.engine", against, data=files / "data", limit=2, latency=False)
    assert limited.samples == 2
    assert compare_files(files / "m.engine", against, seed=5, latency=False).compared["data"] == "random, seed 5"


def test_a_file_with_another_model_fails(files: Path) -> None:
    report = compare_files(files / "m.engine", f"{files / 'm.py'}:make", data=files / "data", latency=False)
    assert not report.passed
    assert {found.name for found in report.worst} == {f"{index}.npz" for index in range(5)}


def test_a_limit_takes_samples_from_all_over_the_folder(files: Path) -> None:
    against = f"{files / 'm.py'}:make"
    report = compare_files(files / "m.engine", against, data=files / "data", limit=2, latency=False)
    assert {found.name for found in report.worst} == {"0.npz", "3.npz"}  # of six files


def test_empty_data_is_refused() -> None:
    case = self_attention()
    with opened(case.graph) as session, pytest.raises(InputError, match="the data is empty"):
        check_parity(session, reference_from_graph(case.graph), [], "float32")


def test_the_report_has_every_form_and_its_keys_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "measure", partial(check.measure, warmup_s=0.0, duration_s=0.05))
    case = self_attention()
    with opened(case.graph, "float16", opt_shapes={"x": (2, 7, 8)}, min_shapes={"x": (1, 7, 8)}) as session:
        report = check_parity(
            session, reference_from_graph(case.graph), None, "float16", seed=0, compared={"engine": "<b>m.engine</b>"}
        )
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert list(plain) == [
        "passed", "reasons", "precision", "samples", "outputs", "shapes", "metrics", "latency", "compared",
        "environment", "classes", "precision_recall", "agreement_matrix", "worst_samples", "rebuilds", "attention_maps",
    ]  # fmt: skip
    assert plain["passed"] is True
    assert set(plain["latency"]) == {"batch_1", "batch_2"}
    assert plain["latency"]["batch_2"]["engine"]["p50_ms"] > 0
    assert plain["compared"] == {"reference": "graph", "engine": "<b>m.engine</b>", "data": "random, seed 0"}
    assert plain["environment"]["device"] == "cpu"
    page = report.to_html()
    assert "&lt;b&gt;m.engine&lt;/b&gt;" in page
    assert "<b>" not in page
    assert page.count('role="img"') == 2
    cases = [case.get("name") for case in ElementTree.fromstring(report.to_junit()).iter("testcase")]
    assert cases == ["output y", "shape x 1x7x8", "shape x 2x7x8"]
    assert str(report).splitlines()[-1] == "PASSED: float16 within tolerance on random input at 2 shapes"
