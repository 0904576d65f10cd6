from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeattn.camera.geometry import boxes_in_frame, seen_part, smooth, spread
from edgeattn.images import Recipe, _resize, place_boxes

RESIZES = ("stretch", "crop", "letterbox")
sides = st.integers(1, 97)
sizes = st.tuples(sides, sides)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RESIZES), sizes, sizes, seeds)
def test_boxes_come_back_to_where_they_were(
    resize: str, size: tuple[int, int], shape: tuple[int, int], seed: int
) -> None:
    recipe = Recipe(shape, resize)
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (5, 2, 2)) * size, axis=1)
    boxes = np.concatenate([corners.reshape(5, 4), np.arange(5)[:, None]], 1)
    there = place_boxes(boxes, size, recipe)
    back = boxes_in_frame(there[:, :4], size, recipe)
    low, high = np.zeros(2), np.array(size, float)
    if resize == "crop":  # it cuts what it does not show; nothing else is lost
        ratio = shape[1] / shape[0]
        kept = np.array([min(size[0], ratio * size[1]), min(size[1], size[0] / ratio)])
        low, high = (high - kept) / 2, (high + kept) / 2
    expected = np.clip(corners, low, high).reshape(5, 4)[there[:, 4].astype(int)]
    assert np.abs(back - expected).max(initial=0) <= 1e-5 * max(size)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RESIZES), sizes, st.integers(1, 3), seeds)
def test_a_mask_that_was_not_shrunk_comes_back_as_it_was(
    resize: str, size: tuple[int, int], factor: int, seed: int
) -> None:
    w, h = size
    mask = np.random.default_rng(seed).integers(0, 200, (h, w), dtype=np.int32)
    side = factor * max(size)  # so that neither fitting inside nor covering shrinks it
    recipe = Recipe((side, side), resize)
    there = np.asarray(_resize(Image.fromarray(mask), recipe, "nearest", 255))
    back = spread(there, size, recipe, size)
    seen = back >= 0
    assert np.array_equal(back[seen], mask[seen])
    cut = abs(w - h) / 2 if resize == "crop" else 0  # at both ends of the longer side
    kept = sum(cut <= place + 0.5 < max(size) - cut for place in range(max(size)))
    assert np.count_nonzero(seen) == min(size) * kept


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RESIZES), sizes, sizes, sizes)
def test_each_pixel_of_the_frame_takes_what_its_centre_became(
    resize: str, size: tuple[int, int], shape: tuple[int, int], cells: tuple[int, int]
) -> None:
    (w, h), recipe = size, Recipe(shape, resize)
    plane = np.arange(cells[0] * cells[1]).reshape(cells)
    drawn = spread(plane, size, recipe, size)
    for x, y in ((0, 0), (w // 2, h // 2), (w - 1, h - 1), (w - 1, 0)):
        around = np.add([x, y, x, y, 0], [0.4999, 0.4999, 0.5001, 0.5001, 0])
        there = place_boxes(around[None], size, recipe)
        if not len(there):
            assert drawn[y, x] == -1
            continue
        cell = np.array(np.unravel_index(drawn[y, x], cells))[::-1]
        scale = np.array(cells)[::-1] / np.array(shape)[::-1]
        assert (cell <= there[0, 2:4] * scale + 1e-3).all()
        assert (there[0, :2] * scale <= cell + 1 + 1e-3).all()


def test_smooth_agrees_with_pillow_where_it_enlarges() -> None:
    rng = np.random.default_rng(0)
    plane = rng.random((7, 5), np.float32)
    ours = smooth(plane, (40, 28), Recipe((28, 40)), (40, 28))
    theirs = np.asarray(Image.fromarray(plane).resize((40, 28), Image.Resampling.BILINEAR))
    assert np.abs(ours - theirs).max() < 1e-6


@pytest.mark.parametrize("at", [(80, 60), (31, 17)])
def test_a_frame_may_be_drawn_in_any_size(at: tuple[int, int]) -> None:
    halves = np.repeat([[0, 1]], 4, axis=0)
    drawn = spread(halves, (640, 480), Recipe((4, 2)), at)
    assert drawn.shape == at[::-1]
    centres = (np.arange(at[0]) + 0.5) / at[0]
    assert np.array_equal(drawn, np.repeat([(centres >= 0.5).astype(int)], at[1], axis=0))


def test_only_what_shows_the_frame_is_seen() -> None:
    plane = np.arange(64).reshape(8, 8)
    assert np.array_equal(seen_part(plane, (200, 100), Recipe((64, 64), "letterbox")), plane[2:6])
    assert np.array_equal(seen_part(plane, (200, 100), Recipe((64, 64), "crop")), plane)
    assert seen_part(plane, (1000, 1), Recipe((64, 64), "letterbox")).shape == (1, 8)
