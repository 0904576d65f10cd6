"""Which of an engine's inputs have a batch, how large it may be, and how batches are cut from feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgeattn.tensors import Profile

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Feeds, Shape, ShapeRange

__all__ = ["at_opt", "batch_range", "batch_size", "batched_inputs", "joined_range", "take_rows"]


def batched_inputs(profile: Profile) -> list[str]:
    """The inputs whose first axis is the batch: those where it ranges, or all where none does."""
    ranging = [name for name, spread in profile.items() if spread.opt and spread.min[0] != spread.max[0]]
    return ranging or [name for name, spread in profile.items() if spread.opt]


def batch_range(profile: Profile) -> tuple[int, int]:
    """The smallest and the largest batch."""
    return _rows([profile[name] for name in batched_inputs(profile)])


def joined_range(profile: Profile) -> tuple[int, int]:
    """How few and how many samples can be joined, which gives every input as many rows, the fixed ones too."""
    return _rows([spread for spread in profile.values() if spread.opt])


def _rows(spreads: Sequence[ShapeRange]) -> tuple[int, int]:
    """How few and how many rows all of some inputs take."""
    return max((s.min[0] for s in spreads), default=1), min((s.max[0] for s in spreads), default=1)


def batch_size(shapes: Mapping[str, Shape], profile: Profile) -> int:
    """The batch of some shapes."""
    return next((shapes[name][0] for name in batched_inputs(profile)), 1)


def at_opt(profile: Profile) -> dict[str, Shape]:
    """The optimal shapes."""
    return {name: spread.opt for name, spread in profile.items()}


def take_rows(profile: Profile, feeds: Feeds, rows: Sequence[int]) -> dict[str, Array]:
    """The rows of every batched input; the others stay whole."""
    chosen = batched_inputs(profile)
    return {name: array[list(rows)] if name in chosen else array for name, array in feeds.items()}
