"""A Graph says what an ONNX model holds, and saving it loses nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeattn.errors import EdgeAttnError, InputError, UnsupportedError
from edgeattn.graph import Graph, dtype_name, load_graph, save_graph, with_profile
from edgeattn.tensors import ShapeRange
from tests.protos import FLOAT, VALID, call, conv, function, info, model, node


def of(proto: onnx.ModelProto) -> Graph:
    return Graph(ir.from_proto(proto))


def outputs_of(data: bytes, **feeds: np.ndarray) -> list[np.ndarray]:
    return list(ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds))


def test_inputs_are_what_a_caller_feeds() -> None:
    old = of(conv(ir_version=3, opset=7, as_inputs=True))
    assert [str(spec) for spec in old.inputs] == ["x: float32 batchx3x8x8"]
    assert [str(spec) for spec in of(model([node("Relu", ["x"], ["y"])])).outputs] == ["y: float32 unknown rank"]


def test_unnamed_dynamic_dimensions_get_a_name() -> None:
    graph = of(model([node("Relu", ["x"], ["y"])], [info("x", FLOAT, [None, 3, None])]))
    assert graph.inputs[0].shape == ("dim_0", 3, "dim_2")


def test_nodes_of_branches_and_functions_are_counted() -> None:
    graph = of(VALID["if"]())
    assert graph.op_counts() == {"If": 1, "Relu": 1, "Neg": 1}
    graph = of(VALID["function"]())
    assert graph.op_counts() == {"edgeattn::Gate": 1, "Sigmoid": 1, "Mul": 1}


def test_weights_of_branches_are_counted() -> None:
    assert of(conv()).weight_bytes() == {"float32": (16 * 3 * 3 * 3 + 16) * 4}
    assert of(conv()).parameter_count == 16 * 3 * 3 * 3 + 16
    graph = of(VALID["if-with-large-weights"]())
    assert graph.weight_bytes() == {"float32": 2 * 512 * 2 * 3 * 4}
    small = of(VALID["dtypes"]())
    assert list(small.weight_bytes())[:2] == ["float32", "complex64"]


@pytest.mark.parametrize("name", ["conv", "function", "if", "dtypes"])
def test_saved_graph_computes_the_same(name: str, tmp_path: Path) -> None:
    proto = VALID[name]()
    save_graph(of(proto), tmp_path / "m.onnx")
    graph = load_graph(str(tmp_path / "m.onnx"))
    assert graph.sha256 == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8) if name == "conv" else (2, 3)).astype(np.float32)
    feeds = {"x": x, **({"c": np.array(False)} if name == "if" else {})}
    for before, after in zip(
        outputs_of(proto.SerializeToString(), **feeds), outputs_of(graph.serialized, **feeds), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_saving_again_changes_no_byte(tmp_path: Path) -> None:
    save_graph(of(conv()), tmp_path / "a.onnx")
    save_graph(load_graph(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    save_graph(load_graph(tmp_path / "b.onnx"), tmp_path / "c.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()


def test_external_weights_are_saved_inside(tmp_path: Path) -> None:
    proto = conv()
    inside = of(proto).serialized
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    (tmp_path / "saved").mkdir()
    save_graph(load_graph(tmp_path / "m.onnx"), tmp_path / "saved" / "m.onnx")
    x = np.ones((1, 3, 8, 8), np.float32)
    moved = (tmp_path / "saved" / "m.onnx").read_bytes()
    np.testing.assert_array_equal(outputs_of(inside, x=x)[0], outputs_of(moved, x=x)[0])
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"short")], ids=["gone", "short"])
def test_weights_that_went_after_loading_are_an_error_of_ours(change: Callable[[Path], object], tmp_path: Path) -> None:
    onnx.save(conv(), tmp_path / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    graph = load_graph(tmp_path / "m.onnx")
    change(tmp_path / "w.data")
    with pytest.raises(InputError, match=r"cannot serialise .*m.onnx"):
        save_graph(graph, tmp_path / "n.onnx")


def test_graph_beyond_protobuf_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    graph = of(conv())
    huge = ir.ExternalTensor("none.data", 0, None, ir.DataType.FLOAT, shape=ir.Shape([2**30]), name="w")
    graph.model.graph.initializers["w"].const_value = huge
    with pytest.raises(UnsupportedError, match="2 GiB"):
        save_graph(graph, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_graph_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(EdgeAttnError, match="cannot write"):
        save_graph(of(conv()), tmp_path / "none" / "m.onnx")


def test_copy_is_independent() -> None:
    graph = of(VALID["function"]())
    before = graph.proto().SerializeToString(deterministic=True)
    copy = graph.copy()
    for made in copy.nodes():
        made.op_type = "Changed"
    copy.model.graph.inputs[0].shape = ir.Shape([1])
    assert graph.proto().SerializeToString(deterministic=True) == before


def test_profile_fixes_what_it_leaves_no_choice() -> None:
    graph = of(model([node("Relu", ["x"], ["y"])], [info("x", FLOAT, ["batch", 3, "h", "w"])]))
    fixed = with_profile(graph, {"x": ShapeRange((1, 3, 8, 4), (2, 3, 8, 4), (4, 3, 8, 4))})
    assert fixed.inputs[0].shape == ("batch", 3, 8, 4)
    assert graph.inputs[0].shape == ("batch", 3, "h", "w")


def test_profile_gives_an_unknown_rank_its_rank() -> None:
    graph = of(VALID["unknown-rank"]())
    fixed = with_profile(graph, {"x": ShapeRange((1, 3), (2, 3), (4, 3))})
    assert fixed.inputs[0].shape == ("dim_0", 3)


def test_dtypes_beyond_the_table_keep_onnx_names() -> None:
    assert [dtype_name(ir.DataType(code)) for code in (1, 16, 22, 8)] == ["float32", "bfloat16", "int4", "string"]
    assert dtype_name(None) == "unknown"


def test_opset_is_the_default_domains() -> None:
    twice = function("F", [call("G", "a", "b")])
    graph = of(model([node("Relu", ["x"], ["y"])], functions=[twice], opsets={"edgeattn": 1, "": 17}))
    assert graph.opset == 17
