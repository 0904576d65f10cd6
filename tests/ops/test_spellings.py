"""One module of each op, in spellings that the exporters do not give by themselves."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnxconverter_common import float16

from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph
from edgeattn.interpreter import run_as_written
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import Case
from edgeattn.tensors import random_feeds
from edgeattn.tolerance import tolerance_for
from tests.ops.exactness import fused_exactly

# The first static case of each op that is found as that op alone.
CASES = {op.name: next(case for case in op.cases() if case.found == (op.name,)) for op in ALL_OPS}
OPSETS = {"SpatialTransformer": (20,)}  # affine_grid has no older form in PyTorch's own exporter


def as_exported(case: Case, path: Path, **settings: object) -> None:
    torch.manual_seed(0)
    inputs = tuple(torch.rand(*shape) for shape in case.shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(case.module().eval(), inputs, path, dynamo=False, **settings)


def found_in(graph: Graph) -> tuple[str, ...]:
    fused_exactly(graph)
    return tuple(item.op for item in fuse(graph)[1].found)


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name in CASES for opset in OPSETS.get(name, (16, 20))])
def test_found_without_constant_folding(name: str, opset: int, tmp_path: Path) -> None:
    as_exported(CASES[name], tmp_path / "m.onnx", do_constant_folding=False, opset_version=opset)
    assert found_in(load_graph(tmp_path / "m.onnx")) == (name,)


@pytest.mark.parametrize("keep_io_types", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_found_after_a_conversion_to_half_precision(name: str, keep_io_types: bool, tmp_path: Path) -> None:
    as_exported(CASES[name], tmp_path / "m.onnx", opset_version=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = float16.convert_float_to_float16(onnx.load(tmp_path / "m.onnx"), keep_io_types=keep_io_types)
    graph = Graph(ir.from_proto(half))
    fused, report = fuse(graph)
    assert tuple(item.op for item in report.found) == (name,)
    feeds = random_feeds(graph.inputs, {spec.name: tuple(map(int, spec.shape or ())) for spec in graph.inputs}, seed=1)
    wide = {key: array.astype(np.float32) for key, array in feeds.items()}
    (truth,), (own,), (found,) = (
        run_as_written(each)(given).values()
        for each, given in ((load_graph(tmp_path / "m.onnx"), wide), (graph, feeds), (fused, feeds))
    )
    unit = tolerance_for("float16").floor * np.abs(truth).max()
    assert np.abs(found - truth).max() <= 2 * np.abs(own - truth).max() + unit


@pytest.mark.parametrize("name", CASES)
def test_found_after_a_clean_up_by_others(name: str, tmp_path: Path) -> None:
    as_exported(CASES[name], tmp_path / "m.onnx", opset_version=20)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "clean.onnx")
    onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    assert found_in(load_graph(tmp_path / "clean.onnx")) == (name,)
