"""Gates that write what a QuantizeLinear made of their result. Oracle: the same graph with the gates' own operators."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from edgeattn.backends.base import BuildConfig
from edgeattn.backends.trt import aot
from edgeattn.backends.trt.codes import absorb, quantiser
from edgeattn.backends.trt.plugins import launches, request_of, requests_in
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import PLUGIN, to_backend
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import DOMAIN
from edgeattn.precision.mixed import typed_for
from edgeattn.precision.ranges import Ranges
from edgeattn.tensors import resolve_profile
from tests.kernels.interpreted import assert_codes, interpret
from tests.models import ChannelGate, SpatialGate
from tests.plugins.offers import offer
from tests.precision.lowered import normal, observed, rtx_products, traced

SHAPE = (2, 3, 7, 5)
RESTS = ("float32", "float16", "bfloat16")
QUANTISED = ("SelectiveKernel", "CBAM")


class Gates(nn.Module):
    """Gates before convolutions: a mixture of branches, CBAM, and a channel gate whose result is given out, too."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1) for _ in range(2)])
        self.fc, self.fcs = nn.Linear(8, 5), nn.Linear(5, 16)
        self.tails = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(3)])
        self.gates = nn.ModuleList([ChannelGate(8), SpatialGate(), ChannelGate(8)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (conv(x).relu() for conv in self.convs)
        hidden = self.fc((first + second).mean((2, 3))).relu()
        a = self.fcs(hidden).view(-1, 2, 8, 1, 1).softmax(1)
        x = self.tails[0](first * a[:, 0] + second * a[:, 1]).relu()
        x = self.tails[1](self.gates[1](self.gates[0](x))).relu()
        x = self.gates[2](x)
        return self.tails[2](x), x


@functools.cache
def gates() -> tuple[Graph, Ranges]:
    """The network fused, and what samples were observed to be in it."""
    torch.manual_seed(0)
    fused, _ = fuse(traced(Gates(), (torch.randn(SHAPE),)))
    plain = to_backend(fused, "openvino")
    samples = [{plain.inputs[0].name: normal(*SHAPE, seed=seed)} for seed in range(4)]
    return fused, observed(plain, *samples)


def typed(rest: str, form: str) -> tuple[Graph, tuple[str, ...]]:
    fused, ranges = gates()
    names = [node.name or "" for node in fused.model.graph if node.domain == DOMAIN]
    config = BuildConfig(
        precision="int8",
        rest=rest,
        forms=dict.fromkeys(names, form) if form else {},
        profile=resolve_profile(fused.inputs),
    )
    return typed_for(fused, "tensorrt", config, ranges=ranges)[:2]


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, requests_in(gates()[0], RESTS, codes=True))


def plugins(graph: Graph) -> list[ir.Node]:
    return [node for node in graph.model.graph if node.domain == DOMAIN]


def played(graph: Graph) -> Graph:
    """The graph with what its plugins compute in plain operators: a function's body, then maybe a QuantizeLinear."""
    edited = graph.copy()
    edited.model.functions.update(gates()[0].model.clone().functions)
    for node in plugins(edited):
        request = request_of(node)
        node.overload = request.variant
        for name in ("codes", "variant", "plugin_namespace", "plugin_version"):
            node.attributes.pop(name, None)
        if request.codes:
            _quantise(edited.model.graph, node)
    common.InlinePass()(edited.model)
    return edited


def _quantise(graph: ir.Graph, node: ir.Node) -> None:
    """Let a node give floats again, for a QuantizeLinear by its last input."""
    y, scale = node.outputs[0], node.inputs[-1]
    assert scale is not None
    assert scale.const_value is not None
    step = ir.Value(name=f"{scale.name}_0", const_value=ir.tensor(scale.const_value.numpy().reshape(())))
    zero = ir.Value(name=f"{scale.name}_zero", const_value=ir.tensor(np.int8(0)))
    graph.register_initializer(step)
    graph.register_initializer(zero)
    node.resize_inputs(len(node.inputs) - 1)
    last = ir.Node("", "QuantizeLinear", [None, step, zero])
    ir.convenience.replace_all_uses_with(y, last.outputs[0])
    last.replace_input_with(0, y)
    last.outputs[0].name, y.name = y.name, f"{y.name}_float"
    last.outputs[0].type, y.type = y.type, scale.type
    graph.insert_after(node, last)


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("rest", RESTS)
def test_what_only_a_quantiser_reads_is_written_as_codes(rest: str) -> None:
    graph, notes = typed(rest, PLUGIN)
    nodes = plugins(graph)
    assert [(node.op_type, request_of(node).codes) for node in nodes] == [
        ("SelectiveKernel", True), ("CBAM", True), ("ChannelGate", False)
    ]  # fmt: skip
    assert not [note for note in notes if "INT8 itself" in note]
    body, _ = typed(rest, "")
    assert graph.op_counts()["QuantizeLinear"] == body.op_counts()["QuantizeLinear"] - len(QUANTISED)
    for node in nodes[:2]:
        assert set(request_of(node).dtypes) == {rest}
        assert node.outputs[0].dtype == ir.DataType.INT8
        (reader,) = node.outputs[0].consumers()
        assert reader.op_type == "DequantizeLinear"
        assert reader.inputs[1].const_value.numpy() == node.inputs[-1].const_value.numpy()  # type: ignore[union-attr]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("rest", RESTS[:2])
def test_the_codes_are_those_of_the_graph_as_written(rest: str) -> None:
    graph, body = played(typed(rest, PLUGIN)[0]), typed(rest, "")[0]
    feeds = {graph.inputs[0].name: normal(*SHAPE, seed=9)}
    found, truth = (run_as_written(each, every=True)(feeds) for each in (graph, body))
    names = [node.outputs[0].name or "" for node in body.model.graph if node.op_type == "QuantizeLinear"]
    assert set(names) <= found.keys()
    for name in names:
        difference = np.abs(found[name].astype(int) - truth[name].astype(int))
        assert difference.max() <= (0 if rest == "float32" else 1)
        assert difference.mean() < 0.02, name
    for name in (spec.name for spec in body.outputs):
        assert found[name].dtype == truth[name].dtype


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("rest", RESTS[:2])
def test_the_kernels_give_those_codes(rest: str) -> None:
    graph, _ = typed(rest, PLUGIN)
    feeds = {graph.inputs[0].name: normal(*SHAPE, seed=9)}
    found = {**feeds, **run_as_written(played(graph), every=True)(feeds)}
    for node in plugins(graph)[:2]:
        request = request_of(node)
        values = [value for value in node.inputs if value is not None]
        arrays = [found[v.name] if v.const_value is None else v.const_value.numpy() for v in values]  # type: ignore[index]
        tensors = [torch.from_numpy(array.copy()) for array in arrays]
        shape = dict(zip(request.open, SHAPE, strict=False))
        y = interpret(launches(request, 87), dict(zip(request.inputs, tensors, strict=True)), tensors[0].shape, shape)
        op = next(op for op in ALL_OPS if op.name == request.op)
        attributes = {name: value for name, value in request.attributes.items() if name != "codes"}
        formula = functools.partial(op.reference, request.variant, **attributes)
        assert_codes(y, float(tensors[-1]), formula, *tensors[:-1])
        difference = np.abs(y.numpy().astype(int) - found[node.outputs[0].name or ""].astype(int))
        assert difference.max() <= 1
        assert difference.mean() < 0.02


def test_without_a_kernel_for_it_the_quantiser_stays_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch, requests_in(gates()[0], RESTS))
    graph, notes = typed("float16", PLUGIN)
    assert not any(request_of(node).codes for node in plugins(graph))
    said = [note for note in notes if "does not write INT8 itself" in note]
    assert len(said) == len(QUANTISED)
    assert "has no kernel for SelectiveKernel(" in said[0]
    assert said[0].endswith("edgeattn plugins build --int8 makes one")
    assert graph.op_counts()["QuantizeLinear"] == typed("float16", "")[0].op_counts()["QuantizeLinear"]


