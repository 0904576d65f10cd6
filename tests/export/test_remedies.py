from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from edgeattn.export import export_model
from edgeattn.export.remedies import Remedies
from edgeattn.model import Model
from edgeattn.tensors import TensorSpec

SIZES = st.integers(1, 17)


def close(ours: torch.Tensor, truth: torch.Tensor) -> bool:
    return ours.shape == truth.shape and bool((ours - truth).abs().max() <= 1e-14 * max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("pool", [F.adaptive_avg_pool2d, F.adaptive_max_pool2d], ids=["avg", "max"])
@given(height=SIZES, width=SIZES, rows=SIZES, columns=SIZES)
def test_pooling_to_any_size_is_exact_even_when_enlarging(
    pool, height: int, width: int, rows: int, columns: int
) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with Remedies("dynamo", dynamic_sizes=False) as remedies:
        pooled = pool(x, (rows, columns))
    assert close(pooled, pool(x, (rows, columns)))
    divides = height % rows == 0 and width % columns == 0
    assert bool(remedies.notes) == (not divides)


def test_windows_that_are_evenly_spaced_become_one_pooling() -> None:
    x = torch.randn(1, 2, 7, 9)
    with Remedies("dynamo", dynamic_sizes=False) as remedies:
        F.adaptive_avg_pool2d(x, (3, 4))
        F.adaptive_max_pool2d(x, (3, 5))
    assert list(remedies.notes) == [
        "adaptive_avg_pool2d 7x9 to 3x4 as a pooling of 3x3, stride 2x2",
        "adaptive_max_pool2d 7x9 to 3x5 as maxima of slices",
    ]


@pytest.mark.parametrize("pool", [F.adaptive_avg_pool1d, F.adaptive_max_pool1d], ids=["avg", "max"])
@given(size=SIZES, out=SIZES)
def test_pooling_of_sequences_is_exact(pool, size: int, out: int) -> None:
    x = torch.randn(2, 3, size, dtype=torch.float64)
    with Remedies("torchscript", dynamic_sizes=False):
        pooled = pool(x, out)
    assert close(pooled, pool(x, out))


def test_pooling_reads_every_spelling_of_a_size() -> None:
    x = torch.randn(3, 7, 9, dtype=torch.float64)
    for module in (nn.AdaptiveAvgPool2d(4), nn.AdaptiveAvgPool2d((None, 4)), nn.AdaptiveMaxPool2d([2, None])):
        with Remedies("dynamo", dynamic_sizes=False) as remedies:
            pooled = module(x)
        assert close(pooled, module(x))
        assert len(remedies.notes) == 1
    with Remedies("dynamo", dynamic_sizes=False):
        _, index = F.adaptive_max_pool2d(x, 4, return_indices=True)
    assert torch.equal(index, F.adaptive_max_pool2d(x, 4, return_indices=True)[1])


def test_a_nan_stays_where_pytorch_leaves_it() -> None:
    x = torch.zeros(1, 1, 7, 7)
    x[0, 0, 0, 6] = torch.nan
    with Remedies("dynamo", dynamic_sizes=False):
        pooled = F.adaptive_max_pool2d(x, 3)
    assert torch.equal(pooled.isnan(), F.adaptive_max_pool2d(x, 3).isnan())


@pytest.mark.filterwarnings("ignore:.*unit-size grids:UserWarning")  # PyTorch's own form says so
@given(batch=st.integers(1, 3), height=SIZES, width=SIZES, align=st.booleans())
def test_affine_grids_are_exact(batch: int, height: int, width: int, align: bool) -> None:
    theta = torch.randn(batch, 2, 3, dtype=torch.float64)
    with Remedies("torchscript", dynamic_sizes=False):
        grid = F.affine_grid(theta, [batch, 5, height, width], align_corners=align)
    assert close(grid, F.affine_grid(theta, [batch, 5, height, width], align_corners=align))


def test_affine_grids_of_volumes_are_left_alone() -> None:
    theta = torch.randn(2, 3, 4)
    with Remedies("dynamo", dynamic_sizes=False) as remedies:
        grid = F.affine_grid(theta, size=[2, 1, 3, 4, 5], align_corners=False)
    assert torch.equal(grid, F.affine_grid(theta, [2, 1, 3, 4, 5], align_corners=False))
    assert not remedies.notes


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (None, {}),
        (None, {"scale": 0.3}),
        (None, {"is_causal": True}),
        ("shared", {}),
        ("each", {"scale": 0.3}),
    ],
    ids=str,
)
def test_attention_without_heads_is_exact(mask: str | None, options: dict) -> None:
    q, k, v = (torch.randn(2, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    where = {None: None, "shared": torch.rand(5, 7) > 0.3, "each": torch.rand(2, 5, 7) > 0.3}[mask]
    with Remedies("dynamo", dynamic_sizes=False):
        ours = F.scaled_dot_product_attention(q, k, v, where, **options)
    truth = F.scaled_dot_product_attention(q, k, v, where, **options)
    assert torch.equal(ours.isnan(), truth.isnan())
    assert close(ours.nan_to_num(), truth.nan_to_num())


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize(
    "module", [nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveMaxPool2d((1, None))], ids=["avg", "max"]
)
def test_pooling_one_axis_away_works_at_dynamic_sizes(module: nn.Module, exporter: str) -> None:
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    with Remedies(exporter, dynamic_sizes=True) as remedies:
        pooled = module(x)
    assert close(pooled, module(x))
    assert len(remedies.notes) == 1


@pytest.mark.parametrize("mask", [None, (5, 7), (3, 1, 5, 7), (2, 3, 4, 5, 7)], ids=str)
def test_attention_in_blocks_is_exact(mask: tuple[int, ...] | None) -> None:
    q, k, v = (torch.randn(2, 3, 4, n, d, dtype=torch.float64) for n, d in ((5, 8), (7, 8), (7, 6)))
    where = None if mask is None else torch.randn(mask, dtype=torch.float64)
    with Remedies("dynamo", dynamic_sizes=False):
        ours = F.scaled_dot_product_attention(q, k, v, where)
    assert close(ours, F.scaled_dot_product_attention(q, k, v, where))


class GlobalPools(nn.Module):
    """As CBAM's first implementation pools."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        window = (x.size(2), x.size(3))
        return F.avg_pool2d(x, window, stride=window) + F.max_pool2d(x, window, stride=window)


@pytest.mark.parametrize(("exporter", "axes"), [("torchscript", (0,)), ("dynamo", (0, 2, 3))], ids=["ts", "dynamo"])
def test_a_window_of_the_image_s_own_size_exports_with_dynamic_axes(
    exporter: str, axes: tuple[int, ...], tmp_path: Path
) -> None:
    model = Model(GlobalPools(), (TensorSpec("x", "float32", (2, 3, 9, 7)),), "pools")
    dynamic = {"x": {axis: f"size{axis}" for axis in axes}}
    report = export_model(model, tmp_path / "m.onnx", exporter=exporter, dynamic=dynamic)
    assert {"ReduceMean", "ReduceMax", "Add"} <= set(report.op_counts) <= {"ReduceMean", "ReduceMax", "Add", "Constant"}


def test_a_window_that_is_computed_and_smaller_is_left_alone() -> None:
    x = torch.randn(1, 2, 8, 6, dtype=torch.float64)
    window = torch.tensor(4)  # as the TorchScript tracer shows a size
    with Remedies("torchscript", dynamic_sizes=False):
        assert close(F.avg_pool2d(x, (window, window)), F.avg_pool2d(x, 4))
        assert close(F.avg_pool2d(x, (window, window), 1, 1), F.avg_pool2d(x, 4, 1, 1))
