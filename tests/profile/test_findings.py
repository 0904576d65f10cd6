from __future__ import annotations

from dataclasses import replace

from edgeattn.profile.findings import findings
from edgeattn.profile.report import Block, Layer, Reconciliation
from tests.profile.samples import sample_report, without_layers


def layer(name: str, share: float, **more: object) -> Layer:
    plain = Layer(name, "Convolution", "float32", 10 * share, 11 * share, (9 * share, 11 * share), share)
    return replace(plain, **more)  # type: ignore[arg-type]


def block(name: str, share: float, why: str = "") -> Block:
    return Block(name, "softmax_attention", "plain operators", not why, why, (), 10 * share, share)


EMPTY = replace(sample_report(), layers=(), blocks=(), ceilings=(), reconciliation=None)


def test_an_engine_whose_layers_are_hidden_has_none() -> None:
    assert findings(without_layers()) == ()


def test_the_costliest_attention_comes_first_with_its_reason() -> None:
    layers = (layer("a", 0.6, attention="/b/1"), layer("b", 0.3, attention="/b/2"), layer("c", 0.1))
    found = findings(replace(EMPTY, layers=layers, blocks=(block("/b/2", 0.3), block("/b/1", 0.6, "too wide"))))
    assert found[0] == (
        "/b/1 (softmax_attention) takes 6 ms, 60 % of the layers' time. Run by: plain operators. Too wide."
    )
    assert found[1].startswith("/b/2 (softmax_attention) takes 3 ms, 30 %")


def test_blocks_that_are_run_alike_are_one_sentence() -> None:
    blocks = tuple(block(f"/b/{index}", index / 100) for index in range(1, 11))
    found = findings(replace(EMPTY, layers=(layer("a", 1.0),), blocks=blocks))
    who = "10 blocks of softmax_attention, the slowest /b/10 (1 ms), take 5.5 ms"
    assert found[0] == f"{who}, 55 % of the layers' time. Run by: plain operators."


def test_attention_that_costs_little_is_not_worth_a_sentence() -> None:
    found = findings(replace(EMPTY, layers=(layer("a", 1.0),), blocks=(block("/b", 0.04),)))
    assert not any("/b" in sentence for sentence in found)


def test_it_is_said_how_few_layers_take_half_of_the_time() -> None:
    layers = (layer("a", 0.3, module="stem"), layer("b", 0.25), *(layer(f"c{index}", 0.045) for index in range(10)))
    found = findings(replace(EMPTY, layers=layers))
    assert found[0] == "2 of 12 layers take half of the time; the slowest is a (Convolution, in stem): 3 ms, 30 %."
    assert found[1] == "Outside attention, most of it is Convolution: 10 ms in 12 layers, 100 %."


def test_moving_values_about_is_named_where_it_costs() -> None:
    layers = (layer("a", 0.9), layer("b", 0.06, kind="Reorder"), layer("c", 0.04, kind="Transpose"))
    found = findings(replace(EMPTY, layers=layers))
    assert "Moving and converting values takes 10 %: 2 layers (Reorder, Transpose)." in found
    assert not any("Moving" in text for text in findings(replace(EMPTY, layers=(layer("a", 0.96), layers[2]))))


def test_a_layer_far_below_the_roof_is_named_with_its_limit() -> None:
    ceilings = sample_report().ceilings
    slow = layer("slow", 0.5, flops=1_000_000, bytes=1_000_000)  # 0.2 GFLOP/s where memory allows 19
    fast = layer("fast", 0.5, flops=1_000_000_000, bytes=1_000_000)  # 200 of 220 GFLOP/s
    found = findings(replace(EMPTY, layers=(slow, fast), ceilings=ceilings))
    assert found[-1] == "slow attains 0.2 GFLOP/s, 1.1 % of what this machine does where memory is the limit."
    assert not any("attains" in text for text in findings(replace(EMPTY, layers=(fast,), ceilings=ceilings)))


def test_time_in_no_layer_is_said() -> None:
    found = findings(
        replace(EMPTY, layers=(layer("a", 1.0),), reconciliation=Reconciliation(12.5, 14.0, 9.0, 10.0, ()))
    )
    assert found[-1] == "2.5 ms of a run, 20 %, are in no layer."
