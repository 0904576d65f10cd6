"""An honest engine of every network passes, and every sabotaged one fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgeattn.backends import backend_named
from edgeattn.export import export_model
from edgeattn.graph import Graph, load_graph
from edgeattn.model import Model
from edgeattn.parity import check_parity, reference_from_graph, reference_from_model
from edgeattn.tensors import TensorSpec
from tests.graphs import Array
from tests.models import ZOO, settled
from tests.parity.samples import batched, opened, replaced

SIZE = 32


def images(count: int, seed: int = 0) -> Array:
    """Smooth random images: a network's statistics are those of pictures, not of noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, SIZE // 4, SIZE // 4))
    return (np.kron(coarse, np.ones((1, 1, 4, 4))) + 0.1 * rng.normal(size=(count, 3, SIZE, SIZE))).astype(np.float32)


@cache
def model_of(name: str) -> Model:
    module = settled(ZOO[name], torch.from_numpy(images(16)))
    return Model(module, (TensorSpec("x", "float32", (2, 3, SIZE, SIZE)),), name)


@pytest.fixture(scope="session")
def graph_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graph]:
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def exported(name: str) -> Graph:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older exporter is chosen here for its speed
            export_model(
                model_of(name),
                folder / f"{name}.onnx",
                dynamic={"x": {0: "batch"}},
                exporter="torchscript",
                check=False,
            )
        return load_graph(folder / f"{name}.onnx")

    return exported


def weights(graph: ir.Graph, rank: int, least: int = 2) -> ir.Value:
    """The largest weight of that rank with at least that many rows; the first of them."""
    found = [
        value
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and len(value.const_value.shape) == rank
        and value.const_value.numpy().shape[0] >= least
    ]
    return max(found, key=lambda value: value.const_value.size if value.const_value else 0)


def set_weight(value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def without_a_bias(graph: ir.Graph) -> None:
    value = weights(graph, 1)
    assert value.const_value is not None
    set_weight(value, np.zeros_like(value.const_value.numpy()))


def with_swapped_channels(graph: ir.Graph) -> None:
    value = weights(graph, 4, least=3)
    assert value.const_value is not None
    set_weight(value, value.const_value.numpy()[[1, 0, *range(2, value.const_value.shape[0])]])


def with_another_activation(graph: ir.Graph) -> None:
    node = next(node for node in graph.all_nodes() if node.op_type in ("Relu", "Erf", "Sigmoid"))
    node.op_type = {"Relu": "LeakyRelu", "Erf": "Tanh", "Sigmoid": "HardSigmoid"}[node.op_type]


def with_another_scale(graph: ir.Graph) -> None:
    value = weights(graph, 4)
    assert value.const_value is not None
    set_weight(value, value.const_value.numpy() * np.float32(1.1))


SABOTAGE = [without_a_bias, with_swapped_channels, with_another_activation, with_another_scale]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", ZOO)
def test_an_honest_engine_passes(graph_named: Callable[[str], Graph], name: str, precision: str, backend: str) -> None:
    if missing := backend_named(backend).missing():
        pytest.skip(missing[0])
    with opened(graph_named(name), precision, backend) as session:
        report = check_parity(
            session, reference_from_model(model_of(name)), batched(images(11, 1), 5), precision, latency=False
        )
    assert report.passed, report.reasons
    assert report.samples == 11
    assert [shape.shapes["x"][0] for shape in report.shapes] == [1, 8, 2]
    assert all(shape.data == "real" for shape in report.shapes)
    assert 0 < report.outputs[0].relative_l2 <= report.outputs[0].limit_l2


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("sabotage", SABOTAGE)
@pytest.mark.parametrize("name", ZOO)
def test_a_wrong_engine_fails(
    graph_named: Callable[[str], Graph], name: str, sabotage: Callable[[ir.Graph], None], precision: str
) -> None:
    with opened(replaced(graph_named(name), sabotage), precision) as session:
        report = check_parity(
            session, reference_from_model(model_of(name)), batched(images(5, 1), 5), precision, latency=False
        )
    assert not report.passed
    assert not any(shape.passed for shape in report.shapes)
    assert "FAILED: output" in str(report)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_wrong_engine_fails_against_a_graph_on_random_input(
    graph_named: Callable[[str], Graph], precision: str
) -> None:
    graph = graph_named("vit")
    reference = reference_from_graph(graph)
    shapes = {f"{which}_shapes": {"x": (2, 3, SIZE, SIZE)} for which in ("min", "opt", "max")}
    with opened(graph, precision, **shapes) as session:
        assert check_parity(session, reference, None, precision, seed=3, latency=False).passed
    for sabotage in SABOTAGE:
        with opened(replaced(graph, sabotage), precision, **shapes) as session:
            assert not check_parity(session, reference, None, precision, seed=3, latency=False).passed, sabotage


def test_a_wrong_epsilon_fails_in_float32(graph_named: Callable[[str], Graph]) -> None:
    def change(graph: ir.Graph) -> None:
        for node in graph.all_nodes():
            if node.op_type == "LayerNormalization":
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-3)

    with opened(replaced(graph_named("vit"), change)) as session:
        reference = reference_from_model(model_of("vit"))
        assert not check_parity(session, reference, batched(images(5), 5), "float32", latency=False).passed
