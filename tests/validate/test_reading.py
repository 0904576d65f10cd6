"""Reading ONNX files: what is valid comes in whole, what is not is refused in one line."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper

from edgeattn.errors import InputError
from edgeattn.graph import Graph
from edgeattn.validate import inference, onnxchild
from edgeattn.validate.reading import MAX_NODES, read_model
from tests.protos import (
    FLOAT,
    INT64,
    VALID,
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


def write(proto: onnx.ModelProto | bytes, path: Path) -> Path:
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def read(proto: onnx.ModelProto | bytes, folder: Path) -> Graph:
    path = write(proto, folder / "m.onnx")
    loaded, digest = read_model(path)
    return Graph(loaded, path, digest)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_model(path)
    message = str(caught.value)
    assert message.isprintable(), "one line, and nothing that a terminal obeys"
    assert str(path) in message
    assert len(message) < 800
    return message


# Valid models


@pytest.mark.parametrize("name", VALID)
def test_valid_model_computes_after_reading_what_it_computed_before(name: str, tmp_path: Path) -> None:
    import onnxruntime as ort

    proto = VALID[name]()
    images = any(made.op_type == "Conv" for made in proto.graph.node)
    x = np.random.default_rng(1).standard_normal((3, 3, 8, 8) if images else (2, 3)).astype(np.float32)
    feeds = {"x": x, "c": np.array(True)}
    results = []
    for data in (proto.SerializeToString(), read(proto, tmp_path).serialized):
        session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        results += session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
    np.testing.assert_array_equal(*results)


def test_operator_that_nobody_knows_is_left_to_the_backends(tmp_path: Path) -> None:
    nodes = [node("Fancy", ["x"], ["t"], domain="their.ops"), node("Relu", ["t"], ["y"])]
    stated = [info("t", FLOAT, [5, 7])]
    graph = read(model(nodes, value_info=stated, opsets={"": 20, "their.ops": 1}), tmp_path)
    assert [str(spec) for spec in graph.outputs] == ["y: float32 5x7"]


@pytest.mark.parametrize("name", ["conv", "function", "if", "constant", "untyped-output"])
def test_every_tensor_of_the_graph_carries_its_type(name: str, tmp_path: Path) -> None:
    graph = read(VALID[name](), tmp_path)
    for made in graph.model.graph:
        for value in made.outputs:
            assert value.dtype is not None, value
            assert value.shape is not None, value


def test_inferred_shapes_are_refined_by_what_the_file_states(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "s"], ["t"]), node("Relu", ["t"], ["y"])]
    inputs = [info("x", FLOAT, ["batch", 3]), info("s", INT64, [2])]
    graph = read(model(nodes, inputs, value_info=[info("t", FLOAT, ["batch", 7])]), tmp_path)
    shapes = {value.name: str(value.shape) for made in graph.model.graph for value in made.outputs}
    assert shapes["t"] == "[batch,7]"


def test_wrong_claim_about_a_shape_is_not_believed(tmp_path: Path) -> None:
    graph = read(VALID["stale-value-info"](), tmp_path)
    assert [value.shape for made in graph.model.graph for value in made.outputs] == [[2, 3], [2, 3]]


def test_branch_that_is_never_taken_may_make_no_sense(tmp_path: Path) -> None:
    squeezed = [node("Pad", ["x", "pads"], ["t"])]
    pads = tensor(np.array([0, 0, -5, 0]), "pads")
    graph = read(branches(branch(squeezed, weights=[pads]), branch([node("Neg", ["x"], ["u"])], "u")), tmp_path)
    assert graph.op_counts() == {"If": 1, "Pad": 1, "Neg": 1}


def test_onnx_sees_no_large_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def record(checked: bytes, inferred: bytes) -> bytes:
        seen.append(len(checked) + len(inferred))
        return onnxchild.check_and_infer(checked, inferred)

    monkeypatch.setattr(inference, "check_and_infer", record)
    wide = tensor(np.ones((2**20, 2, 3), np.float32), "w")
    constant = node("Constant", [], ["k"], value=tensor(np.ones((2**18, 2, 3), np.float32)))
    read(model([node("Add", ["x", "w"], ["t"]), constant, node("Add", ["t", "k"], ["y"])], weights=[wide]), tmp_path)
    assert len(seen) == 1
    assert seen[0] < 2000


# Hashes


def test_hash_is_of_the_file_and_then_its_external_data(tmp_path: Path) -> None:
    path = write(conv(), tmp_path / "inside.onnx")
    assert read_model(path)[1] == hashlib.sha256(path.read_bytes()).hexdigest()
    path = saved_outside(tmp_path, "w.data")
    both = path.read_bytes() + (tmp_path / "w.data").read_bytes()
    assert read_model(path)[1] == hashlib.sha256(both).hexdigest()
    with (tmp_path / "w.data").open("r+b") as stream:
        stream.write(b"\x01")
    assert read_model(path)[1] != hashlib.sha256(both).hexdigest()


# Files that are no models


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "pipe": (os.mkfifo, "pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "loop": (lambda path: path.symlink_to(path), "symbolic links"),
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("<html>\n404 Not Found</html>\n"), "text"),
    "garbage": (lambda path: path.write_bytes(bytes(range(255, 0, -1))), "corrupt"),
    "truncated": (lambda path: path.write_bytes(conv().SerializeToString()[:-100]), "truncated"),
    "git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"), "lfs pull"),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04abc"), "edgeattn export"),
    "no-graph": (lambda path: path.write_bytes(onnx.ModelProto(ir_version=9).SerializeToString()), "no graph"),
    "3-GiB": (lambda path: os.truncate(write(b"\x08", path), 3 << 30), "expected at most 2147483647"),
    "deep": (lambda path: path.write_bytes(nested_bytes(3000)), "corrupt"),
}


def nested_bytes(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on, without the messages that no parser builds."""

    def field(number: int, data: bytes) -> bytes:
        size, head = len(data), bytes([number << 3 | 2])
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return head + bytes([size]) + data

    data = b""
    for _ in range(depth):
        data = field(1, field(5, field(6, data)))
    return bytes([8, 10]) + field(7, data)


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_no_model_is_refused(name: str, tmp_path: Path) -> None:
    make, reason = FILES[name]
    path = tmp_path / "m.onnx"
    make(path)
    assert reason in refused(path)


