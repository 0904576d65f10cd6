"""Reading ONNX files: what is valid comes in whole, what is not is refused in one line."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeattn.errors import InputError
from edgeattn.graph import Graph
from edgeattn.validate import inference, onnxchild
from edgeattn.validate.reading import read_model
from tests.protos import FLOAT, INT64, VALID, branch, branches, conv, info, model, node, tensor
from tests.validate.refusals import refused, write


def read(proto: onnx.ModelProto | bytes, folder: Path) -> Graph:
    path = write(proto, folder / "m.onnx")
    loaded, digest = read_model(path)
    return Graph(loaded, path, digest)


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
