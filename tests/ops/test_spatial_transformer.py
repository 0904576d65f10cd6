from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.ops.spatial_transformer import OP
from tests.graphs import Array
from tests.ops.exactness import assert_body_is_reference, fused_exactly, graph_of, weights_of

small = st.sampled_from([1, 2, 3])

PRODUCTS = {  # of positions p (H, W, 3) and matrices m
    "rows": "q = Reshape (p, flat)\nt = Transpose <perm = [0, 2, 1]> (m)\ng = MatMul (q, t)\ngrid = Reshape (g, place)",
    "einsum": 'grid = Einsum <equation = "hwj,bkj->bhwk"> (p, m)',
    "transposed": 'grid = Einsum <equation = "hwk,bkj->bhwj"> (p, square)',
    "turned": 'g = Einsum <equation = "whj,bkj->bhwk"> (p, m)\ngrid = Identity (g)',
    "sum": """
        q = Unsqueeze (p, three)
        t = Transpose <perm = [0, 2, 1]> (m)
        v = Unsqueeze (t, planes)
        f = Mul (q, v)
        grid = ReduceSum <keepdims = 0> (f, three)""",
    "shifted": "q = Reshape (p, flat)\nt = Transpose <perm = [0, 2, 1]> (m)\ng = MatMul (q, t)\n"
    "r = Reshape (g, place)\ngrid = Add (r, half)",
    "misread": "q = Reshape (p, flat)\nt = Transpose <perm = [0, 2, 1]> (m)\ng = MatMul (q, t)\n"
    "r = Transpose <perm = [0, 2, 1]> (g)\ngrid = Reshape (r, place)",
}