def test_file_of_countless_small_fields_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeattn.validate.protos.MAX_FIELDS", 10_000)
    path = write(onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto()] * 10_000)), tmp_path / "m.onnx")
    monkeypatch.setattr(onnx.ModelProto, "FromString", None)
    assert "more than 10000 fields" in refused(path)


def test_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        refused(Path("s"))


def test_name_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(InputError, match="null"):
        read_model(Path("a\0b.onnx"))


# Models that are not valid


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


RELU = [node("Relu", ["x"], ["y"], name="relu")]
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


# External data


def saved_outside(folder: Path, location: str, **entries: str) -> Path:
    """Write a model whose weight `w` (1728 bytes) lies in a file; `entries` change what the model says of it."""
    proto = conv()
    held = proto.graph.initializer[0]
    data = held.raw_data
    external_data_helper.set_external_data(held, location, offset=0, length=len(data))
    for entry in held.external_data:
        entry.value = entries.get(entry.key, entry.value)
    held.ClearField("raw_data")
    target = folder / location
    if not target.exists() and ".." not in location and not location.startswith("/"):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    return write(proto, folder / "m.onnx")


@pytest.mark.parametrize("location", ["w.data", "sub/w.data", "./w.data", "w data ü.bin"])
def test_external_data_beside_the_model_is_read(location: str, tmp_path: Path) -> None:
    path = saved_outside(tmp_path, location)
    loaded, digest = read_model(path)
    expected = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
    assert loaded.graph.initializers["w"].dtype == expected
    inside = onnx.load(path)
    np.testing.assert_array_equal(
        loaded.graph.initializers["w"].const_value.numpy(), onnx.numpy_helper.to_array(inside.graph.initializer[0])
    )
    assert Graph(loaded, path, digest).serialized


def test_external_data_is_found_from_another_folder_and_through_a_linked_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    saved_outside(tmp_path / "real", "w.data")
    monkeypatch.chdir(tmp_path / "real")
    for path in (Path("m.onnx"), tmp_path / "link" / "m.onnx"):
        loaded, digest = read_model(path)
        monkeypatch.chdir("/")
        assert Graph(loaded, path, digest).serialized
        monkeypatch.chdir(tmp_path / "real")


def test_external_data_of_a_branch_is_read(tmp_path: Path) -> None:
    proto = VALID["if-with-large-weights"]()
    onnx.save(proto, tmp_path / "m.onnx")
    held = proto.graph.node[0].attribute[0].g.initializer[0]
    (tmp_path / "w.data").write_bytes(held.raw_data)
    external_data_helper.set_external_data(held, "w.data")
    held.ClearField("raw_data")
    write(proto, tmp_path / "n.onnx")
    inside, outside = (read_model(tmp_path / name)[0] for name in ("m.onnx", "n.onnx"))
    assert Graph(inside).serialized == Graph(outside).serialized


def secret(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}-secret"
    path.write_bytes(bytes(4096))
    return path


def with_location(folder: Path, location: str) -> Path:
    path = saved_outside(folder, "gone.data")
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    return write(proto, path)


