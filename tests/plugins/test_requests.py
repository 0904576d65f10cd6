from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.backends.trt.plugin_library import COMMON
from edgeattn.backends.trt.plugins import (
    Request,
    answerable,
    launches,
    obstacles,
    request_from_json,
    request_of,
    requests_in,
)
from edgeattn.fuse import fuse
from edgeattn.kernels.launch import evaluate
from edgeattn.lowering.tensorrt import to_plugin
from edgeattn.ops.base import DOMAIN
from tests.graphs import self_attention
from tests.plugins.library import CODED, MAPS, MASKED, MIXTURE, MODULE, SQUARE, attention


def test_a_node_asks_with_its_sizes_open_where_they_are() -> None:
    (request,) = requests_in(self_attention().graph, ["float16"])
    assert request.op == "SoftmaxAttention"
    assert request.dtypes == ("float16",) * 3
    assert request.shapes == (("d0", 1, 7, 8),) * 3
    assert request.attributes["scale"] == pytest.approx(8**-0.5)
    assert request.open == ("d0",)
    assert request.inputs == ("q", "k", "v")


def test_a_node_lowered_for_plugins_asks_for_the_same() -> None:
    fused, _ = fuse(self_attention().graph)
    (node,) = [node for node in fused.model.graph if node.domain == DOMAIN]
    before = request_of(node)
    to_plugin(fused.model, node)
    assert request_of(node) == before


@pytest.mark.parametrize("request_", [MAPS, SQUARE, MASKED, MODULE, CODED, *COMMON], ids=str)
def test_a_request_survives_json_with_its_digest(request_: Request) -> None:
    read = request_from_json(json.loads(json.dumps(request_.to_json())))
    assert read == request_
    assert read.digest == request_.digest


def test_digests_differ_where_requests_do() -> None:
    others = [MAPS, SQUARE, replace(MAPS, attributes={"scale": 0.5}), replace(MAPS, variant="guarded")]
    assert len({request.digest for request in others}) == len(others)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_open_sizes_cover_known_ones_where_they_agree(batch: int, queries: int, keys: int) -> None:
    other = attention((batch, 1, queries, 8), (batch, 1, keys, 8), (batch, 1, keys, 64))
    assert MAPS.covers(other) == (queries == keys)
    assert not other.covers(MAPS)
    assert MAPS.covers(MAPS)


@pytest.mark.parametrize(
    "other",
    [
        replace(SQUARE, variant="guarded"),
        replace(SQUARE, op="CBAM"),
        replace(SQUARE, dtypes=("float32",) * 3),
        replace(SQUARE, attributes={"scale": 1.001}),
        replace(SQUARE, attributes={"scale": 1.0, "fill": 0.0}),
        replace(SQUARE, shapes=SQUARE.shapes[:2]),
        replace(SQUARE, shapes=((64, 8), (64, 8), (64, 64))),
    ],
    ids=str,
)
def test_kernels_do_not_serve_what_differs_in_anything_else(other: Request) -> None:
    assert not SQUARE.covers(other)
    assert not MAPS.covers(other)


def test_a_scale_may_differ_in_its_last_digits() -> None:
    near = replace(SQUARE, attributes={"scale": 1.0 + 1e-7})
    assert SQUARE.covers(near)


def test_the_common_kernels_serve_a_transformer_of_any_length() -> None:
    cross = Request(
        "SoftmaxAttention", "", ("float16",) * 3, ((3, 12, 197, 64), (3, 12, 77, 64), (3, 12, 77, 64)),
        {"scale": 0.125, "layout": "bhnd,bhnd,bhnd,bnhd"},
    )  # fmt: skip
    assert sum(known.covers(cross) for known in COMMON) == 1


def test_what_has_no_kernel_is_named_with_the_reason() -> None:
    wide = attention((1, 1, 64, 300), (1, 1, 64, 300), (1, 1, 64, 64))
    found, notes = answerable([MAPS, wide], [75, 87])
    assert found == [MAPS]
    assert notes == [f"no kernel for {wide}: a head size of q and k of 300; at most 256"]
    brain = replace(MAPS, dtypes=("bfloat16",) * 3)
    assert obstacles(brain, [75, 87]) == ["bfloat16 on sm_75; it starts with sm_80"]
    assert answerable([brain], [75, 87])[0] == [brain]


def test_a_gate_in_int8_is_another_request_of_one_more_input() -> None:
    assert (MIXTURE.result, CODED.result) == ("float16", "int8")
    assert CODED.inputs == (*MIXTURE.inputs, "y_scale")
    assert CODED.shapes[-1] == (1,)
    assert not MIXTURE.covers(CODED)
    assert not CODED.covers(MIXTURE)
    assert obstacles(CODED, [75, 87]) == []
    *first, last = launches(CODED, 87)
    assert first == launches(MIXTURE, 87)[:-1]
    assert (last.pointers["y"], last.pointers["y_scale"]) == ("int8", "float16")


@pytest.mark.parametrize("request_", [MAPS, MASKED, MODULE, CODED, *COMMON], ids=str)
def test_every_size_that_a_launch_needs_is_one_of_the_request(request_: Request) -> None:
    dims = dict.fromkeys(request_.open, 3)
    for launch in launches(request_, 87):
        for expression in (launch.grid, *launch.integers.values(), *launch.scratch.values()):
            assert evaluate(expression, dims) >= 0
