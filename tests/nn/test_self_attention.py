from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import load_graph
from edgeattn.model import Model, parse_dynamic
from edgeattn.nn import SelfAttention2d
from edgeattn.tensors import TensorSpec
from tests.nn.oracles import close, mix, prepared, run, softmax

SIZES = st.sampled_from([1, 2, 3, 5, 7])


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(SIZES, st.sampled_from([1, 3, 8, 16]), SIZES, SIZES), seed=st.integers(0, 99))
def test_it_is_the_formula(shape: tuple[int, ...], seed: int) -> None:
    module, weights = prepared(SelfAttention2d(shape[1]))
    x = np.random.default_rng(seed).standard_normal(shape)
    q, k, v = (
        mix(x, weights[f"{name}.weight"], weights[f"{name}.bias"]).reshape(*shape[:1], -1, shape[2] * shape[3])
        for name in ("query", "key", "value")
    )
    attention = softmax(np.einsum("bdn,bdm->bnm", q, k), 2)
    expected = weights["gamma"] * np.einsum("bnm,bcm->bcn", attention, v).reshape(shape) + x
    assert close(run(module, x), expected)


def test_it_starts_as_the_identity() -> None:
    x = torch.randn(2, 8, 5, 7)
    assert torch.equal(SelfAttention2d(8)(x), x)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_it_is_found(exporter: str, tmp_path: Path) -> None:
    model = Model(SelfAttention2d(16).eval(), (TensorSpec("x", "float32", (2, 16, 5, 7)),), "sagan")
    dynamic = parse_dynamic(("batch",), model.inputs)
    export_model(model, tmp_path / "m.onnx", dynamic=dynamic, exporter=exporter, check=False)
    _, report = fuse(load_graph(tmp_path / "m.onnx"))
    assert [item.op for item in report.found] == ["SoftmaxAttention"]
    sizes = report.found[0].facts.sizes
    assert (sizes["queries"], sizes["keys"], sizes["d_qk"], sizes["d_v"]) == (35, 35, 2, 16)
