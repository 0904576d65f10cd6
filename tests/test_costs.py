from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from edgeattn.costs import flops_of
from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph
from edgeattn.model import Model
from edgeattn.normalise import settle_shapes
from edgeattn.tensors import TensorSpec
from tests.graphs import FLOAT, graph_of, self_attention


def one(kind: str, shapes: list[list[int | str]], output: list[int | str], **attributes: object) -> Graph:
    names = [f"x{place}" for place in range(len(shapes))]
    node = helper.make_node(kind, names, ["y"], name="node", **attributes)
    inputs = [(name, FLOAT, shape) for name, shape in zip(names, shapes, strict=True)]
    return graph_of([node], inputs, [("y", FLOAT, output)])


@pytest.mark.parametrize(
    ("graph", "flops"),
    [
        (one("MatMul", [[2, 3, 5], [5, 7]], [2, 3, 7]), 2 * 2 * 3 * 5 * 7),
        (one("MatMul", [["batch", 3, 5], [5, 7]], ["batch", 3, 7]), 2 * 3 * 5 * 7),
        (one("MatMul", [["3*batch", 5], ["batch", 5, 7]], ["batch", "3*batch", 7]), 2 * 3 * 5 * 7),
        (one("MatMul", [["batch", "tokens", 5], [5, 7]], ["batch", "tokens", 7]), None),
        (one("Gemm", [[5, 3], [7, 5]], [3, 7], transA=1, transB=1), 2 * 3 * 5 * 7),
        (one("Conv", [[1, 6, 9, 8], [4, 3, 3, 3]], [1, 4, 7, 6], group=2), 2 * 4 * 7 * 6 * 3 * 9),
        (one("ConvTranspose", [[1, 6, 5, 4], [6, 2, 2, 2]], [1, 2, 10, 8], strides=[2, 2]), 2 * 6 * 5 * 4 * 2 * 4),
        (one("Einsum", [[2, 3, 5], [2, 7, 5]], [2, 3, 7], equation="bid,bjd->bij"), 2 * 2 * 3 * 5 * 7),
        (one("Einsum", [[2, 3, 5], [2, 7, 5]], [2, 3, 7], equation="...id,...jd->...ij"), None),
        (one("Relu", [[2, 3]], [2, 3]), 0),
    ],
)
def test_products_count_by_their_shapes(graph: Graph, flops: int | None) -> None:
    settle_shapes(graph.model)
    assert flops_of(graph, {}) == flops


@pytest.mark.parametrize("batch", [1, "batch"])
def test_an_attention_counts_with_the_products_around_it(batch: int | str) -> None:
    fused, report = fuse(self_attention(batch=batch, tokens=7, dim=8).graph)
    own = {item.name: item.facts.flops for item in report.found}
    assert flops_of(fused, own) == 3 * 2 * 7 * 8 * 8 + sum(flops or 0 for flops in own.values())
    assert flops_of(fused, dict.fromkeys(own)) is None


def test_a_network_costs_what_pytorch_counts(tmp_path: Path) -> None:
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.Conv2d(6, 4, 3, padding=1, groups=2),
        nn.ConvTranspose2d(4, 2, 3, stride=2),
        nn.Flatten(),
        nn.Linear(2 * 11 * 9, 5),
    ).eval()
    specs = (TensorSpec("x", "float32", (1, 3, 11, 9)),)
    export_model(Model(module, specs, "m"), tmp_path / "m.onnx", check=False)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 11, 9))
    assert flops_of(load_graph(tmp_path / "m.onnx"), {}) == counter.get_total_flops()
