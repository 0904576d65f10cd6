from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import UsageError
from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import load_graph
from edgeattn.model import Model, parse_dynamic
from edgeattn.nn import CrossAttention
from edgeattn.tensors import TensorSpec
from tests.nn.oracles import close, prepared, run, softmax


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(2, 5, 7), (1, 1, 3), (3, 2, 1)])
def test_it_is_the_formula(batch: int, queries: int, keys: int, bias: bool) -> None:
    module, weights = prepared(CrossAttention(6, 3, kdim=5, vdim=4, qkv_bias=bias))
    rng = np.random.default_rng(0)
    x, key, value = (rng.standard_normal((batch, n, d)) for n, d in ((queries, 6), (keys, 5), (keys, 4)))
    q, k, v = (
        (tokens @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)).reshape(batch, -1, 3, 2)
        for name, tokens in (("q", x), ("k", key), ("v", value))
    )
    attention = softmax(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(2), 3)
    mean = np.einsum("bhnm,bmhd->bnhd", attention, v).reshape(batch, queries, 6)
    assert close(run(module, x, key, value), mean @ weights["proj.weight"].T + weights["proj.bias"])


def test_keys_that_are_masked_do_not_count() -> None:
    module, _ = prepared(CrossAttention(6, 2))
    rng = np.random.default_rng(0)
    x, key = rng.standard_normal((2, 5, 6)), rng.standard_normal((2, 7, 6))
    mask = np.arange(7) < 4
    assert close(run(module, x, key, key, mask[None]), run(module, x, key[:, :4]))


def test_heads_must_divide_the_features() -> None:
    with pytest.raises(UsageError, match="4 heads do not divide 6"):
        CrossAttention(6, 4)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_it_is_found(exporter: str, tmp_path: Path) -> None:
    specs = (TensorSpec("x", "float32", (2, 5, 6)), TensorSpec("key", "float32", (2, 7, 4)))
    model = Model(CrossAttention(6, 3, kdim=4).eval(), specs, "cross")
    dynamic = parse_dynamic(("batch",), specs)
    export_model(model, tmp_path / "m.onnx", dynamic=dynamic, exporter=exporter, check=False)
    _, report = fuse(load_graph(tmp_path / "m.onnx"))
    sizes = report.found[0].facts.sizes
    assert (sizes["heads"], sizes["queries"], sizes["keys"], sizes["d_qk"]) == (3, 5, 7, 2)
