"""INT8 in a network whose rest is float16. Oracle: integers by numpy in float64, and the graph in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.precision.fp16 import Lowered, lower
from edgeattn.tolerance import tolerance_for
from tests.precision.lowered import assert_close, by_op, checked, distance, dtypes, graph, normal, rtx_products, run

QUANTISED = {"QuantizeLinear", "DequantizeLinear"}


def convolutions(scales: tuple[float, ...] = (0.011, 0.013), weight: float = 0.007, opset: int = 19) -> Graph:
    """ReLUs and quantised 3x3 convolutions in a chain over (1, 8, 6, 7), weights stored in INT8 for each channel."""
    rng, nodes, weights, x = np.random.default_rng(0), [], {}, "x"
    for index, scale in enumerate(scales):
        names = [f"{name}{index}" for name in ("s", "z", "w", "ws", "wz")]
        codes = rng.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8)
        channel = (weight * (0.5 + rng.random(8)) / 8).astype(np.float32)
        arrays = np.float32(scale), np.int8(0), codes, channel, np.zeros(8, np.int8)
        weights |= {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
        s, z, w, ws, wz = names
        nodes += [
            helper.make_node("Relu", [x], [f"r{index}"], name=f"relu{index}"),
            helper.make_node("QuantizeLinear", [f"r{index}", s, z], [f"q{index}"], name=f"quantize{index}"),
            helper.make_node("DequantizeLinear", [f"q{index}", s, z], [f"d{index}"], name=f"dequantize{index}"),
            helper.make_node("DequantizeLinear", [w, ws, wz], [f"dw{index}"], axis=0, name=f"weights{index}"),
            helper.make_node("Conv", [f"d{index}", f"dw{index}"], [f"c{index}"], pads=[1] * 4, name=f"conv{index}"),
        ]
        x = f"c{index}"
    shape = [1, 8, 6, 7]
    proto = helper.make_graph(
        [*nodes, helper.make_node("Tanh", [x], ["y"], name="tanh")],
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return Graph(ir.from_proto(model))


@pytest.mark.parametrize("opset", [13, 19, 21, 23])
def test_quantised_layers_take_and_give_float16(opset: int) -> None:
    source = convolutions(opset=opset)
    lowered = checked(source)
    assert lowered.notes == ()
    assert lowered.graph.op_counts()["Cast"] == 2
    assert by_op(lowered)["Conv"] == by_op(lowered)["DequantizeLinear"] == {"float16"}
    assert_close(lowered, source, {"x": normal(1, 8, 6, 7)})


@pytest.mark.parametrize("scales", [(0.011, 0.013), (1.25 * 2.0**-18, 0.013)], ids=["ordinary", "subnormal"])
def test_codes_are_those_of_the_scales_that_dequantise_them(scales: tuple[float, ...]) -> None:
    """Each code is the nearest to x / s with the very s by which it is multiplied again: none is off by one."""
    source = convolutions(scales)
    source.model.graph.remove(next(node for node in source.nodes() if node.name == "relu0"), safe=False)
    source.model.graph[0].replace_input_with(0, source.model.graph.inputs[0])
    lowered = lower(source, "float16").graph
    assert dtypes(Lowered(lowered, ()))["dequantize0"] == "float16"
    found = run_as_written(lowered, every=True)({"x": 100 * np.float32(scales[0]) * normal(1, 8, 6, 7)})
    for node in [node for node in lowered.nodes() if node.op_type == "QuantizeLinear"]:
        x, scale = (found[node.inputs[0].name].astype(np.float64), node.inputs[1].const_value.numpy())
        assert scale.dtype == np.float16
        (after,) = node.outputs[0].consumers()
        np.testing.assert_array_equal(after.inputs[1].const_value.numpy(), scale)
        codes = np.clip(np.rint(x / scale.astype(np.float64)), -128, 127)
        np.testing.assert_array_equal(found[node.outputs[0].name], codes)


def test_int8_with_float16_is_as_close_as_int8_with_float32() -> None:
    """The rest's precision adds little to what INT8 itself loses."""
    source, feeds = convolutions(), {"x": normal(1, 8, 6, 7)}
    plain = {name: value.const_value.numpy() for name, value in source.model.graph.initializers.items()}
    x = feeds["x"].astype(np.float64)

    for index in range(2):
        weights = plain[f"w{index}"] * plain[f"ws{index}"].astype(np.float64).reshape(8, 1, 1, 1)
        x = torch.conv2d(torch.from_numpy(np.maximum(x, 0)), torch.from_numpy(weights), padding=1).numpy()
    truth = np.tanh(x)
    losses = [distance(run(each, feeds)["y"], truth) for each in (source, lower(source, "float16").graph)]
    assert losses[1] <= 1.1 * losses[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrt_rtx_builds_the_mixed_graph(dtype: str) -> None:
    assert rtx_products(lower(convolutions(), dtype).graph) == {dtype}


@pytest.mark.parametrize(
    ("source", "keep"),
    [
        (convolutions((1e-6, 0.013)), ()),
        (convolutions((0.011, 0.013)), ["conv0"]),
        (convolutions((0.011, 0.013)), ["weights0"]),
    ],
    ids=["scale that vanishes", "convolution kept", "weights kept"],
)
def test_where_one_part_of_a_quantised_layer_stays_all_of_it_does(source: Graph, keep: list[str]) -> None:
    lowered = checked(source, keep=keep)
    found = dtypes(lowered)
    assert {found[name] for name in ("dequantize0", "weights0", "conv0")} == {"float32"}
    assert {found[name] for name in ("dequantize1", "weights1", "conv1")} == {"float16"}
    assert_close(lowered, source, {"x": normal(1, 8, 6, 7)})


def test_layers_that_share_an_input_stay_together() -> None:
    source = graph(
        """g (float[1,2,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] z)
        <float s = {0.1}, int8 n = {0}, int8[2,3,1,1] wq = {1,2,3,4,5,6}, int8[3,2,1,1] vq = {7,8,9,1,2,3},
         float ws = {0.01}, float vs = {0.000001}>
        { r = Relu(x)  q = QuantizeLinear(r, s, n)  d = DequantizeLinear(q, s, n)  dw = DequantizeLinear(wq, ws, n)
          w = Transpose<perm=[1,0,2,3]>(dw)  c = Conv(d, w)  y = Relu(c)  v = DequantizeLinear(vq, vs, n)
          e = Conv(d, v)  z = Sigmoid(e) }""",
        opset=19,
    )
    lowered = checked(source)
    assert by_op(lowered)["Conv"] == by_op(lowered)["DequantizeLinear"] == {"float32"}
    assert by_op(lowered)["Relu"] == {"float16"}
    assert "next to quantisation that float16 cannot carry" in lowered.notes[0]
    assert_close(lowered, source, {"x": normal(1, 2, 4, 4)})


@pytest.mark.parametrize(
    "quantise",
    ["q, s, n = DynamicQuantizeLinear(r)", "q = com.microsoft.QuantizeLinear(r, s, n)"],
    ids=["dynamic", "of ONNX Runtime"],
)
def test_quantisers_that_know_no_float16_stay_float32(quantise: str) -> None:
    given = "" if "Dynamic" in quantise else "<float s = {0.1}, uint8 n = {3}>"
    source = graph(
        f"""g (float[2,4] x) => (float[2,4] y) {given}
        {{ r = Relu(x)  {quantise}  d = DequantizeLinear(q, s, n)  t = Tanh(d)  y = Sigmoid(t) }}""",
        opset=19,
        domains=', "com.microsoft": 1',
    )
    lowered = lower(source, "float16")
    assert by_op(lowered)["DequantizeLinear"] == by_op(lowered)["Tanh"] == {"float32"}
    assert by_op(lowered)["Sigmoid"] == {"float16"}
    feeds = {"x": normal(2, 4)}
    assert distance(run(lowered.graph, feeds)["y"], run(source, feeds)["y"]) <= tolerance_for("float16").floor
