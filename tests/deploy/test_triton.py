from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import helper

from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine
from edgeattn.cli import main
from edgeattn.deploy.triton import _text, deploy_triton
from edgeattn.errors import EdgeAttnError, UnsupportedError, UsageError
from edgeattn.folding import FOLDED
from edgeattn.tensors import TensorSpec
from tests.deploy.engines import engine_at
from tests.graphs import FLOAT, graph_of

Field = descriptor_pb2.FieldDescriptorProto

# Fields of Triton's model_config.proto that are written, by message: name, number, type; `*` is repeated.
SCHEMA = {
    "ModelTensorReshape": [("shape*", 1, "int64")],
    "ModelInput": [
        ("name", 1, "string"), ("data_type", 2, "DataType"), ("dims*", 4, "int64"),
        ("reshape", 5, "ModelTensorReshape"),
    ],
    "ModelOutput": [
        ("name", 1, "string"), ("data_type", 2, "DataType"), ("dims*", 3, "int64"),
        ("label_filename", 4, "string"), ("reshape", 5, "ModelTensorReshape"),
    ],
    "Latest": [("num_versions", 1, "uint32")],
    "ModelVersionPolicy": [("latest", 1, "Latest")],
    "ModelInstanceGroup": [("kind", 4, "Kind"), ("count", 2, "int32")],
    "ModelDynamicBatching": [],
    "ModelParameter": [("string_value", 1, "string")],
    "ParametersEntry": [("key", 1, "string"), ("value", 2, "ModelParameter")],  # as a map is written
    "ModelConfig": [
        ("name", 1, "string"), ("backend", 17, "string"), ("version_policy", 3, "ModelVersionPolicy"),
        ("max_batch_size", 4, "int32"), ("input*", 5, "ModelInput"), ("output*", 6, "ModelOutput"),
        ("dynamic_batching", 11, "ModelDynamicBatching"), ("instance_group*", 7, "ModelInstanceGroup"),
        ("parameters*", 14, "ParametersEntry"),
    ],
}  # fmt: skip
ENUMS = {
    "DataType": ["TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
                 "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING",
                 "TYPE_BF16"],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}  # fmt: skip


def model_config() -> Any:
    """The class of `ModelConfig` messages."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto", package="inference", syntax="proto3")
    for name, words in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, word in enumerate(words):
            enum.value.add(name=word, number=number)
    scalars = {
        "string": Field.TYPE_STRING,
        "int32": Field.TYPE_INT32,
        "int64": Field.TYPE_INT64,
        "uint32": Field.TYPE_UINT32,
    }
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for title, number, kind in fields:
            label = Field.LABEL_REPEATED if title.endswith("*") else Field.LABEL_OPTIONAL
            field = message.field.add(name=title.rstrip("*"), number=number, label=label)
            field.type = scalars.get(kind, Field.TYPE_ENUM if kind in ENUMS else Field.TYPE_MESSAGE)
            if kind not in scalars:
                field.type_name = f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def read(folder: Path) -> Any:
    """The configuration of a model, as Triton reads it."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config()())


def tensors(found: Any) -> list[tuple[str, str, list[int]]]:
    return [(item.name, ENUMS["DataType"][item.data_type], list(item.dims)) for item in found]


def test_a_tensorrt_engine_becomes_a_model(tmp_path: Path) -> None:
    engine = engine_at(tmp_path / "m.engine", b"the plan")
    report = deploy_triton(engine, tmp_path / "models")
    assert (tmp_path / "models" / "m" / "1" / "model.plan").read_bytes() == b"the plan"
    config = read(tmp_path / "models" / "m")
    assert (config.name, config.backend, config.max_batch_size) == ("m", "tensorrt", 8)
    assert tensors(config.input) == [("image", "TYPE_FP32", [3, 64, 96])]
    assert tensors(config.output) == [("scores", "TYPE_FP32", [5])]
    assert config.HasField("dynamic_batching")
    assert [group.kind for group in config.instance_group] == [ENUMS["Kind"].index("KIND_GPU")]
    assert "clients send pictures as their recipe prepares them" in report.notes


def test_what_has_no_free_batch_is_left_as_it_is(tmp_path: Path) -> None:
    fixed: dict[str, Any] = {
        "inputs": (TensorSpec("x", "float16", (2, 3, "h", "w")), TensorSpec("k", "int64", (2,))),
        "outputs": (TensorSpec("y", "bfloat16", (2, 7, "h", "w")), TensorSpec("loss", "float32", ())),
    }
    deploy_triton(engine_at(tmp_path / "m.engine", **fixed), tmp_path)
    config = read(tmp_path / "m")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert tensors(config.input) == [("x", "TYPE_FP16", [2, 3, -1, -1]), ("k", "TYPE_INT64", [2])]
    assert tensors(config.output) == [("y", "TYPE_BF16", [2, 7, -1, -1]), ("loss", "TYPE_FP32", [1])]
    assert config.output[1].HasField("reshape")
    assert list(config.output[1].reshape.shape) == []


def test_an_output_without_the_batch_keeps_triton_from_batching(tmp_path: Path) -> None:
    outputs = (TensorSpec("y", "float32", ("batch", 5)), TensorSpec("anchors", "float32", (100, 4)))
    deploy_triton(engine_at(tmp_path / "m.engine", outputs=outputs), tmp_path)
    assert read(tmp_path / "m").max_batch_size == 0


