from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeattn.errors import UsageError
from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import load_graph
from edgeattn.model import Model, parse_dynamic
from edgeattn.nn import NonLocal2d
from edgeattn.nn.non_local import MODES
from edgeattn.tensors import TensorSpec
from tests.graphs import Array
from tests.nn.oracles import close, mix, normalised, prepared, run, softmax


def pooled(x: Array, side: int) -> Array:
    b, c, h, w = x.shape
    whole = x[:, :, : h // side * side, : w // side * side]
    return whole.reshape(b, c, h // side, side, w // side, side).max((3, 5))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "pool"), [((2, 6, 5, 7), 1), ((1, 3, 7, 4), 2), ((3, 1, 1, 1), 1)])
def test_it_is_the_formula(mode: str, shape: tuple[int, ...], pool: int) -> None:
    module, weights = prepared(NonLocal2d(shape[1], mode, pool=pool))
    x = np.random.default_rng(0).standard_normal(shape)

    def rows(name: str, side: int) -> Array:
        y = mix(x, weights[f"{name}.weight"], weights[f"{name}.bias"]) if f"{name}.weight" in weights else x
        y = pooled(y, side)
        return y.reshape(*y.shape[:2], -1)

    scores = np.einsum("bdn,bdm->bnm", rows("theta", 1), rows("phi", pool))
    attention = scores / scores.shape[2] if mode == "dot_product" else softmax(scores, 2)
    mean = np.einsum("bnm,bcm->bcn", attention, rows("g", pool)).reshape(shape[0], -1, *shape[2:])
    out = mix(mean, weights["w.weight"], weights["w.bias"])
    assert close(run(module, x), normalised(out, weights, "norm") + x)


def test_it_starts_as_the_identity() -> None:
    x = torch.randn(2, 8, 5, 7)
    assert torch.equal(NonLocal2d(8).eval()(x), x)


def test_an_unknown_mode_names_the_known() -> None:
    with pytest.raises(UsageError, match="did you mean 'gaussian'"):
        NonLocal2d(8, "gausian")


@pytest.mark.parametrize("mode", MODES)
def test_it_is_found_or_missed_for_what_it_is(mode: str, tmp_path: Path) -> None:
    model = Model(NonLocal2d(8, mode, pool=2).eval(), (TensorSpec("x", "float32", (2, 8, 6, 4)),), mode)
    export_model(model, tmp_path / "m.onnx", dynamic=parse_dynamic(("batch",), model.inputs), check=False)
    _, report = fuse(load_graph(tmp_path / "m.onnx"))
    if mode == "dot_product":
        assert "expected a softmax" in report.missed[0].reason
    else:
        assert report.found[0].facts.sizes["keys"] == 6
