from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edgeattn.build import build_engine
from edgeattn.engine import read_sidecar, sidecar_path
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.interpreter import run_as_written
from edgeattn.lowering import to_backend
from edgeattn.model import Model
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import DOMAIN
from edgeattn.profile.ablation import ablated, dissectable, without_block
from edgeattn.profile.report import Block
from edgeattn.tensors import TensorSpec, random_feeds
from edgeattn.tolerance import tolerance_for
from tests.graphs import self_attention
from tests.profile.samples import without_layers

OPS = {op.name: op for op in ALL_OPS}
TOLERANCE = tolerance_for("float32").floor


def exported(module: nn.Module, shapes: tuple[tuple[int, ...], ...], folder: Path) -> Graph:
    specs = tuple(TensorSpec(f"x{place}", "float32", shape) for place, shape in enumerate(shapes))
    export_model(Model(module.eval(), specs), folder / "m.onnx", exporter="torchscript", check=False)
    return load_graph(folder / "m.onnx")


def products(graph: Graph) -> int:
    return sum(node.op_type in ("MatMul", "Gemm", "Conv") for node in graph.model.graph)


@pytest.mark.parametrize("batch", [3, "batch"])
def test_an_attention_gives_its_values_and_still_needs_queries_and_keys(batch: int | str) -> None:
    case = self_attention(batch=batch, tokens=7, dim=8)
    edited = without_block(fuse(case.graph)[0], "SoftmaxAttention")
    x = np.random.default_rng(0).standard_normal((3, 7, 8), np.float32)
    weights = {name: value.const_value.numpy() for name, value in case.graph.model.graph.initializers.items()}  # type: ignore[union-attr]
    q, k, v = (x.astype(np.float64) @ weights[name] for name in ("wq", "wk", "wv"))
    truth = v + q[0, 0, 0] + k[0, 0, 0]
    (found,) = run_as_written(edited)({"x": x}).values()
    assert np.abs(found - truth).max() <= TOLERANCE * np.abs(truth).max()


@pytest.mark.parametrize("name", ["SelectiveKernel", "AttentionPool", "HardAttention", "SpatialTransformer"])
def test_a_block_of_any_shape_goes_alone(name: str, tmp_path: Path) -> None:
    op = OPS[name]
    case = next(case for case in op.cases() if op.name in case.found)
    graph = exported(case.module(), case.shapes, tmp_path)
    fused, report = fuse(graph)
    name = next(item.name for item in report.found if item.op == op.name)
    edited = without_block(fused, name)
    feeds = random_feeds(graph.inputs, {spec.name: spec.shape or () for spec in graph.inputs}, seed=0)  # type: ignore[misc]
    before, after = (run_as_written(to_backend(each, "onnxruntime"))(feeds) for each in (fused, edited))
    assert {key: y.shape for key, y in after.items()} == {key: y.shape for key, y in before.items()}
    assert products(edited) == products(fused)
    assert [node.name for node in fused.model.graph if node.name == name] == [name]
    assert not [node for node in edited.model.graph if node.domain == DOMAIN and node.name == name]


def test_a_gate_gives_its_map_as_it_is(tmp_path: Path) -> None:
    case = OPS["SpatialGate"].cases()[0]
    fused, report = fuse(exported(case.module(), case.shapes, tmp_path))
    feeds = random_feeds(fused.inputs, {"x0": case.shapes[0]}, seed=0)
    (found,) = run_as_written(without_block(fused, report.found[0].name))(feeds).values()
    assert np.array_equal(found, feeds["x0"])


def test_a_block_that_is_not_there_is_said() -> None:
    with pytest.raises(UnsupportedError, match="no attention block 'other'"):
        without_block(fuse(self_attention().graph)[0], "other")


def built(folder: Path, tokens: int = 193, dim: int = 16) -> Path:
    save_graph(self_attention(batch=1, tokens=tokens, dim=dim).graph, folder / "m.onnx")
    build_engine(folder / "m.onnx", folder / "m.engine", backend="onnxruntime", check=False)
    return folder / "m.engine"


def block(name: str) -> Block:
    return replace(without_layers().blocks[0], name=name)


def test_a_large_attention_is_most_of_what_is_saved(tmp_path: Path) -> None:
    engine = built(tmp_path, tokens=512)
    (spec,) = read_sidecar(engine).inputs
    report = replace(
        without_layers(), shapes={spec.name: (1, 512, 16)}, blocks=(block("SoftmaxAttention"), block("other"))
    )
    found = ablated(report, engine, dissectable(engine), duration_s=0.2)
    own, other = found.blocks
    assert own.ablation_ms is not None
    assert own.ablation_interval_ms is not None
    assert 0 < own.ablation_interval_ms[0] <= own.ablation_ms <= own.ablation_interval_ms[1]
    assert other.ablation_ms is None
    assert found.notes[-1].startswith("other was not taken out: the graph has no attention block 'other'")


def test_a_graph_that_changed_is_refused(tmp_path: Path) -> None:
    engine = built(tmp_path, tokens=7)
    save_graph(self_attention(tokens=5).graph, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="has changed since"):
        dissectable(engine)


def test_an_engine_in_int8_is_left_whole(tmp_path: Path) -> None:
    engine = built(tmp_path, tokens=7)
    sidecar = sidecar_path(engine)
    sidecar.write_text(sidecar.read_text().replace('"asked": "float32"', '"asked": "int8"'))
    with pytest.raises(UnsupportedError, match="is in INT8"):
        dissectable(engine)


def test_an_engine_without_attention_says_so(tmp_path: Path) -> None:
    engine = built(tmp_path, tokens=7)
    found = ablated(replace(without_layers(), blocks=()), engine, dissectable(engine))
    assert found.notes[-1].endswith("has no attention blocks to take out")