def test_a_rebuilt_engine_is_the_next_version_and_the_one_before_stays(tmp_path: Path) -> None:
    for plan in (b"one", b"one", b"two", b"three", b"three"):
        deploy_triton(engine_at(tmp_path / "m.engine", plan), tmp_path / "models")
    model = tmp_path / "models" / "m"
    assert sorted(path.name for path in model.iterdir()) == ["2", "3", "config.pbtxt"]
    assert (model / "2" / "model.plan").read_bytes() == b"two"
    assert (model / "3" / "model.plan").read_bytes() == b"three"


def test_names_of_classes_become_labels(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\n\ncat\n")
    deploy_triton(engine_at(tmp_path / "m.engine"), tmp_path / "models", name="ants.v2", names=tmp_path / "names.txt")
    config = read(tmp_path / "models" / "ants.v2")
    assert config.output[0].label_filename == "labels.txt"
    assert (tmp_path / "models" / "ants.v2" / "labels.txt").read_text() == "ant\n\ncat\n"


def test_an_onnxruntime_engine_is_a_model_that_onnxruntime_loads(tmp_path: Path) -> None:
    graph = graph_of([helper.make_node("Softmax", ["x"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])])
    config = BuildConfig(min_shapes={"x": (1, 4)}, max_shapes={"x": (6, 4)}, threads=3)
    build_engine(graph, tmp_path / "soft.engine", config, "onnxruntime")
    deploy_triton(tmp_path / "soft.engine", tmp_path / "models")
    found = read(tmp_path / "models" / "soft")
    assert (found.backend, found.max_batch_size) == ("onnxruntime", 6)
    assert [(item.key, item.value.string_value) for item in found.parameters] == [("intra_op_thread_count", "3")]
    session = ort.InferenceSession(tmp_path / "models" / "soft" / "1" / "model.onnx")
    assert session.run(None, {"x": np.zeros((2, 4), np.float32)})[0] == pytest.approx(0.25)


@pytest.mark.parametrize("backend", ["openvino", "tensorrt-rtx"])
def test_an_engine_that_triton_does_not_load_is_refused(backend: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"is an engine of {backend}, which Triton does not load"):
        deploy_triton(engine_at(tmp_path / "m.engine", backend=backend), tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["../m", "a/b", ".m", "a b", "m\n", "-m", 'm"'])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no name for a model"):
        deploy_triton(engine_at(tmp_path / "m.engine"), tmp_path / "models", name=name)


def test_a_tensor_that_triton_has_no_type_for_is_named(tmp_path: Path) -> None:
    inputs = (TensorSpec("x", "float8_e4m3fn", ("n", 3)),)
    with pytest.raises(UnsupportedError, match="tensor x: float8_e4m3fn nx3"):
        deploy_triton(engine_at(tmp_path / "m.engine", inputs=inputs), tmp_path / "models")


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    name = 'quote " back \\ slash, line\nbreak, Zähler, \x00 \u2028'
    text = _text(
        {"name": name, "input": [{"name": name, "dims": [1, -1]}], "version_policy": {"latest": {"num_versions": 1}}}
    )
    found: Any = text_format.Parse(text, model_config()())
    assert found.name == found.input[0].name == name
    assert list(found.input[0].dims) == [1, -1]


def test_notes_say_what_the_server_and_its_clients_need(tmp_path: Path) -> None:
    folded = '{"size": [64, 96], "color": "rgb"}'
    engine = engine_at(tmp_path / "m.engine", graph={FOLDED: folded}, plugins=({"route": "library"},))
    notes = deploy_triton(engine, tmp_path / "models").notes
    assert notes[0] == "clients send uint8 pixels of resized pictures"
    assert "--backend-config=tensorrt,plugins=" in notes[1]


def test_a_writer_that_was_killed_leaves_the_old_model_and_is_cleaned_up_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy_triton(engine_at(tmp_path / "m.engine", b"one"), tmp_path / "models")
    engine_at(tmp_path / "m.engine", b"two")
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from edgeattn import files\n"
        "from edgeattn.deploy import deploy_triton\n"
        "files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"  # as the plan would be in place
        f"deploy_triton({str(tmp_path / 'm.engine')!r}, {str(tmp_path / 'models')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    model = tmp_path / "models" / "m"
    assert sorted(path.name for path in model.iterdir() if not path.name.startswith(".")) == ["1", "config.pbtxt"]
    deploy_triton(tmp_path / "m.engine", tmp_path / "models")
    assert sorted(path.name for path in model.iterdir()) == ["1", "2", "config.pbtxt"]


def test_a_repository_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(EdgeAttnError, match=r"cannot write .*models"):
        deploy_triton(engine_at(tmp_path / "m.engine"), tmp_path / "models")


def test_the_command_writes_and_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_at(tmp_path / "m.engine")
    assert main(["deploy", str(engine), "--triton", str(tmp_path / "models"), "--json"]) == 0
    assert '"target": "triton"' in capsys.readouterr().out
    assert main(["deploy", str(engine), "--triton", str(tmp_path / "models"), "--recipe", "r.toml"]) == 2
    assert "leave --recipe out" in capsys.readouterr().err


def test_names_that_triton_has_no_use_for_are_said(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\n")
    engine = engine_at(tmp_path / "m.engine", outputs=(TensorSpec("y", "float32", ("batch", 7, 64, 96)),))
    report = deploy_triton(engine, tmp_path / "models", names=tmp_path / "names.txt")
    assert "names of classes for classifiers alone" in report.notes[-1]
    assert not read(tmp_path / "models" / "m").output[0].label_filename