def positions(height: int, width: int, change: str) -> Array:
    """(x, y, 1) at every place, or nearly."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-0.9, 0.8, width), indexing="ij")
    last = np.full_like(x, 2.0 if change == "two" else 1.0)
    if change == "bent":
        x = x + 0.1 * (y > 0)
    planes = (y, x, last) if change == "swapped" else (x, y, last)
    return np.stack(planes, -1).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(small, small, small, st.sampled_from([2, 4])),
    product=st.sampled_from(sorted(PRODUCTS)),
    change=st.sampled_from(["", "", "two", "bent", "swapped"]),
    sampler=st.tuples(
        st.sampled_from(["bilinear", "bicubic", "nearest"]),
        st.sampled_from(["zeros", "border", "reflection"]),
        st.sampled_from([0, 1]),
    ),
)
def test_a_transformer_that_is_altered_is_left_alone_or_computes_the_same(
    sizes: tuple[int, ...], product: str, change: str, sampler: tuple[str, str, int]
) -> None:
    (B, H, W, C), (mode, padding, align) = sizes, sampler
    if product == "turned" and H != W:
        return
    weights: dict[str, Array] = {
        "p": positions(H, W, change), "flat": np.array([1, H * W, 3]), "place": np.array([B, H, W, 2]),
        "three": np.array([3]), "planes": np.array([1, 2]), "half": np.float32(0.5),
    }  # fmt: skip
    columns = ""
    if product == "transposed":
        weights |= {"zero": np.array([0]), "two": np.array([2]), "three1": np.array([2])}
        columns = "square = Slice (square3, zero, two, three1)"
    body = f"""
        {columns}
        {PRODUCTS[product]}
        y = GridSample <mode = "{mode}", padding_mode = "{padding}", align_corners = {align}> (x, grid)"""
    matrices = f"float[{B}, 2, 3] m" + (f", float[{B}, 3, 3] square3" if product == "transposed" else "")
    signature = f"(float[{B}, {C}, 3, 5] x, {matrices}) => (float[{B}, {C}, {H}, {W}] y)"
    report = fused_exactly(graph_of(signature, body, weights))
    if product in ("rows", "einsum", "transposed", "sum") and not change:
        assert [item.op for item in report.found] == ["SpatialTransformer"], report
    if product == "shifted" or change == "two":
        assert not report.found
    assert len(report.found) + len(report.missed) == 1


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("size", [(4, 7), (1, 5)])
def test_affine_grid_of_opset_20_is_found_static_and_dynamic(aligned: int, size: tuple[int, int]) -> None:
    body = f"""
        grid = AffineGrid <align_corners = {aligned}> (m, size)
        y = GridSample <align_corners = {aligned}> (x, grid)"""
    signature = f"(float[2, 3, 5, 4] x, float[2, 2, 3] m) => (float[2, 3, {size[0]}, {size[1]}] y)"
    report = fused_exactly(graph_of(signature, body, {"size": np.array([2, 3, *size])}, opset=20))
    assert len(report.found) == (not aligned or min(size) > 1)
    text = f"""
        size = Shape (like)
        grid = AffineGrid <align_corners = {aligned}> (m, size)
        y = GridSample <align_corners = {aligned}> (x, grid)"""
    signature = '(float[2, 3, 5, 4] x, float[2, 2, 3] m, float[2, 3, "h", "w"] like) => (float[2, 3, "h", "w"] y)'
    graph = graph_of(signature.replace('"', ""), text, {}, opset=20)
    fused_dynamic(graph, size, found=not aligned)


def fused_dynamic(graph: object, size: tuple[int, int], found: bool) -> None:
    from edgeattn.fuse import fuse
    from edgeattn.interpreter import run_as_written
    from tests.ops.exactness import assert_close

    fused, report = fuse(graph)  # type: ignore[arg-type]
    assert bool(report.found) == found
    feeds = weights_of(0, x=(2, 3, 5, 4), m=(2, 2, 3), like=(2, 3, *size))
    for after, before in zip(run_as_written(fused)(feeds).values(), run_as_written(graph)(feeds).values(), strict=True):  # type: ignore[arg-type]
        assert_close(after, before)


@pytest.mark.parametrize(("batch", "base"), [(2, 2), (1, 1), (1, 2)])
def test_a_matrix_for_the_whole_batch_is_no_matrix_for_each_sample(batch: int, base: int) -> None:
    places = np.broadcast_to(positions(3, 4, "").reshape(1, 12, 3), (base, 12, 3)).copy()
    weights: dict[str, Array] = {"p": places, "place": np.array([base, 3, 4, 2])}
    body = """
        t = Transpose <perm = [0, 2, 1]> (m)
        g = MatMul (p, t)
        grid = Reshape (g, place)
        y = GridSample (x, grid)"""
    signature = f"(float[{base}, 2, 5, 4] x, float[{batch}, 2, 3] m) => (float[{base}, 2, 3, 4] y)"
    report = fused_exactly(graph_of(signature, body, weights))
    assert bool(report.found) == (batch == base)


def test_positions_of_one_row_for_each_sample_are_no_positions_of_a_map() -> None:
    rows = positions(3, 4, "")[:, None]  # (B, 1, W, 3): as many numbers as a map (H, W, 3) has
    body = """
        grid3 = Einsum <equation = "bhwj,bkj->bhwk"> (p, m)
        grid = Expand (grid3, place)
        y = GridSample (x, grid)"""
    signature = "(float[3, 2, 5, 4] x, float[3, 2, 3] m) => (float[3, 2, 3, 4] y)"
    weights: dict[str, Array] = {"p": rows, "place": np.array([3, 3, 4, 2])}
    assert not fused_exactly(graph_of(signature, body, weights)).found


def test_the_grid_stays_where_something_else_reads_it() -> None:
    body = """
        grid = Einsum <equation = "hwj,bkj->bhwk"> (p, m)
        y = GridSample (x, grid)
        z = Relu (grid)"""
    signature = "(float[2, 2, 5, 4] x, float[2, 2, 3] m) => (float[2, 2, 3, 4] y, float[2, 3, 4, 2] z)"
    report = fused_exactly(graph_of(signature, body, {"p": positions(3, 4, "")}))
    assert [item.op for item in report.found] == ["SpatialTransformer"]


def test_a_volume_is_missed() -> None:
    weights: dict[str, Array] = {}
    body = 'y = GridSample <mode = "linear"> (x, grid)'
    signature = "(float[1, 2, 3, 4, 5] x, float[1, 2, 2, 2, 3] grid) => (float[1, 2, 2, 2, 2] y)"
    (missed,) = fused_exactly(graph_of(signature, body, weights, opset=20)).missed
    assert "expected a map (B, C, H, W)" in missed.reason


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_the_body_is_the_reference(mode: str, padding: str, align: int) -> None:
    inputs = weights_of(3, x=(2, 3, 5, 7), theta=(2, 2, 3), xs=(7,), ys=(5,))
    assert_body_is_reference(OP, "", list(inputs.values()), mode=mode, padding_mode=padding, align_corners=align)


def test_the_body_is_valid_in_newer_opsets() -> None:
    for opset, mode in ((18, "bilinear"), (20, "linear"), (23, "linear")):
        header = f'<domain: "edgeattn", opset_import: ["": {opset}]>\n'
        node = onnx.helper.make_node(
            OP.name, ["x", "m", "u", "v"], ["y"], domain="edgeattn", mode=mode, padding_mode="zeros", align_corners=0
        )
        values = weights_of(0, x=(2, 3, 5, 7), m=(2, 2, 3), u=(4,), v=(6,))
        infos = [onnx.helper.make_tensor_value_info(name, 1, array.shape) for name, array in values.items()]
        graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("y", 1, (2, 3, 6, 4))])
        opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("edgeattn", 1)]
        body = onnx.parser.parse_function(header + OP.function(""))
        proto = onnx.helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
        onnx.checker.check_model(proto, full_check=True)
