"""The data that the models of the zoo are trained on and judged by, as files like those of any user.

Each `write_<name>(folder, split, count)` writes samples, the same ones everywhere, and returns how many. Sources are
scans and photographs that come with scikit-learn and scikit-image.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeattn.zoo.data.clips import write_clips
from edgeattn.zoo.data.cluttered import write_cluttered
from edgeattn.zoo.data.digits import write_digits
from edgeattn.zoo.data.fusion import write_fusion
from edgeattn.zoo.data.saliency import write_saliency
from edgeattn.zoo.data.scenes import write_scenes

DATASETS: dict[str, Callable[..., int]] = {
    "digits": write_digits,
    "cluttered": write_cluttered,
    "scenes": write_scenes,
    "saliency": write_saliency,
    "fusion": write_fusion,
    "clips": write_clips,
}

__all__ = [
    "DATASETS",
    "write_clips",
    "write_cluttered",
    "write_digits",
    "write_fusion",
    "write_saliency",
    "write_scenes",
]
