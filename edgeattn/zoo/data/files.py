"""Writing the samples of a data set, as the files that any user's data folder holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.errors import EdgeAttnError

if TYPE_CHECKING:
    from edgeattn.tensors import Array


def write_png(path: Path, picture: Array) -> None:
    """Write 8-bit gray (H, W) or RGB (H, W, 3)."""
    from PIL import Image

    with _writing(path):
        Image.fromarray(picture).save(path)


def write_npz(path: Path, feeds: Mapping[str, Array], label: int) -> None:
    """Write one sample: 8-bit arrays by input name, as float32 from -1 to 1 with a first axis of 1; and its label."""
    scaled = {name: (array[None] / np.float32(127.5) - 1).astype(np.float32) for name, array in feeds.items()}
    with _writing(path):
        np.savez_compressed(path, label=np.int64(label), **scaled)  # type: ignore[arg-type]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as err:
        raise EdgeAttnError(f"cannot write {err.filename or path}: {err.strerror}") from err
