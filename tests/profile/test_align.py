from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.profile.align import Difference, differences
from edgeattn.profile.report import Layer, ProfileReport
from tests.profile.samples import sample_report


def layer(
    name: str, *nodes: str, ms: float = 1.0, kind: str = "Conv", precision: str = "float32", attention: str = "",
    module: str = "", kernel: str = "",
) -> Layer:  # fmt: skip
    interval = (0.9 * ms, 1.1 * ms)
    return Layer(
        name, kind, precision, ms, ms, interval, 0.1, nodes=nodes, attention=attention, module=module, kernel=kernel
    )


def of(*layers: Layer, backend: str = "openvino") -> ProfileReport:
    return replace(sample_report(), layers=layers, backend=backend, blocks=())


def only(own: Layer | tuple[Layer, ...], other: Layer | tuple[Layer, ...], backend: str = "openvino") -> Difference:
    sides = [side if isinstance(side, tuple) else (side,) for side in (own, other)]
    (found,) = differences(of(*sides[0]), of(*sides[1], backend=backend))
    return found


def test_layers_are_matched_by_their_nodes_whatever_they_are_called() -> None:
    found = differences(of(layer("x", "a"), layer("y", "b", "c")), of(layer("1", "c", "b"), layer("2", "a")))
    assert {(item.layers, item.baseline_layers) for item in found} == {(("x",), ("2",)), (("y",), ("1",))}


def test_layers_that_overlap_are_one_group() -> None:
    found = only((layer("x", "a", "b"), layer("y", "c")), (layer("1", "a"), layer("2", "b", "c")))
    assert (found.layers, found.baseline_layers, found.by) == (("x", "y"), ("1", "2"), "nodes")
    assert (found.median_ms, found.baseline_ms, found.difference_ms) == (2.0, 2.0, 0.0)


def test_inside_a_block_the_block_counts() -> None:
    found = only(
        (layer("x", "att/Softmax", attention="att"), layer("y", "att/MatMul", attention="att")),
        layer("1", "att/Attention", attention="att"),
    )
    assert (found.name, found.by, found.layers) == ("att", "block", ("x", "y"))


def test_what_has_no_nodes_in_common_is_matched_by_module_then_by_kind() -> None:
    found = differences(
        of(layer("x", "a", module="m"), layer("r", kind="Reorder")),
        of(layer("1", "b", module="m"), layer("r1", kind="Reorder"), layer("p", kind="Pool", ms=5)),
    )
    assert [(item.name, item.by, item.layers, item.baseline_layers) for item in found] == [
        ("Pool", "kind", (), ("p",)),
        ("m", "module", ("x",), ("1",)),
        ("Reorder", "kind", ("r",), ("r1",)),
    ]
    assert found[0].why == ("only in the baseline",)


@pytest.mark.parametrize(
    ("own", "other", "backend", "why"),
    [
        (layer("x", "a"), layer("1", "a", precision="float16"), "openvino", "precision float32 instead of float16"),
        (layer("x", "a", kernel="gemm"), layer("1", "a", kernel="brg"), "openvino", "kernel gemm instead of brg"),
        (layer("x", "a", kernel="gemm"), layer("1", "a", kernel="brg"), "onnxruntime", ""),
        ((layer("x", "a"), layer("y", "b")), layer("1", "a", "b"), "", "2 layers instead of 1: less is fused"),
        (layer("1", "a", "b"), (layer("x", "a"), layer("y", "b")), "", "1 layer instead of 2: more is fused"),
        (
            (layer("x", "a"), layer("r", "a", kind="Reorder")),
            layer("1", "a"),
            "openvino",
            "1 layer that only moves or converts values, in the baseline none",
        ),
    ],
)
def test_a_difference_says_why(own: Layer, other: Layer, backend: str, why: str) -> None:
    assert "; ".join(only(own, other, backend).why) == why


def test_a_block_that_something_else_runs_is_said() -> None:
    engine, baseline = sample_report(blocks=1), sample_report(blocks=1)
    baseline = replace(baseline, blocks=(replace(baseline.blocks[0], plan="a plugin"),))
    block = engine.blocks[0]
    (found,) = [item for item in differences(engine, baseline) if item.name == block.name]
    assert found.why == (f"{block.name} is run by {block.plan}, in the baseline by a plugin",)


@pytest.mark.parametrize(("ms", "clear"), [(1.0, False), (1.1, False), (1.5, True), (0.5, True)])
def test_a_difference_within_the_noise_is_not_clear(ms: float, clear: bool) -> None:
    assert only(layer("x", "a", ms=ms), layer("1", "a")).clear == clear


NODES = st.lists(st.sampled_from("abcdef"), max_size=3)
LAYERS = st.lists(st.tuples(NODES, st.sampled_from(["", "m", "n"]), st.sampled_from(["Conv", "Pool"])), max_size=8)


@given(LAYERS, LAYERS)
def test_every_layer_is_in_one_difference(
    own: list[tuple[list[str], str, str]], other: list[tuple[list[str], str, str]]
) -> None:
    sides = [
        tuple(layer(f"{place}", *nodes, module=module, kind=kind) for place, (nodes, module, kind) in enumerate(side))
        for side in (own, other)
    ]
    found = differences(of(*sides[0]), of(*sides[1]))
    for side, names in zip(sides, ("layers", "baseline_layers"), strict=True):
        assert sorted(name for item in found for name in getattr(item, names)) == sorted(own.name for own in side)
    assert sum(item.difference_ms for item in found) == pytest.approx(len(own) - len(other))
