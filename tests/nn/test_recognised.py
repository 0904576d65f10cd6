"""What our own modules export to is found as the op that they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from edgeattn.export import export_model
from edgeattn.fuse import fuse
from edgeattn.graph import load_graph
from edgeattn.model import Model, parse_dynamic
from edgeattn.nn import (
    CBAM,
    ECA,
    AttentionGate,
    AttentionPool,
    EffectiveSE,
    GlobalContext,
    HardAttention,
    SelectiveKernel,
    SpatialTransformer,
    SqueezeExcite,
)
from edgeattn.tensors import TensorSpec

ITEMS = TensorSpec("items", "float32", (2, 7, 8))
X, G = TensorSpec("x", "float32", (2, 8, 6, 10)), TensorSpec("g", "float32", (2, 6, 6, 10))
TOKENS = TensorSpec("x", "float32", (2, 7, 8))


def localisation() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[TensorSpec, ...], str]] = {
    "CBAM": (lambda: CBAM(8), (X,), "CBAM relu"),
    "ECA": (lambda: ECA(8), (X,), "ChannelGate eca-sigmoid"),
    "SqueezeExcite": (lambda: SqueezeExcite(8), (X,), "ChannelGate avg-relu-sigmoid"),
    "EffectiveSE": (lambda: EffectiveSE(8), (X,), "ChannelGate ese-hardsigmoid"),
    "SelectiveKernel": (lambda: SelectiveKernel(8), (X,), "SelectiveKernel 2-relu"),
    "GlobalContext": (lambda: GlobalContext(8), (X,), "ChannelGate attn-ln-relu-sigmoid"),
    "GlobalContext-add": (
        lambda: GlobalContext(8, fuse_add=True, fuse_scale=False),
        (X,),
        "ChannelGate attn-ln-relu-add",
    ),
    "GlobalContext-mean": (lambda: GlobalContext(8, use_attn=False), (X,), "ChannelGate avg-ln-relu-sigmoid"),
    "AttentionPool": (lambda: AttentionPool(8, queries=3, gated=True), (TOKENS,), "AttentionPool items"),
    "AttentionPool-map": (lambda: AttentionPool(8), (X,), "AttentionPool items"),
    "HardAttention": (lambda: HardAttention(8, 3), (ITEMS,), "HardAttention "),
    "SpatialTransformer": (lambda: SpatialTransformer(localisation(), (4, 5)), (X,), "SpatialTransformer "),
    "AttentionGate": (lambda: AttentionGate(8, 6), (X, G), "AttentionGate same"),
    "AttentionGate-coarse": (lambda: AttentionGate(8, 6, sub_sample=2), (X, G), "AttentionGate coarse"),
}


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_found_as_what_it_is(name: str, exporter: str, tmp_path: Path) -> None:
    module, specs, expected = MODULES[name]
    model = Model(module().eval(), specs, name)
    dynamic = parse_dynamic(("batch",), specs)
    export_model(model, tmp_path / "m.onnx", dynamic=dynamic, exporter=exporter, check=False)
    _, report = fuse(load_graph(tmp_path / "m.onnx"))
    assert [f"{item.op} {item.variant}" for item in report.found] == [expected], report
