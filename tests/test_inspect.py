from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.graph import save_graph
from edgeattn.inspect import GraphInfo, inspect_file
from edgeattn.tensors import format_size
from tests.graphs import self_attention


def described(tmp_path: Path, tokens: int | str = 7, dim: int = 8) -> GraphInfo:
    save_graph(self_attention(tokens=tokens, dim=dim).graph, tmp_path / "m.onnx")
    info = inspect_file(tmp_path / "m.onnx")
    assert isinstance(info, GraphInfo)
    return info


def test_an_attention_is_given_with_its_sizes_costs_and_share(tmp_path: Path) -> None:
    info = described(tmp_path)
    (row,) = info.to_json()["attention"]
    assert {"op", "name", "shape", "flops", "bytes", "plan"} <= set(row)
    assert row["nodes"]
    assert {name: row["shape"][name] for name in ("heads", "d_qk", "d_v")} == {"heads": 1, "d_qk": 8, "d_v": 8}
    projections = 3 * 2 * 7 * 8 * 8
    assert row["share"] == pytest.approx(row["flops"] / (row["flops"] + projections))
    assert row["bytes"]["decomposed"] > row["bytes"]["fused"] > 0
    text = str(info)
    assert f"{row['share']:.1%} of the model" in text
    assert f"fused {format_size(row['bytes']['fused'])}" in text


def test_a_share_of_what_is_not_known_is_not_given(tmp_path: Path) -> None:
    info = described(tmp_path, tokens="n")
    (row,) = info.to_json()["attention"]
    assert row["share"] is row["flops"] is None
    assert "of the model" not in str(info)


def test_what_differs_between_versions_of_tensorrt_is_said(tmp_path: Path) -> None:
    info = described(tmp_path, dim=20)
    plans = info.to_json()["attention"][0]["plan"]
    assert plans["tensorrt"]["runs"] == "TensorRT native fused MHA (>= 10.14)"
    assert "head size 20 is not a multiple of 8" in plans["tensorrt"]["why"]
    assert plans["tensorrt-rtx"] == {"runs": "TensorRT native fused MHA", "why": ""}
    assert "tensorrt: TensorRT native fused MHA (>= 10.14) (before, function body" in str(info)
