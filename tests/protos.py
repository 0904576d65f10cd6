"""Small ONNX files, valid ones and the builders from which tests make hostile ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
RNG = np.random.default_rng(0)

node = helper.make_node
info = helper.make_tensor_value_info
tensor = numpy_helper.from_array

RELU = [node("Relu", ["x"], ["y"], name="relu")]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    *,
    weights: Sequence[onnx.TensorProto] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    value_info: Sequence[onnx.ValueInfoProto] = (),
    opsets: dict[str, int] | None = None,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """A model of input `x` (2, 3) and output `y` of no stated shape, unless others are given."""
    graph = helper.make_graph(
        nodes,
        "graph",
        inputs or [info("x", FLOAT, [2, 3])],
        outputs or [info("y", FLOAT, None)],
        weights,
        value_info=value_info,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 20}).items()]
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=ir_version)


def function(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str] = ("a",),
    outputs: Sequence[str] = ("b",),
    *,
    opset: int = 20,
) -> onnx.FunctionProto:
    """A function of domain `edgeattn` from `a` to `b`."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("edgeattn", 1)]
    return helper.make_function("edgeattn", name, inputs, outputs, nodes, imports)


def call(name: str, source: str = "x", target: str = "y") -> onnx.NodeProto:
    return node(name, [source], [target], domain="edgeattn", name=f"call_{name}")


def called(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    """A model that calls the first function."""
    return model([call(functions[0].name)], functions=functions, opsets={"": 20, "edgeattn": 1})


def chain(depth: int, calls: int = 1) -> onnx.ModelProto:
    """Functions that call the next one `calls` times, `depth` deep."""
    functions = []
    for level in range(depth - 1):
        names = ["a", *(f"t{index}" for index in range(calls - 1)), "b"]
        body = [call(f"f{level + 1}", *pair) for pair in itertools.pairwise(names)]
        functions.append(function(f"f{level}", body))
    return called(*functions, function(f"f{depth - 1}", [node("Relu", ["a"], ["b"])]))


def branches(then: onnx.GraphProto, other: onnx.GraphProto) -> onnx.ModelProto:
    inputs = [info("x", FLOAT, [2, 3]), info("c", BOOL, [])]
    return model([node("If", ["c"], ["y"], then_branch=then, else_branch=other, name="if")], inputs)


def branch(nodes: Sequence[onnx.NodeProto], out: str = "t", weights: Sequence[onnx.TensorProto] = ()) -> Any:
    return helper.make_graph(nodes, f"branch_{out}", [], [info(out, FLOAT, None)], weights)


def shaped(steps: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """A model whose steps compute a shape `s`; a tensor of that shape is filled and summed into x."""
    tail = [
        node("ConstantOfShape", ["s"], ["filled"], name="fill"),
        node("ReduceSum", ["filled"], ["sum"], keepdims=0),
        node("Add", ["x", "sum"], ["y"]),
    ]
    return model([*steps, *tail])


def conv(ir_version: int = 10, opset: int = 20, as_inputs: bool = False) -> onnx.ModelProto:
    """Convolution and ReLU over x (batch, 3, 8, 8), with weights large enough to be kept from the child process."""
    weights = [
        tensor(RNG.standard_normal((16, 3, 3, 3)).astype(np.float32), "w"),
        tensor(RNG.standard_normal(16).astype(np.float32), "bias"),
    ]
    inputs = [info("x", FLOAT, ["batch", 3, 8, 8])]
    if as_inputs:
        inputs += [info(weight.name, FLOAT, weight.dims) for weight in weights]
    return model(
        [node("Conv", ["x", "w", "bias"], ["c"], pads=[1, 1, 1, 1], name="conv"), node("Relu", ["c"], ["y"])],
        inputs,
        weights=weights,
        opsets={"": opset},
        ir_version=ir_version,
    )


def heavy(name: str) -> onnx.TensorProto:
    return tensor(RNG.standard_normal((512, 2, 3)).astype(np.float32), name)


def _added(weights: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
    return model([node("Add", ["x", weights[0].name], ["y"])], weights=weights)


def _small_types() -> onnx.ModelProto:
    names = ("INT4", "UINT4", "BOOL", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "COMPLEX64", "UINT64", "DOUBLE", "INT8")
    typed = [helper.make_tensor(name, TensorProto.DataType.Value(name), [3], [1, 0, 1]) for name in names]
    text = helper.make_tensor("text", TensorProto.STRING, [2], [b"\xff", b""])
    empty = tensor(np.zeros((0, 3), np.float32), "empty")
    return _added([tensor(np.ones((2, 3), np.float32), "w"), *typed, text, empty])


VALID: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": conv,
    "ir-3-weights-are-inputs": lambda: conv(ir_version=3, opset=7, as_inputs=True),
    "ir-3-weights-are-no-inputs": lambda: conv(ir_version=3, opset=8),
    "function": lambda: called(function("Gate", [node("Sigmoid", ["a"], ["t"]), node("Mul", ["a", "t"], ["b"])])),
    "function-chain": lambda: chain(40),
    "function-of-an-older-opset": lambda: called(
        function("F", [node("Constant", [], ["k"], value_float=2.0), node("Mul", ["a", "k"], ["b"])], opset=18)
    ),
    "if": lambda: branches(branch([node("Relu", ["x"], ["t"])]), branch([node("Neg", ["x"], ["u"])], "u")),
    "if-with-large-weights": lambda: branches(
        branch([node("Add", ["x", "w"], ["t"])], weights=[heavy("w")]),
        branch([node("Mul", ["x", "v"], ["u"])], "u", [heavy("v")]),
    ),
    "constant": lambda: model([node("Constant", [], ["k"], value=heavy("")), node("Add", ["x", "k"], ["y"])]),
    "short-domain": lambda: model([node("Relu", ["x"], ["y"])], opsets={"ai.onnx": 20}),
    "unknown-rank": lambda: model([node("Relu", ["x"], ["y"])], [info("x", FLOAT, None)]),
    "untyped-output": lambda: model([node("Relu", ["x"], ["y"])], outputs=[onnx.ValueInfoProto(name="y")]),
    "dtypes": _small_types,
    "empty-graph-name": lambda: _unnamed(conv()),
    "stale-value-info": lambda: model(
        [node("Relu", ["x"], ["t"]), node("Neg", ["t"], ["y"])], value_info=[info("t", FLOAT, [7, 7])]
    ),
}


def _unnamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.graph.name = ""
    return proto
