from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from edgeattn import files
from edgeattn.backends.trt import library as lib
from edgeattn.backends.trt import registry
from edgeattn.backends.trt.capabilities import capabilities
from edgeattn.backends.trt.plugin_library import NAME, read_library
from edgeattn.backends.trt.plugins import requests_in
from edgeattn.engine import Engine, Precision, Sidecar, read_engine, write_engine
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.lowering import to_backend
from edgeattn.lowering.tensorrt import choose
from tests.graphs import self_attention
from tests.plugins.library import MAPS, SQUARE, build, includes, require_tools, without_code
from tests.plugins.offers import offer

RECORD = {"route": "library", "plugins": ["SoftmaxAttention"], "library": "libedgeattn_plugins.so", "sha256": "00"}


def sidecar(*plugins: dict[str, object]) -> Sidecar:
    return Sidecar("tensorrt", "10.3.0", (), (), {}, Precision("float16"), plugins=plugins)


def with_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    graph = self_attention().graph
    offer(folder, monkeypatch, requests_in(graph, ["float32"]))
    fused, _ = fuse(graph)
    return to_backend(fused, "tensorrt", choose(fused, "plugin", "")[0])


def rtx() -> lib.Library:
    if reasons := lib.missing(lib.RTX, running=False):
        pytest.skip("; ".join(reasons))
    return lib.library(lib.RTX)


def as_tensorrt(library: lib.Library) -> lib.Library:
    """TensorRT-RTX's own registry, in the hands of a TensorRT that can have plugins in its networks."""
    return dataclasses.replace(library, can=capabilities("10.3.0", "tensorrt"))


def test_a_graph_without_plugins_is_left_as_it_is() -> None:
    graph = self_attention().graph
    library = lib.Library(types.SimpleNamespace(__version__="1.7.1"), lib.RTX, capabilities("1.7.1", "tensorrt-rtx"))
    assert registry.provide(library, graph) == (graph, ())


def test_tensorrt_rtx_refuses_plugins_before_its_parser_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeattn.backends import tensorrt_rtx

    library = rtx()
    graph = with_plugin(tmp_path, monkeypatch)
    with pytest.raises(UnsupportedError, match="has no plugins in its networks; build without --attention plugin"):
        registry.provide(library, graph)
    (reason,) = tensorrt_rtx.unsupported(graph)
    assert "has no plugins in its networks" in reason


def test_a_missing_plugin_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = as_tensorrt(rtx())
    with pytest.raises(UnsupportedError) as caught:
        registry.require(library, sidecar(RECORD))
    assert str(caught.value) == (
        f"{library} has no plugin SoftmaxAttention, which the engine needs: set EDGEATTN_PLUGIN_LIBRARY to the library "
        "that has it; edgeattn plugins build makes one"
    )
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(UnsupportedError, match=r"none\.so, which is no file; .* has no plugin SoftmaxAttention"):
        registry.require(library, sidecar(RECORD))
    offer(tmp_path, monkeypatch, [MAPS])  # which is no library
    with pytest.raises(UnsupportedError, match="does not bring the plugin SoftmaxAttention"):
        registry.require(library, sidecar(RECORD))


def test_an_engine_with_embedded_kernels_needs_no_library() -> None:
    registry.require(as_tensorrt(rtx()), sidecar({"route": "embedded", "plugins": ["SoftmaxAttention_0"]}))


def test_the_sidecar_keeps_what_an_engine_needs(tmp_path: Path) -> None:
    write_engine(Engine(b"plan", sidecar(RECORD)), tmp_path / "m.engine")
    assert read_engine(tmp_path / "m.engine").sidecar.plugins == (RECORD,)


def test_what_a_library_has_is_read_from_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = offer(tmp_path, monkeypatch, [MAPS])
    library = read_library(path)
    assert library.answers(SQUARE)
    assert not library.answers(dataclasses.replace(SQUARE, variant="guarded"))
    assert "SoftmaxAttention(d0x1xd1x8, d0x1xd1x8, d0x1xd1x64) float16 [scale=1.0]  sm_87" in str(library)
    assert registry.obstacle(SQUARE) == ""
    path.write_bytes(b"another")
    with pytest.raises(InputError, match="it describes another library; build the library again"):
        read_library(path)
    (tmp_path / f"{path.name}.json").write_text("[]")
    with pytest.raises(InputError, match="does not say what is in"):
        read_library(path)


@pytest.mark.slow
def test_registering_says_what_a_library_brings_and_where_it_is_from(tmp_path: Path) -> None:
    """In a process of its own, since TensorRT keeps what it has loaded."""
    require_tools()
    rtx()
    include = list(includes().values())[-1]
    built = build(tmp_path, include, [without_code(SQUARE, [87])])
    code = """
import onnx_ir as ir
from edgeattn.backends.trt import library as lib, registry
from edgeattn.graph import Graph
from tests.plugins.test_registry import RECORD, as_tensorrt, sidecar
library = as_tensorrt(lib.library(lib.RTX))
node = ir.Node("edgeattn", "SoftmaxAttention", [])
graph = Graph(ir.Model(ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 20}), ir_version=10))
for _ in range(2):  # the second time it is there
    same, (record,) = registry.provide(library, graph)
    assert same is graph
print(record["route"], *record["plugins"], record["library"], record["sha256"])
registry.require(library, sidecar(RECORD))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, registry.VARIABLE: str(built.library)},
    )
    assert done.stdout.split()[-4:] == ["library", "SoftmaxAttention", NAME, files.sha256_file(built.library)]
