"""A plan and its sidecar: a pair that fits, or a refusal before anything is deserialised."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeattn import engine as engines
from edgeattn import files
from edgeattn.engine import (
    Engine,
    Precision,
    Sidecar,
    read_engine,
    read_sidecar,
    require_match,
    sidecar_path,
    write_engine,
)
from edgeattn.errors import EngineMismatchError, GateError, InputError
from edgeattn.tensors import ShapeRange, TensorSpec

SIDECAR = Sidecar(
    backend="onnxruntime",
    backend_version="1.2.3",
    inputs=(
        TensorSpec("x", "float32", ("batch", 3, 7, 5)),
        TensorSpec("s", "int64", ()),
        TensorSpec("u", "bool", None),
    ),
    outputs=(TensorSpec("y", "float16", ("batch", 10)),),
    profile={
        "x": ShapeRange((1, 3, 7, 5), (2, 3, 7, 5), (4, 3, 7, 5)),
        "s": ShapeRange((), (), ()),
        "u": ShapeRange((1,), (1,), (2,)),
    },
    precision=Precision("float16", {"float16": 12}, {"float32": 3}, ("computed in float32",)),
    targets=("cpu",),
    platform="linux-x86_64",
    rebuild="edgeattn build m.onnx --fp16",
)


def made(plan: bytes, **changes: Any) -> Engine:
    return Engine(plan, dataclasses.replace(SIDECAR, **changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.engine"


def test_engine_reads_back_what_was_written(path: Path) -> None:
    written = write_engine(
        made(b"plan", graph={"sha256": "ü"}),
        path,
        lambda engine: dataclasses.replace(engine.sidecar, verified={"ok": 1}),
    )
    assert read_engine(path) == Engine(b"plan", written)
    assert read_sidecar(str(path)) == written
    expected = dataclasses.replace(
        SIDECAR, graph={"sha256": "ü"}, verified={"ok": 1}, plan_sha256=files.sha256_file(path), plan_bytes=4
    )
    assert written == expected


def test_plan_is_written_as_the_backend_made_it(path: Path) -> None:
    write_engine(made(b"\0clean plan"), path)
    assert path.read_bytes() == b"\0clean plan"
    assert sorted(item.name for item in path.parent.iterdir()) == ["m.engine", "m.engine.json"]


def test_engine_that_fails_its_check_leaves_the_old_pair(path: Path) -> None:
    old = write_engine(made(b"old"), path)

    def fail(engine: Engine) -> Sidecar:
        assert engine.plan == b"new"
        raise GateError("not the same numbers")

    with pytest.raises(GateError):
        write_engine(made(b"new"), path, fail)
    assert read_engine(path) == Engine(b"old", old)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_whenever_the_writer_dies_plan_and_sidecar_fit(path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    write_engine(made(b"old", rebuild="old"), path)
    replace, done = os.replace, []

    def dies(source: Path, target: Path) -> None:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    if steps < 3:
        with pytest.raises(KeyboardInterrupt):
            write_engine(made(b"new", rebuild="new"), path)
    else:
        write_engine(made(b"new", rebuild="new"), path)
    engine = read_engine(path)
    assert engine.plan == (b"old" if steps < 2 else b"new")
    assert engine.sidecar.rebuild == engine.plan.decode()
    monkeypatch.undo()
    write_engine(made(b"newer", rebuild="newer"), path)
    assert read_sidecar(path).rebuild == "newer"
    assert "previous" not in json.loads(sidecar_path(path).read_text())


def test_writer_that_dies_twice_still_leaves_a_pair(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engine(made(b"old", rebuild="old"), path)
    replace = os.replace

    def only_sidecars(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", only_sidecars)
    for plan in (b"new", b"newer"):
        with pytest.raises(KeyboardInterrupt):
            write_engine(made(plan), path)
    assert read_sidecar(path).rebuild == "old"


@pytest.mark.parametrize("change", [b"plam", b"pla", b"plan ", b""])
def test_changed_plan_is_refused_unless_trusted(path: Path, change: bytes) -> None:
    write_engine(made(b"plan"), path)
    path.write_bytes(change)
    for read in (read_engine, read_sidecar):
        with pytest.raises(InputError, match=r"SHA-256 differs.*--trust"):
            read(path)
    assert read_engine(path, trust=True).plan == change


def test_plan_that_is_swapped_while_it_is_read_is_not_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engine(made(b"plan"), path)
    parse = json.loads

    def swap_then_parse(text: bytes) -> object:
        path.write_bytes(b"evil")
        return parse(text)

    monkeypatch.setattr(engines.json, "loads", swap_then_parse)
    assert read_engine(path).plan == b"plan"


def test_engine_without_a_file_or_a_sidecar_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_engine(path)
    path.write_bytes(b"plan")
    with pytest.raises(InputError, match=r"has no sidecar m.engine.json"):
        read_engine(path, trust=True)


def test_sidecar_that_is_a_pipe_does_not_wait(path: Path) -> None:
    path.write_bytes(b"plan")
    os.mkfifo(sidecar_path(path))
    with pytest.raises(InputError, match="a pipe"):
        read_engine(path)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no-inputs": lambda record: record.pop("inputs"),
    "inputs-are-none": lambda record: record.update(inputs=None),
    "input-without-name": lambda record: record["inputs"][0].pop("name"),
    "input-named-by-number": lambda record: record["inputs"][0].update(name=3),
    "input-without-profile": lambda record: record["profile"].pop("s"),
    "profile-is-a-list": lambda record: record.update(profile=[]),
    "profile-upside-down": lambda record: record["profile"]["x"].update(min=[9, 3, 7, 5]),
    "profile-of-text": lambda record: record["profile"]["x"].update(min="1375"),
    "backend-is-a-list": lambda record: record.update(backend=[]),
    "targets-are-text": lambda record: record.update(targets="sm_87"),
    "weights-are-text": lambda record: record["precision"]["weights"].update(float16="12"),
    "weightless": lambda record: record.update(plan_bytes=10**400),
    "graph-is-none": lambda record: record.update(graph=None),
    "shape-of-text": lambda record: record["inputs"][0].update(shape="abcd"),
    "range-beyond-memory": lambda record: record["profile"]["x"].update(max=[10**12, 3, 7, 5]),
    "rebuild-is-none": lambda record: record.update(rebuild=None),
    "no-backend": lambda record: record.pop("backend"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_sidecar_is_refused(name: str, path: Path) -> None:
    write_engine(made(b"plan"), path)
    record = json.loads(sidecar_path(path).read_text())
    DAMAGE[name](record)
    sidecar_path(path).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"m.engine.json is damaged"):
        read_engine(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"format": 2}', "[" * 100_000, '{"a": "\x00"}', '{"format": 1}'])
def test_what_is_no_sidecar_is_refused(text: str, path: Path) -> None:
    path.write_bytes(b"plan")
    sidecar_path(path).write_text(text)
    with pytest.raises(InputError, match=r"m.engine"):
        read_engine(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_sidecar_with_any_byte_changed_loads_or_is_refused(place: float, byte: int, path: Path) -> None:
    whole = sidecar_path(path).with_name("whole")
    if not whole.exists():
        write_engine(made(b"plan"), path)
        sidecar_path(path).rename(whole)
    text = bytearray(whole.read_bytes())
    text[int(place * len(text))] = byte
    sidecar_path(path).write_bytes(text)
    with contextlib.suppress(InputError):
        assert read_engine(path).plan == b"plan"


@pytest.mark.parametrize("damage", [lambda text: "{", lambda text: text.replace('"cpu"', "NaN")], ids=["cut", "nan"])
def test_damaged_sidecar_does_not_stop_the_next_build(path: Path, damage: Callable[[str], str]) -> None:
    write_engine(made(b"plan"), path)
    sidecar_path(path).write_text(damage(sidecar_path(path).read_text()))
    write_engine(made(b"again"), path)
    assert read_engine(path).plan == b"again"


def test_engine_for_another_machine_is_refused_with_the_way_out() -> None:
    require_match(SIDECAR, "a platform", ["linux-aarch64", "linux-x86_64"], "linux-x86_64")
    with pytest.raises(EngineMismatchError, match=r"a platform sm_87 or sm_89, this is sm_120.*edgeattn build m.onnx"):
        require_match(SIDECAR, "a platform", ["sm_87", "sm_89"], "sm_120")
