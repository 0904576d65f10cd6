from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgeattn.errors import ExportError
from edgeattn.export import export_model
from edgeattn.export.fidelity import check_fidelity, first_difference, judge
from edgeattn.graph import Graph, load_graph
from edgeattn.interpreter import run_as_written
from edgeattn.model import Model
from edgeattn.tensors import TensorSpec, random_feeds
from edgeattn.tolerance import TOLERANCES

IMAGE = TensorSpec("x", "float32", (1, 3, 9, 7))
OPSETS = [onnx.helper.make_opsetid("", 18)]
RULE = TOLERANCES["float32"]


class Gated(nn.Module):
    """Three named stages, so that a fault has an address."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stages = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.SiLU()), nn.Conv2d(8, 8, 1))
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(torch.relu(self.stem(x)))
        return x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return Model(Gated(), (IMAGE,))


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def graph(request: pytest.FixtureRequest, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("fidelity") / "m.onnx"
    export_model(model, path, exporter=request.param, check=False)
    return load_graph(path)


def sabotaged(graph: Graph, name: str, change) -> Graph:
    proto = graph.proto()
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    return Graph(ir.from_proto(proto))


def test_an_honest_graph_passes_with_every_seed(graph: Graph, model: Model) -> None:
    checks = check_fidelity(graph, model)
    assert len(checks) == 3
    assert all(check.max_abs <= check.budget for check in checks)
    assert all("x 1x3x9x7" in check.case for check in checks)


@pytest.mark.parametrize(
    ("weight", "node"),
    [
        ("stem.bias", r"(Conv|Relu) '.*' in module 'stem'"),
        ("stages.0.0.weight", "Conv '.*' in module 'stages.0.0'"),
        ("stages.1.bias", "Conv '.*' in module 'stages.1'"),
        ("gate.bias", "Gemm '.*' in module 'gate'"),
    ],
)
def test_one_wrong_weight_is_found_in_its_module(graph: Graph, model: Model, weight: str, node: str) -> None:
    wrong = sabotaged(graph, weight, lambda array: array * np.float32(1.01))
    with pytest.raises(ExportError, match=f"first node that differs is {node}"):
        check_fidelity(wrong, model)


def test_one_operator_in_place_of_another_is_found(graph: Graph, model: Model) -> None:
    proto = graph.proto()
    (node,) = [node for node in proto.graph.node if node.op_type == "Relu"]
    node.op_type = "Tanh"
    with pytest.raises(ExportError, match=f"is Tanh {node.name!r} in the top module"):
        check_fidelity(Graph(ir.from_proto(proto)), model)


def test_a_graph_that_no_runtime_can_run_is_named(graph: Graph, model: Model) -> None:
    wrong = sabotaged(graph, "gate.bias", lambda array: np.ones(5, np.float32))
    with pytest.raises(ExportError, match=r"the exported graph fails at x 1x3x9x7, seed 0: .*Gemm"):
        check_fidelity(wrong, model)


def test_a_graph_that_no_runtime_can_load_is_one_line(graph: Graph, model: Model) -> None:
    proto = graph.proto()
    proto.ir_version = 99
    with pytest.raises(ExportError, match=r"cannot be loaded: .*IR version: 99") as caught:
        check_fidelity(Graph(ir.from_proto(proto)), model)
    assert "\n" not in str(caught.value)


def test_a_module_with_random_numbers_is_no_oracle(graph: Graph) -> None:
    class Noisy(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), training=True)

    with pytest.raises(ExportError, match="differs from run to run"):
        check_fidelity(graph, Model(Noisy(), (IMAGE,)))


def test_onnx_own_evaluator_takes_the_place_of_onnxruntime(graph: Graph, model: Model, monkeypatch) -> None:
    feeds = random_feeds(model.inputs, {"x": (1, 3, 9, 7)}, 0)
    (truth,) = model.run(feeds, "float64")
    with_runtime = run_as_written(graph, every=True)(feeds)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    without = run_as_written(graph, every=True)(feeds)
    assert without.keys() == with_runtime.keys() > {"output"}
    for found in (with_runtime, without):
        error, _, budget = judge(model.run(feeds)[0], found["output"], truth)
        assert 0 < error <= budget


def test_a_wrong_output_without_a_node_behind_it_is_still_named(model: Model) -> None:
    x = onnx.helper.make_tensor_value_info("x", 1, [1, 3, 9, 7])
    made = onnx.helper.make_model(onnx.helper.make_graph([], "g", [x], [x]), ir_version=10, opset_imports=OPSETS)
    graph = Graph(ir.from_proto(made))
    feeds = random_feeds(model.inputs, {"x": (1, 3, 9, 7)}, 0)
    assert first_difference(graph, model, feeds, "x", 1.0) == "output 'x' itself"


@pytest.mark.parametrize(
    ("theirs", "passes"),
    [
        ([1.0, 2.0, np.nan], True),
        ([1.0, 2.0 + RULE.floor, np.nan], True),
        ([1.0, 2.0 + 3 * RULE.floor, np.nan], False),
        ([1.0, np.nan, np.nan], False),
        ([1.0, 2.0, 3.0], False),
        ([1.0, 2.0, np.inf], False),
    ],
)
def test_the_judge_knows_rounding_from_error(theirs: list[float], passes: bool) -> None:
    ours = np.array([1.0, 2.0, np.nan], np.float32)
    error, _, budget = judge(ours, np.array(theirs, np.float32), ours.astype(np.float64))
    assert (error <= budget) == passes


def test_the_judge_follows_pytorchs_own_error_up_to_the_cap() -> None:
    truth = np.array([1.0, -1.0])
    for own, limit in ((0.0, RULE.floor), (0.4 * RULE.cap, 0.8 * RULE.cap), (1e-2, RULE.cap)):
        _, size, budget = judge((truth + own).astype(np.float32), truth.astype(np.float32), truth)
        assert size == 1.0
        assert budget == pytest.approx(limit, rel=0.01)


def test_without_an_oracle_the_cap_of_the_table_holds() -> None:
    ours = np.array([1.0, -2.0], np.float32)
    assert judge(ours, ours, None) == (0.0, 2.0, 2 * RULE.cap)


def test_whole_numbers_are_judged_by_their_share() -> None:
    ours = np.arange(10_000)
    theirs = ours.copy()
    theirs[:5] += 1
    assert judge(ours, theirs, ours)[0] <= judge(ours, theirs, ours)[2]
    theirs[:50] += 1
    assert judge(ours, theirs, ours)[0] > judge(ours, theirs, ours)[2]
    assert judge(ours[:0], theirs[:0], None)[0] == 0


def test_random_data_follow_dtype_and_seed() -> None:
    specs = (TensorSpec("x", "float32", (9, 9)), TensorSpec("i", "int64", (9,)), TensorSpec("b", "bool", (9,)))
    shapes = {"x": (9, 9), "i": (9,), "b": (9,)}
    feeds = random_feeds(specs, shapes, 1)
    assert {name: str(array.dtype) for name, array in feeds.items()} == {"x": "float32", "i": "int64", "b": "bool"}
    assert set(feeds["i"]) == {0, 1}
    again = random_feeds(specs, shapes, 1)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    assert [round(float(random_feeds(specs, shapes, seed)["x"].mean())) for seed in range(3)] == [0, 1, -1]
