from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.backends.base import LayerTimes, RawLayer
from edgeattn.lowering import BODY
from edgeattn.profile.layers import blocks_of, layers_of, reconciled
from edgeattn.profile.provenance import Node, PlannedBlock, Provenance
from edgeattn.profile.report import Layer

MS = 1e6


def raw(name: str, *, reads: tuple[int, ...] = (), kind: str = "Conv", origin: str = "") -> RawLayer:
    shapes = ((("?"), 4, 8),)
    return RawLayer(name, kind, "float16", shapes, shapes, "jit", (origin or name,), reads)


def readings(*rows: tuple[float, ...], layers: tuple[RawLayer, ...]) -> list[LayerTimes]:
    """One reading a row, in milliseconds."""
    return [LayerTimes(layers, (tuple(MS * time for time in row),)) for row in rows]


NODES = (Node("a", "net.a", "", 1, 100), Node("b", "net.b", "block", 2, 300), Node("c", "net.c", "block", -1, 0))


def test_medians_and_shares_are_of_all_readings() -> None:
    found, off = layers_of(
        readings((1.0, 3.0), (2.0, 3.0), (9.0, 5.0), layers=(raw("a"), raw("b"))), NODES, 99.0, 3, True
    )
    assert off == 0
    assert [layer.median_ms for layer in found] == [2.0, 3.0]
    assert [layer.p90_ms for layer in found] == [9.0, 5.0]
    assert [layer.share for layer in found] == [0.4, 0.6]
    assert [layer.mean_ms for layer in found] == [pytest.approx(4.0), pytest.approx(11 / 3)]
    assert found[0].input_shapes == ((3, 4, 8),)
    assert found[0].flops == 300  # three samples
    assert found[0].bytes == 2 * 3 * 4 * 8 * 2
    assert found[1].stage == "net"


def test_layers_that_take_no_time_are_left_out_and_read_through() -> None:
    layers = (raw("a"), raw("moved", reads=(0,), origin="-"), raw("b", reads=(1,), origin="-"), raw("c", reads=(2,)))
    found, _ = layers_of(readings((1.0, 0.0, 2.0, 1.0), layers=layers), NODES, 99.0, 1, False)
    assert [layer.name for layer in found] == ["a", "b", "c"]
    assert found[1].nodes == ("b", "c")  # those of its reader, through the one that is left out


def test_any_number_of_layers_is_read_through() -> None:
    """As of sizes that are computed in a graph with dynamic shapes, each from the two before it."""
    chain = tuple(raw(f"size{place}", reads=(max(0, place - 1), max(0, place - 2))) for place in range(1, 3000))
    layers = (raw("a"), *chain, raw("b", reads=(2998, 2999)))
    found, _ = layers_of(readings((1.0, *[0.0] * 2999, 2.0), layers=layers), NODES, 99.0, 1, False)
    assert [layer.name for layer in found] == ["a", "b"]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.floats(0.05, 2))
def test_what_the_instrument_takes_is_taken_off_alike(times: list[float], ratio: float) -> None:
    whole = ratio * sum(times)
    layers = tuple(raw(f"layer{place}") for place in range(len(times)))
    found, off = layers_of(readings(tuple(times), layers=layers), (), whole, 1, False)
    assert off >= 0
    for layer, time in zip(found, times, strict=True):
        assert layer.median_ms == pytest.approx(time - off)
        assert layer.median_ms >= -1e-12
    left = sum(layer.median_ms for layer in found)
    assert left == pytest.approx(min(sum(times), max(whole, sum(times) - len(times) * min(times))))


def test_nothing_timed_is_no_layer() -> None:
    assert layers_of([], NODES, 1.0, 1, False) == ((), 0.0)
    assert layers_of([LayerTimes((raw("a"),), ())], NODES, 1.0, 1, False) == ((), 0.0)


def known(plan: str = BODY, why: str = "no kernel") -> Provenance:
    return Provenance(NODES, (PlannedBlock("block", "CBAM", plan, why, 10, 8, 5),), per_sample=True)


def layer(name: str, ms: float, *, attention: str = "block", kind: str = "Conv", nodes: tuple[str, ...] = ()) -> Layer:
    return Layer(name, kind, "float32", ms, ms, (ms, ms), ms / 10, nodes=nodes, attention=attention)


def test_a_block_in_several_layers_is_not_fused_and_says_why() -> None:
    layers = [layer("pool", 1.0), layer("gate", 2.0), layer("other", 7.0, attention="")]
    (block,) = blocks_of(known(), layers, 4)
    assert (block.fused, block.why, block.layers) == (False, "no kernel", ("pool", "gate"))
    assert block.median_ms == 3.0
    assert block.share == pytest.approx(0.3)
    assert (block.flops, block.bytes, block.intensity) == (40, 32, 1.25)


def test_a_block_in_one_layer_and_a_reorder_is_fused() -> None:
    layers = [layer("to", 1.0, kind="Reorder"), layer("gate", 2.0)]
    (block,) = blocks_of(known(), layers, 1)
    assert block.fused
    assert block.why == "the backend fused the plain operators itself"
    assert block.bytes == 5


def test_a_planned_kernel_that_the_backend_did_not_use_is_said() -> None:
    (block,) = blocks_of(known("fused MHA", ""), [layer("a", 1.0), layer("b", 1.0)], 1)
    assert not block.fused
    assert block.why == "planned as one kernel, but the backend runs it in 2 layers"


def test_a_block_within_a_foreign_layer_has_no_time_of_its_own() -> None:
    (block,) = blocks_of(known(), [layer("all", 9.0, attention="", nodes=("a", "b", "c"))], 1)
    assert (block.median_ms, block.share, block.layers) == (None, None, ())
    assert "within all" in block.why


@pytest.mark.parametrize(
    ("runs", "off", "averaged", "words"),
    [
        ([(4.0, 5.0)], 0.0, 1, "1.000 ms lie outside"),
        ([(4.0, 8.0)], 0.0, 1, "2.000 ms more than the whole: some run beside others"),
        ([(4.007, 6.007)], 0.007, 1, "timing takes 7.0 us within each layer"),
        ([(4.0, 6.0)], 0.0, 40, "a mean of about 40 runs"),
        ([(1.0, 9.0), (1.0, 2.0), (8.0, 2.0)], 0.0, 1, "in one run they take 7.000 ms more: what disturbs runs"),
    ],
)
def test_sum_and_whole_are_reconciled_in_words(
    runs: list[tuple[float, ...]], off: float, averaged: int, words: str
) -> None:
    rows = tuple(tuple(1e6 * spent for spent in row) for row in runs)
    reading = LayerTimes((raw("a"), raw("b")), rows, averaged)
    medians = [statistics.median(spent) - off for spent in zip(*runs, strict=True)]
    found = reconciled([layer(str(ms), ms) for ms in medians], [reading], 10.0, 11.0, off)
    assert found.layers_ms == sum(medians)
    assert found.overhead_ms == pytest.approx(1.0)
    assert found.layers_ms + found.uneven_ms + found.outside_ms == pytest.approx(10.0)
    assert [line for line in found.explanation if words in line]
    assert "a run with every layer timed takes 11.000 ms, +10 %" in found.explanation
    assert len(found.explanation) == 2 + (10 - sum(medians) != pytest.approx(0)) + (averaged > 1) + (off > 0)