def prepared(folder: Path, make: Callable[[Path], object]) -> Path:
    make(folder / "w.data")
    return saved_outside(folder, "w.data")


def linked_folder(folder: Path) -> Path:
    (folder / "real").mkdir()
    (folder / "sub").symlink_to("real")
    return saved_outside(folder, "sub/w.data")


def two_locations(folder: Path) -> Path:
    path = saved_outside(folder, "w.data")
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="location", value="../x")
    return write(proto, path)


OUTSIDE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parent": (lambda at: saved_outside(at, f"../{secret(at).name}"), "outside the model's folder"),
    "parent-and-back": (lambda at: saved_outside(at, f"sub/../../{at.name}/w.data"), "outside the model's folder"),
    "absolute": (lambda at: saved_outside(at, str(secret(at))), "outside the model's folder"),
    "nowhere": (lambda at: with_location(at, ""), "outside the model's folder"),
    "here": (lambda at: with_location(at, "."), "outside the model's folder"),
    "zero-byte": (lambda at: with_location(at, "w\0.data"), "outside the model's folder"),
    "missing": (lambda at: with_location(at, "none.data"), "cannot be read"),
    "file-as-folder": (lambda at: with_location(at, "m.onnx/w.data"), "cannot be read"),
    "long": (lambda at: with_location(at, "a" * 5000), "cannot be read"),
    "folder": (lambda at: prepared(at, lambda path: path.mkdir()), "not a regular file"),
    "pipe": (lambda at: prepared(at, os.mkfifo), "not a regular file"),
    "link": (lambda at: prepared(at, lambda path: path.symlink_to(secret(at))), "symbolic link 'w.data'"),
    "link-to-a-neighbour": (
        lambda at: prepared(at, lambda path: path.symlink_to(write(bytes(4096), at / "other"))),
        "symbolic link",
    ),
    "linked-folder": (linked_folder, "symbolic link 'sub'"),
    "hard-link": (lambda at: prepared(at, lambda path: os.link(secret(at), path)), "hard link"),
    "truncated": (lambda at: prepared(at, lambda path: path.write_bytes(bytes(100))), "which has 100 bytes"),
    "offset-past-the-end": (lambda at: saved_outside(at, "w.data", offset="4096"), "ends at byte 5824"),
    "negative-offset": (lambda at: saved_outside(at, "w.data", offset="-4"), "'-4'; expected a number of bytes"),
    "negative-length": (lambda at: saved_outside(at, "w.data", length="-4"), "'-4'; expected a number of bytes"),
    "endless-number": (lambda at: saved_outside(at, "w.data", offset="9" * 9999), "expected a number of bytes"),
    "foreign-digits": (lambda at: saved_outside(at, "w.data", offset="٣"), "expected a number of bytes"),
    "other-length": (lambda at: saved_outside(at, "w.data", length="4"), "needs 1728 bytes, its external data has 4"),
    "two-locations": (two_locations, "in two ways"),
    "20-GiB": (lambda at: prepared(at, lambda path: os.truncate(write(b"", path), 20 << 30)), "at most"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_external_data_from_elsewhere_is_refused_with_its_path(name: str, tmp_path: Path) -> None:
    make, reason = OUTSIDE[name]
    message = refused(make(tmp_path))
    assert reason in message
    assert "initializer 'w'" in message


@pytest.mark.parametrize("where", ["attribute", "function"])
def test_external_data_is_for_initializers_of_the_graph_only(where: str, tmp_path: Path) -> None:
    held = heavy("w")
    external_data_helper.set_external_data(held, "w.data")
    held.ClearField("raw_data")
    if where == "attribute":
        proto = model([node("Constant", [], ["k"], value=held), *RELU])
    else:
        then, other = branch([node("Add", ["a", "w"], ["t"])], weights=[held]), branch([node("Neg", ["a"], ["u"])], "u")
        proto = called(function("F", [node("If", ["a"], ["b"], then_branch=then, else_branch=other)]))
    assert "has external data" in refused(write(proto, tmp_path / "m.onnx"))


# Any bytes


SEEDS = [VALID[name]().SerializeToString() for name in ("function", "if", "dtypes", "unknown-rank")]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4),
    keep=st.floats(0, 1),
)
def test_damaged_file_loads_or_is_refused(
    seed: bytes, flips: list[tuple[float, int]], keep: float, tmp_path: Path
) -> None:
    data = bytearray(seed)
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    data = data[: round(keep * len(data))] if not flips else data
    path = write(bytes(data), tmp_path / "m.onnx")
    with contextlib.suppress(InputError):
        loaded, digest = read_model(path)
        assert Graph(loaded, path, digest).copy().serialized
