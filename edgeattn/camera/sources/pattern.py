"""`test:`: a moving pattern that tells the time, so that whoever sees the picture knows how old it is."""

from __future__ import annotations

import time
import zlib
from itertools import pairwise
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from edgeattn.camera.frame import EndOfStream, Frame
from edgeattn.camera.uri import Uri

if TYPE_CHECKING:
    from edgeattn.tensors import Array

COLUMNS, ROWS = 32, 2  # of the clock's cells: 40 bits of milliseconds and 24 of their CRC, most significant first
_TIME_BYTES, _CHECK_BYTES = 5, 3


def draw_clock(image: Array, seconds: float) -> None:
    """Write a time of `time.monotonic()` across the upper eighth of a picture (H, W, 3), as black and white cells."""
    stamp = int(seconds * 1000).to_bytes(_TIME_BYTES, "big")
    bits = np.unpackbits(np.frombuffer(stamp + _checksum(stamp), np.uint8)).reshape(ROWS, COLUMNS)
    height, width = image.shape[:2]
    rows = np.arange(height // 8) * ROWS // (height // 8)
    columns = np.arange(width) * COLUMNS // width
    image[: height // 8] = (bits * np.uint8(255))[rows][:, columns, None]


def read_clock(image: Array) -> float | None:
    """The time in seconds that `draw_clock` wrote, to the millisecond, or None where its checksum does not hold.

    The cells are found by their share of the picture: it may have been scaled and compressed in between.
    """
    height, width = image.shape[:2]
    if height // 8 < ROWS or width < COLUMNS:
        return None
    means = image[: height // 8].mean(2, dtype=np.float32)
    rows, columns = (_middles(size, cells) for size, cells in ((height // 8, ROWS), (width, COLUMNS)))
    bits = [[means[row, column].mean() >= 128 for column in columns] for row in rows]
    code = np.packbits(np.array(bits).reshape(-1)).tobytes()
    stamp, check = code[:_TIME_BYTES], code[_TIME_BYTES:]
    return int.from_bytes(stamp, "big") / 1000 if check == _checksum(stamp) else None


def _checksum(stamp: bytes) -> bytes:
    return (zlib.crc32(stamp) & 0xFFFFFF).to_bytes(_CHECK_BYTES, "big")


def _middles(size: int, cells: int) -> list[slice]:
    """The inner half of each cell, where neither neighbours nor a codec's ringing reach."""
    edges = [-(-size * cell // cells) for cell in range(cells + 1)]
    margins = [(high - low) // 4 for low, high in pairwise(edges)]
    return [slice(low + margin, high - margin) for (low, high), margin in zip(pairwise(edges), margins, strict=True)]


class TestPattern:
    """Frames at a steady rate, drawn when they are due; those that nobody reads in time are dropped, as a camera does.

    With `live=0`, every frame, as fast as they are read.
    """

    __test__ = False  # pytest takes it for tests

    def __init__(self, uri: Uri) -> None:
        self.uri = uri.public
        self.live = uri.live
        self.fps: float | None = uri.options.get("fps", 30.0)
        self._period = 1 / uri.options.get("fps", 30.0)
        self._frames = uri.options.get("frames")
        width, height = uri.options.get("size", (640, 480))
        ramp = np.arange(2 * width) * 256 // width
        self._backdrop = np.empty((height, 2 * width, 3), np.uint8)
        self._backdrop[..., 0], self._backdrop[..., 1] = ramp, ramp[::-1]
        self._backdrop[..., 2] = (np.arange(height) * 256 // height)[:, None]
        self._started: float | None = None
        self._index = 0
        self._closed = Event()

    def read(self, timeout: float) -> Frame | None:
        """The frame that is due next; raises EndOfStream after `frames` of them, and once closed."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
        index = max(self._index, int((now - self._started) / self._period)) if self.live else self._index
        if self._frames is not None and index >= self._frames:
            raise EndOfStream(self.uri)
        wait = self._started + index * self._period - now if self.live else 0.0
        if self._closed.wait(max(0.0, min(wait, timeout))):
            raise EndOfStream(self.uri)
        if wait > timeout:
            return None
        self._index = index + 1
        captured = time.monotonic()
        image = self._draw(index, captured)
        return Frame(image, index, captured, time.monotonic(), self.uri)

    def close(self) -> None:
        """End the stream."""
        self._closed.set()

    def _draw(self, index: int, now: float) -> Array:
        height, width = self._backdrop.shape[0], self._backdrop.shape[1] // 2
        image = self._backdrop[:, index * 4 % width :][:, :width].copy()
        side = height // 4
        left, top = index * 8 % (width - side), height // 4 + index * 2 % (height // 2)
        image[top : top + side, left : left + side] = 255
        draw_clock(image, now)
        return image
