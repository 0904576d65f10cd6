from __future__ import annotations

from dataclasses import replace

import pytest

from edgeattn.profile.report import Ceiling, Layer
from edgeattn.profile.roofline import points
from tests.profile.samples import sample_report

CEILING = Ceiling("float32", 100.0, 10.0)  # GFLOP/s, GB/s: the two meet at 10 FLOP per byte


def layer(flops: int | None, size: int | None, ms: float, precision: str = "float32") -> Layer:
    return Layer("layer", "Conv", precision, ms, ms, (ms, ms), 0.1, flops=flops, bytes=size)


@pytest.mark.parametrize(
    ("work", "intensity", "roof", "share", "bound"),
    [
        (layer(50_000_000, 1_000_000, 1.0), 50, 100, 0.5, "compute"),
        (layer(1_000_000, 1_000_000, 1.0), 1, 10, 0.1, "memory"),
        (layer(10_000_000, 1_000_000, 0.2), 10, 100, 0.5, "compute"),
        (layer(1_000_000, 1_000_000, 0.05), 1, 10, 2.0, "cache"),
    ],
)
def test_a_layer_is_held_against_the_roof_at_its_intensity(
    work: Layer, intensity: float, roof: float, share: float, bound: str
) -> None:
    (point,) = points(replace(sample_report(), layers=(work,), blocks=(), ceilings=(CEILING,)))
    assert (point.kind, point.bound, point.precision) == ("layer", bound, "float32")
    assert (point.intensity, point.roof_gflops) == (intensity, roof)
    assert point.gflops == pytest.approx(share * roof)
    assert point.share == pytest.approx(share)


@pytest.mark.parametrize(
    "unknown", [layer(None, 8, 1), layer(8, None, 1), layer(0, 8, 1), layer(8, 8, 0), layer(8, 8, 1, "int8")]
)
def test_what_is_not_known_has_no_place_under_the_roof(unknown: Layer) -> None:
    assert not points(replace(sample_report(), layers=(unknown,), blocks=(), ceilings=(CEILING,)))


def test_a_block_is_held_against_the_precision_of_most_of_its_time() -> None:
    report = sample_report(layers=12, blocks=1)
    (block,) = report.blocks
    own = [layer for layer in report.layers if layer.name in block.layers]
    spent = {name: sum(layer.median_ms for layer in own if layer.precision == name) for name in ("float32", "bfloat16")}
    point = points(report)[0]
    assert (point.name, point.kind) == (block.name, "block")
    assert point.precision == max(spent, key=lambda name: spent[name])


def test_a_block_that_layers_hide_counts_with_what_taking_it_out_saved() -> None:
    report = sample_report(blocks=1)
    hidden = replace(report.blocks[0], median_ms=None, ablation_ms=0.5)
    point = points(replace(report, blocks=(hidden,)))[0]
    assert point.gflops == pytest.approx((hidden.flops or 0) / 0.5 / 1e6)
