"""Weights in files beside the model: read, hashed, and refused if they lie elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, helper

from edgeattn.graph import Graph
from edgeattn.validate.reading import read_model
from tests.protos import RELU, VALID, branch, called, conv, function, heavy, model, node
from tests.validate.refusals import refused, write


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


def test_hash_is_of_the_file_and_then_its_external_data(tmp_path: Path) -> None:
    path = write(conv(), tmp_path / "inside.onnx")
    assert read_model(path)[1] == hashlib.sha256(path.read_bytes()).hexdigest()
    path = saved_outside(tmp_path, "w.data")
    both = path.read_bytes() + (tmp_path / "w.data").read_bytes()
    assert read_model(path)[1] == hashlib.sha256(both).hexdigest()
    with (tmp_path / "w.data").open("r+b") as stream:
        stream.write(b"\x01")
    assert read_model(path)[1] != hashlib.sha256(both).hexdigest()


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
