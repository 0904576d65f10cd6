from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeattn.camera.prepare import preparer
from edgeattn.data import open_data
from edgeattn.images import Recipe, leftover
from edgeattn.tensors import TensorSpec

SIZES = st.tuples(st.integers(1, 23), st.integers(1, 23))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    color = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    numbers = [0.4, 0.5, 0.6][: 1 if color == "gray" else 3]
    interpolation = draw(st.sampled_from(["nearest", "bilinear", "bicubic"]))
    return Recipe(
        size=draw(SIZES),
        resize=draw(st.sampled_from(["stretch", "crop", "letterbox"])),
        interpolation=interpolation,
        reducing_gap=draw(st.sampled_from([None, 1.0, 2.0])) if interpolation != "nearest" else None,
        color=color,
        scale=draw(st.sampled_from([1 / 255, 1.0])),
        mean=draw(st.sampled_from([(), tuple(numbers)])),
        std=draw(st.sampled_from([(), tuple(numbers)])),
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
    )


def same_as_a_file(recipe: Recipe, dtype: str, frame: np.ndarray) -> None:
    spec = TensorSpec("x", dtype, (1, *recipe.shape))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.png"
        Image.fromarray(frame).save(path)
        expected = open_data(path, [spec], recipe).sample(0).feeds["x"]
    x = preparer(spec, recipe)(frame)
    assert x.dtype == expected.dtype
    assert x.flags.c_contiguous
    assert x.flags.writeable
    np.testing.assert_array_equal(x, expected)


@settings(deadline=None, max_examples=60)
@given(recipes(), SIZES, st.sampled_from(["float32", "float16", "uint8", "int8"]), st.integers(0, 2**32 - 1))
def test_a_frame_becomes_what_the_same_picture_in_a_file_does(
    recipe: Recipe, size: tuple[int, int], dtype: str, seed: int
) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    same_as_a_file(recipe, dtype, frame)


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_what_a_folded_engine_takes_are_pixels(color: str) -> None:
    recipe = leftover(Recipe((8, 6), color=color, mean=(0.5,) * (1 if color == "gray" else 3)))
    same_as_a_file(recipe, "uint8", np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    recipe = leftover(Recipe((9, 7), color=color))
    frame = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    x = preparer(TensorSpec("x", "uint8", (1, *recipe.shape)), recipe)(frame)
    if color == "rgb":
        np.testing.assert_array_equal(x[0], frame)


def test_frames_need_not_lie_in_one_piece() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    recipe = Recipe((5, 5))
    prepare = preparer(TensorSpec("x", "float32", (1, 3, 5, 5)), recipe)
    np.testing.assert_array_equal(prepare(frame[::-1, ::2]), prepare(frame[::-1, ::2].copy()))
