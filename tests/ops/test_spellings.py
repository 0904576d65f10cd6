"""One module of each op, in spellings that the exporters do not give by themselves."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch

from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import Case
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


@pytest.mark.parametrize("name", CASES)
def test_found_after_a_clean_up_by_others(name: str, tmp_path: Path) -> None:
    as_exported(CASES[name], tmp_path / "m.onnx", opset_version=20)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "clean.onnx")
    onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    assert found_in(load_graph(tmp_path / "clean.onnx")) == (name,)
