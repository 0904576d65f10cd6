"""What every op owes, over its cases: found where it is, left alone where it is not, and never a changed result."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import Graph, load_graph, save_graph
from edgeattn.interpreter import run_as_written
from edgeattn.model import Model, parse_dynamic
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import DOMAIN, Case
from edgeattn.tensors import TensorSpec, random_feeds
from edgeattn.tolerance import tolerance_for
from tests.graphs import Array

CASES = [(op, case) for op in ALL_OPS for case in op.cases()]
SPELLINGS = list(itertools.product(("dynamo", "torchscript"), ("static", "dynamic")))


def exported(case: Case, exporter: str, kind: str, folder: Path) -> tuple[Graph, Model]:
    torch.manual_seed(0)
    specs = tuple(TensorSpec(f"x{index}", "float32", shape) for index, shape in enumerate(case.shapes))
    model = Model(case.module().eval(), specs, case.name)
    model = Model(model.module, _named_as_forward_wants(model), case.name)
    dynamic = parse_dynamic(case.dynamic, model.inputs) if kind == "dynamic" else None
    export_model(model, folder / "m.onnx", dynamic=dynamic, exporter=exporter, check=False)
    return load_graph(folder / "m.onnx"), model


def _named_as_forward_wants(model: Model) -> tuple[TensorSpec, ...]:
    from edgeattn.model import parameters

    names = list(parameters(model.module))
    return tuple(TensorSpec(name, spec.dtype, spec.shape) for name, spec in zip(names, model.inputs, strict=False))


def assert_close(found: Array, truth: Array) -> None:
    assert found.shape == truth.shape
    size = np.abs(truth).max(initial=0.0)
    assert np.abs(found - truth).max(initial=0.0) <= tolerance_for("float32").floor * max(size, 1e-3)


@pytest.mark.parametrize(("exporter", "kind"), SPELLINGS, ids=map("-".join, SPELLINGS))
@pytest.mark.parametrize(("op", "case"), CASES, ids=[f"{op.name}-{case.name}" for op, case in CASES])
def test_a_case_is_found_or_left_alone_and_computes_the_same(
    op: object, case: Case, exporter: str, kind: str, tmp_path: Path
) -> None:
    graph, model = exported(case, exporter, kind, tmp_path)
    fused, report = fuse(graph)
    assert tuple(item.op for item in report.found) == case.found, report
    assert case.missed in "; ".join(item.reason for item in report.missed)
    if case.missed:
        assert report.missed
    counts = fused.op_counts()
    assert sum(count for name, count in counts.items() if name.startswith(f"{DOMAIN}::")) == len(case.found)
    save_graph(fused, tmp_path / "fused.onnx")  # it is a valid file that load_graph accepts again
    runs = run_as_written(load_graph(tmp_path / "fused.onnx"))
    for batch in (1, 3) if kind == "dynamic" else (model.inputs[0].shape[0],):  # type: ignore[index]
        shapes = {spec.name: (batch, *spec.shape[1:]) for spec in model.inputs}  # type: ignore[index]
        feeds = random_feeds(model.inputs, shapes, seed=batch)  # type: ignore[arg-type]
        for found, truth in zip(runs(feeds).values(), model.run(feeds, "float64"), strict=True):
            assert_close(found, truth)


@pytest.mark.parametrize("op", ALL_OPS, ids=lambda op: op.name)
def test_an_op_has_cases_of_both_kinds(op: object) -> None:
    cases = op.cases()  # type: ignore[attr-defined]
    assert any(case.found for case in cases)
    assert any(not case.found for case in cases)
    assert len({case.name for case in cases}) == len(cases)
