"""Models that are not valid: each is refused with the place, and none takes memory, time or the process."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgeattn.validate import onnxchild
from edgeattn.validate.reading import MAX_NODES
from tests.protos import (
    FLOAT,
    INT64,
    RELU,
    branch,
    branches,
    call,
    called,
    chain,
    conv,
    function,
    heavy,
    info,
    model,
    node,
    shaped,
    tensor,
)
from tests.validate.refusals import refused, write


def with_first(proto: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    change(proto)
    return proto


def raise_opset(proto: onnx.ModelProto) -> None:
    proto.functions[0].opset_import[0].version = 99


def respelled(proto: onnx.ModelProto, old: bytes, new: bytes) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(proto.SerializeToString().replace(old, new))


def weight(dims: list[int], data_type: int = FLOAT, **fields: object) -> onnx.ModelProto:
    broken = TensorProto(name="w", data_type=data_type, dims=dims, **fields)
    return model([node("Add", ["x", "w"], ["y"])], weights=[broken])


def claimed_output(dims: list[int]) -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], outputs=[info("y", FLOAT, dims)])


def nested_ifs(depth: int) -> onnx.ModelProto:
    inner = branch([node("Relu", ["x"], ["t"])])
    for level in range(depth):
        other = branch([node("Neg", ["x"], [f"n{level}"])], f"n{level}")
        inner = branch([node("If", ["c"], [f"d{level}"], then_branch=inner, else_branch=other)], f"d{level}")
    return branches(inner, branch([node("Neg", ["x"], ["u"])], "u"))


HUGE = tensor(np.array([2**34]), "")
SHAPE_BOMB = [node("Constant", [], ["s"], value=HUGE)]
SQUARE = [
    node("Constant", [], ["side"], value=tensor(np.array([2**17]), "")),
    node("Concat", ["side", "side"], ["s"], axis=0),
]

INVALID: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no-outputs": (lambda: with_first(model(RELU), lambda m: m.graph.ClearField("output")), "no outputs"),
    "ir-99": (lambda: model(RELU, ir_version=99), "IR version 99 is unknown; supported: 1 to"),
    "ir-0": (lambda: with_first(model(RELU), lambda m: m.ClearField("ir_version")), "IR version 0"),
    "opset-99": (lambda: model(RELU, opsets={"": 99}), "opset 99 is unknown; supported: 1 to"),
    "opset-of-function": (lambda: with_first(chain(1), raise_opset), "opset 99"),
    "no-opset": (lambda: with_first(model(RELU), lambda m: m.ClearField("opset_import")), "opset_import"),
    "two-opsets": (lambda: model(RELU, opsets={"": 20, "ai.onnx": 7}), "opset of domain '' occurs twice"),
    "cycle": (
        lambda: model(
            [node("Add", ["x", "b"], ["a"], name="first"), node("Relu", ["a"], ["b"])], outputs=[info("b", FLOAT, None)]
        ),
        "input 'b' of node: name: first",
    ),
    "undefined-input": (lambda: model([node("Relu", ["q"], ["y"], name="relu")]), "input 'q' of node: name: relu"),
    "undefined-output": (lambda: model(RELU, outputs=[info("z", FLOAT, None)]), "Graph output 'z'"),
    "undefined-in-branch": (lambda: branches(branch([node("Relu", ["q"], ["t"])]), branch(RELU, "y")), "'q'"),
    "name-made-twice": (lambda: model([*RELU, node("Neg", ["x"], ["y"])]), "'y' has been used"),
    "input-twice": (lambda: model(RELU, [info("x", FLOAT, [1])] * 2), "'x' has been used"),
    "output-twice": (lambda: model(RELU, outputs=[info("y", FLOAT, None)] * 2), "graph output 'y' occurs twice"),
    "weight-twice": (lambda: model(RELU, weights=[heavy("w")] * 2), "initializer 'w' occurs twice"),
    "weight-made-again": (lambda: model([node("Add", ["x", "y"], ["y"])], weights=[heavy("y")]), "'y' has been used"),
    "constant-made-twice": (
        lambda: model([node("Constant", [], ["k"], value=heavy(""))] * 2 + RELU),
        "k",
    ),
    "unknown-operators": (
        lambda: model([node("Zip", ["x"], ["t"]), node("Attend", ["t"], ["y"])]),
        "unknown operators 'Attend', 'Zip'",
    ),
    "operator-newer-than-the-opset": (lambda: model([node("Gelu", ["x"], ["y"])], opsets={"": 18}), "Gelu"),
    "unknown-attribute": (lambda: model([node("Relu", ["x"], ["y"], gain=2)]), "Unrecognized attribute: gain"),
    "types-differ": (
        lambda: model([node("Add", ["x", "i"], ["y"], name="sum")], [info("x", FLOAT, [1]), info("i", INT64, [1])]),
        "node name: sum",
    ),
    "not-utf8": (lambda: respelled(model(RELU), b"relu", b"r\xffl\xfe"), "not UTF-8"),
    "control-characters": (lambda: model([node("\x1b[31mRelu\n", ["x"], ["y"])]), "unknown operators"),
    "long-name": (lambda: model([node("A" * 100_000, ["x"], ["y"])]), "unknown operators"),
    "negative-input": (lambda: model(RELU, [info("x", FLOAT, [-1, 3])]), "tensor 'x' has a negative dimension"),
    "negative-output": (lambda: claimed_output([2, -3]), "tensor 'y' has a negative dimension"),
    "large-output": (lambda: claimed_output([2**40]), "tensor 'y' would take"),
    "rank-100": (lambda: model(RELU, [info("x", FLOAT, [1] * 100)]), "tensor 'x' has 100 dimensions"),
    "input-of-type-77": (lambda: model(RELU, [info("x", 77, [1])]), "unknown data type 77"),
    "weight-of-type-77": (lambda: weight([1], 77), "initializer 'w' has the unknown data type 77"),
    "weight-of-no-type": (lambda: weight([1], 0), "initializer 'w' has no data type"),
    "weight-too-short": (lambda: weight([1000, 3], raw_data=bytes(24)), "shape 1000x3 needs 12000 bytes, got 24"),
    "weight-too-long": (lambda: weight([], raw_data=bytes(8)), "shape scalar needs 4 bytes, got 8"),
    "weight-without-data": (lambda: weight([2**20, 2**20]), "initializer 'w' would take"),
    "weight-of-negative-size": (lambda: weight([-1, 3], raw_data=bytes(12)), "negative dimension (-1)"),
    "weight-of-rank-100000": (lambda: weight([1] * 100_000, raw_data=bytes(4)), "has 100000 dimensions"),
    "weight-in-wrong-field": (lambda: weight([2], int64_data=[1, 2]), "needs 2 values, got 2"),
    "weight-in-two-fields": (lambda: weight([1], raw_data=bytes(4), float_data=[1.0]), "initializer 'w'"),
    "sparse": (lambda: with_first(model(RELU), lambda m: m.graph.sparse_initializer.add()), "sparse"),
    "functions-recur": (lambda: called(function("F", [call("F", "a", "b")])), "function 'F' of domain 'edgeattn'"),
    "functions-recur-in-a-ring": (
        lambda: called(function("F", [call("G", "a", "b")]), function("G", [call("F", "a", "b")])),
        "calls itself",
    ),
    "functions-recur-in-a-branch": (
        lambda: called(
            function(
                "F",
                [node("If", ["a"], ["b"], then_branch=branch([call("F", "a", "t")]), else_branch=branch(RELU, "y"))],
            )
        ),
        "calls itself",
    ),
    "functions-3000-deep": (lambda: chain(3000), "more than 64 deep"),
    "functions-that-double": (lambda: chain(40, calls=2), "functions expanded"),
    "function-twice": (lambda: called(*chain(1).functions, *chain(1).functions), "'edgeattn::f0::' occurs twice"),
    "function-without-output": (lambda: called(function("F", [node("Relu", ["a"], ["c"])])), "not make its output 'b'"),
    "too-many-nodes": (lambda: model([*RELU, *[node("Relu", ["x"], [""])] * MAX_NODES]), f"at most {MAX_NODES}"),
    "subgraphs-20-deep": (lambda: nested_ifs(20), "subgraphs deep"),
    "shape-bomb": (lambda: shaped(SHAPE_BOMB), "'filled' would take 68719476736 bytes"),
    "computed-shape-bomb": (lambda: shaped(SQUARE), "'filled' would take 68719476736 bytes"),
    "shape-bomb-in-a-branch": (
        lambda: branches(branch([*shaped(SHAPE_BOMB).graph.node], "y"), branch([node("Neg", ["x"], ["u"])], "u")),
        "'filled' would take",
    ),
    "shape-bomb-in-a-function": (
        lambda: called(function("F", shaped(SHAPE_BOMB).graph.node, ["x"], ["y"])),
        "would take 68719476736 bytes",
    ),
    "shape-bomb-that-lies": (
        lambda: with_first(shaped(SHAPE_BOMB), lambda m: m.graph.value_info.append(info("filled", FLOAT, [1]))),
        "'filled' would take",
    ),
    "large-tile": (
        lambda: model([node("Tile", ["x", "r"], ["y"])], weights=[tensor(np.array([2**20, 2**20]), "r")]),
        "tensor 'y' would take",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_model_is_refused_with_the_place(name: str, tmp_path: Path) -> None:
    make, reason = INVALID[name]
    assert reason in refused(write(make(), tmp_path / "m.onnx"))


def test_shapes_that_grow_without_end_are_stopped_by_the_limit_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxchild, "MEMORY_BYTES", 2**28)
    steps = [node("Shape", ["x"], ["s0"])]
    steps += [node("Concat", [f"s{index}"] * 2, [f"s{index + 1}"], axis=0) for index in range(30)]
    proto = shaped([*steps, node("Identity", ["s30"], ["s"])])
    assert "more than 256 MiB of memory" in refused(write(proto, tmp_path / "m.onnx"))


def test_checks_that_do_not_end_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxchild, "TIMEOUT_S", 0.001)
    assert "takes more than" in refused(write(conv(), tmp_path / "m.onnx"))


def test_crash_of_onnx_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(stat.S_IRWXU)
    monkeypatch.setattr(onnxchild.sys, "executable", str(crashing))
    assert "crashes onnx (exit code -11)" in refused(write(conv(), tmp_path / "m.onnx"))
