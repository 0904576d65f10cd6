from __future__ import annotations

import pytest

from edgeattn.batches import at_opt, batch_range, batch_size, batched_inputs, joined_range
from edgeattn.tensors import ShapeRange

FIXED = ShapeRange((4, 3), (4, 3), (4, 3))
RANGING = ShapeRange((1, 3), (2, 3), (8, 3))
SCALAR = ShapeRange((), (), ())


@pytest.mark.parametrize(
    ("profile", "inputs", "batches", "size", "joined"),
    [
        ({"x": RANGING}, ["x"], (1, 8), 2, (1, 8)),
        ({"x": FIXED}, ["x"], (4, 4), 4, (4, 4)),
        ({"x": FIXED, "y": RANGING}, ["y"], (1, 8), 2, (4, 4)),  # a row of y for each of the four of x
        ({"x": RANGING, "t": SCALAR}, ["x"], (1, 8), 2, (1, 8)),
        ({"t": SCALAR}, [], (1, 1), 1, (1, 1)),
        ({}, [], (1, 1), 1, (1, 1)),
    ],
)
def test_what_ranges_is_the_batch_and_what_is_joined_fits_all(
    profile: dict[str, ShapeRange], inputs: list[str], batches: tuple[int, int], size: int, joined: tuple[int, int]
) -> None:
    assert batched_inputs(profile) == inputs
    assert batch_range(profile) == batches
    assert batch_size(at_opt(profile), profile) == size
    assert joined_range(profile) == joined