@pytest.mark.usefixtures("offered")
def test_embedded_the_last_plugin_of_the_chain_gives_the_codes() -> None:
    graph, _ = typed("float16", PLUGIN)
    steps: list[aot.Step] = []
    embedded = aot.embed(graph, 87, steps.append)
    for node in plugins(graph)[:2]:
        (made,) = [own for own in plugins(embedded) if own.outputs[0].name == node.outputs[0].name]
        (step,) = [step for step in steps if step.name == made.op_type]
        assert [output.dtype for output in step.outputs] == ["int8"]
        assert made.outputs[0].dtype == ir.DataType.INT8
        assert any(value is not None and (value.name or "").endswith("y_scale") for value in made.inputs)


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("rest", RESTS[1:])
def test_tensorrt_takes_codes_that_no_quantiser_made(rest: str) -> None:
    """Those of a network's input, since TensorRT-RTX has no plugins in its networks: the same for what reads them."""
    graph, _ = typed(rest, PLUGIN)
    main = graph.model.graph
    for node in plugins(graph)[:2]:
        y = node.outputs[0]
        given = ir.Value(name=f"{y.name}_given", type=y.type, shape=y.shape)
        main.inputs.append(given)
        ir.convenience.replace_all_uses_with(y, given)
    last = plugins(graph)[2]
    ir.convenience.replace_all_uses_with(last.outputs[0], last.inputs[0], replace_graph_outputs=True)  # type: ignore[arg-type]
    common.RemoveUnusedNodesPass()(graph.model)
    assert not plugins(graph)
    assert rtx_products(graph) == {rest}


@pytest.mark.parametrize(
    ("values", "tail", "taken"),
    [
        ("float s = {0.5}, int8 z = {0}", "", True),
        ("float[1] s = {0.5}, int8 z = {0}", "", True),
        ("float s = {0.5}, int8 z = {3}", "", False),
        ("float s = {0.5}, uint8 z = {0}", "", False),
        ("float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}", "", False),
        ("float s = {0.5}, int8 z = {0}", "r = Relu(y)", False),
    ],
    ids=["scalar", "list of one", "asymmetric", "unsigned", "for each channel", "read by another"],
)
def test_only_signed_codes_of_one_scale_that_nothing_else_reads_are_taken(values: str, tail: str, taken: bool) -> None:
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 20, "edgeattn": 1]>
        g (float[1,2,4,4] x, float[1,2,1,1] w, float[1] b) => (float[1,2,4,4] d) <{values}>
        {{ y = edgeattn.SpatialGate(x, w, b)  {tail}  q = QuantizeLinear(y, s, z)  d = DequantizeLinear(q, s, z) }}"""
    )
    node, last = model.graph[0], model.graph[-2]
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    last.outputs[0].type = ir.TensorType(last.inputs[2].dtype)  # type: ignore[union-attr, arg-type]
    assert quantiser(node) is (last if taken else None)
    if taken:
        absorb(model.graph, node, last)
        assert [value.name for value in node.inputs if value] == ["x", "w", "b", "y/y_scale"]
        assert [own.op_type for own in model.graph] == ["SpatialGate", "DequantizeLinear"]
        assert model.graph[1].inputs[0] is node.outputs[0]
