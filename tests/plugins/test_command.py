from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from edgeattn.backends.trt import plugin_library
from edgeattn.backends.trt.plugins import Request
from edgeattn.cli import main
from edgeattn.graph import save_graph
from tests.graphs import self_attention
from tests.models import SpatialGate
from tests.plugins.library import CUDA, MAPS, PLUGINS, includes, require_tools, run
from tests.plugins.offers import offer
from tests.precision.lowered import traced


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    save_graph(self_attention().graph, path)
    return path


@pytest.mark.slow
def test_build_makes_a_library_for_a_model_and_list_says_what_is_in_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_tools()
    include = str(next(iter(includes().values())))
    words = ["-o", str(tmp_path / "out"), "--arch", "sm_87", "--precision", "fp16,fp32", "--tensorrt-include", include]
    assert main(["plugins", "build", str(model), *words]) == 0
    built = capsys.readouterr()
    assert "edgeattn: compiling SoftmaxAttention for sm_87" in built.err
    assert main(["plugins", "list", str(tmp_path / "out" / "libedgeattn_plugins.so")]) == 0
    assert capsys.readouterr().out == built.out
    assert main(["plugins", "list", "-o", str(tmp_path / "out"), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(item["op"], item["dtypes"][0], item["archs"]) for item in listed["kernels"]] == [
        ("SoftmaxAttention", "float16", ["sm_87"]),
        ("SoftmaxAttention", "float32", ["sm_87"]),
    ]
    shown = run("nm", "-D", "--defined-only", str(tmp_path / "out" / "libedgeattn_plugins.so"))
    assert "getCreators" in shown


@pytest.mark.slow
def test_plain_cmake_compiles_the_kernels_itself(model: Path, tmp_path: Path) -> None:
    require_tools()
    include = next(iter(includes().values()))
    headers = [
        f"-DTENSORRT_INCLUDE_DIR={include}",
        f"-DCUDA_INCLUDE_DIR={CUDA[0]}",
        f"-DPython3_EXECUTABLE={sys.executable}",
    ]
    settings = [f"-DEDGEATTN_MODELS={model}", "-DEDGEATTN_ARCHS=sm_87", "-DEDGEATTN_INT8=ON"]  # for gates: it has none
    run("cmake", "-S", str(PLUGINS), "-B", str(tmp_path / "build"), *headers, *settings)
    run("cmake", "--build", str(tmp_path / "build"))
    listed = json.loads((tmp_path / "build" / "kernels" / "kernels.json").read_text())
    assert [item["archs"] for item in listed] == [["sm_87"]]
    assert (tmp_path / "build" / "libedgeattn_plugins.so").is_file()


def test_gates_get_kernels_that_write_int8_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    monkeypatch.setattr(plugin_library, "write_kernels", lambda requests, *_: asked.extend(requests))
    save_graph(traced(SpatialGate(), (torch.randn(1, 3, 4, 4),)), tmp_path / "gate.onnx")
    words = ["plugins", "kernels", str(tmp_path / "gate.onnx"), "-o", str(tmp_path), "--arch", "sm_87"]
    assert main(words) == main([*words, "--int8"]) == 0
    assert [(request.op, request.result) for request in asked] == [
        ("SpatialGate", "float16"), ("SpatialGate", "float16"), ("SpatialGate", "int8")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--arch", "sm_53"], 2, "no kernels for 'sm_53'; known: sm_75, "),
        (["--precision", "int8"], 2, "no kernels in 'int8'; known: fp32, fp16, bf16"),
        (
            ["--tensorrt-include", "/nowhere"],
            5,
            "/nowhere has no NvInferRuntime.h: name the folder of TensorRT's headers",
        ),
        (["--platform", "win32-amd64"], 4, "no compiler for win32-amd64 from here; known: "),
        (["--precision", "bf16", "--arch", "sm_75"], 4, "bfloat16 on sm_75; it starts with sm_80"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(
    words: list[str], code: int, says: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = model.parent / "out"
    assert main(["plugins", "build", str(model), "-o", str(output), *words]) == code
    assert says in capsys.readouterr().err
    assert not output.exists()


def test_list_refuses_what_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = offer(tmp_path, monkeypatch, [MAPS])
    assert main(["plugins", "list", str(path)]) == 0
    assert main(["plugins", "list", str(tmp_path / "other.so")]) == 5
    assert "other.so" in capsys.readouterr().err
