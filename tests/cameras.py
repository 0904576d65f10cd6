"""A network and sources by which a test tells which frame a result came from."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from edgeattn.backends import onnxruntime
from edgeattn.backends.base import BuildConfig, Session
from edgeattn.camera.frame import EndOfStream, Frame
from edgeattn.engine import Engine
from edgeattn.tensors import ShapeRange
from tests.graphs import FLOAT, graph_of

SIDE = 8


def mean_engine(least: int = 1, most: int = 4) -> Engine:
    """ONNX Runtime's engine of y = the mean of each channel: x (batch, 3, 8, 8) to (batch, 3)."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    shape, axes = (3, SIDE, SIDE), {"axes": np.array([2, 3])}
    batch: int | str = "batch" if least != most else most
    graph = graph_of([node], [("x", FLOAT, [batch, *shape])], [("y", FLOAT, [batch, 3])], axes)
    spread = ShapeRange((least, *shape), (least, *shape), (most, *shape))
    return onnxruntime.build(graph, BuildConfig(profile={"x": spread}))


def mean_session(least: int = 1, most: int = 4) -> Session:
    """A session of `mean_engine`."""
    return onnxruntime.load(mean_engine(least, most))


def gray(level: int, size: tuple[int, int] = (7, 5)) -> NDArray[np.uint8]:
    """A picture of one level, by which it is known again; the size is (H, W)."""
    return np.full((*size, 3), level, np.uint8)


def level_of(outputs: dict[str, Any]) -> int:
    """The level of the picture that a session of `mean_engine` saw."""
    return round(float(outputs["y"][0, 0]) * 255)


class Ticking:
    """A live source: frame i, of level i mod 256, is there `i * period` seconds after the first read, and not before.

    It counts those that nobody took in time in `late`, which are lost.
    """

    live = True

    def __init__(self, period: float, frames: int | None = None, uri: str = "tick:") -> None:
        self.uri, self.fps = uri, 1 / period
        self.late = 0
        self.closed = threading.Event()
        self._period, self._frames = period, frames
        self._next, self._began = 0, 0.0

    def read(self, timeout: float) -> Frame | None:
        now = time.monotonic()
        self._began = self._began or now
        due = int((now - self._began) / self._period)
        if due > self._next:
            self.late += due - self._next
            self._next = due
        if self._frames is not None and self._next >= self._frames:
            raise EndOfStream
        wait = self._began + self._next * self._period - now
        if self.closed.wait(min(max(wait, 0), timeout)):
            raise EndOfStream
        if wait > timeout:
            return None
        self._next += 1
        index, now = self._next - 1, time.monotonic()
        return Frame(gray(index % 256), index, now, now, self.uri)

    def close(self) -> None:
        self.closed.set()
