"""The test pattern, and the clock in it."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeattn.camera.frame import EndOfStream
from edgeattn.camera.sources import open_source
from edgeattn.camera.sources.pattern import draw_clock, read_clock


@given(st.integers(0, 2**40 - 1), st.integers(32, 300), st.integers(16, 200))
def test_clock_is_read_back_to_the_millisecond(milliseconds: int, width: int, height: int) -> None:
    image = np.full((height, width, 3), 99, np.uint8)
    draw_clock(image, (milliseconds + 0.5) / 1000)
    assert read_clock(image) == milliseconds / 1000
    assert (image[height // 8 :] == 99).all()


def test_clock_survives_scaling_and_compression() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    draw_clock(image, 12345.678)
    for size in [(320, 240), (1280, 720), (257, 131)]:
        squeezed = io.BytesIO()
        Image.fromarray(image).resize(size).save(squeezed, "JPEG", quality=20)
        assert read_clock(np.asarray(Image.open(squeezed))) == 12345.678


def test_no_time_is_read_from_other_pictures_or_a_damaged_clock() -> None:
    rng = np.random.default_rng(1)
    assert all(read_clock(rng.integers(0, 256, (64, 128, 3), np.uint8)) is None for _ in range(100))
    for value in (0, 255):
        assert read_clock(np.full((64, 128, 3), value, np.uint8)) is None
    assert read_clock(np.zeros((8, 31, 3), np.uint8)) is None
    image = np.zeros((64, 128, 3), np.uint8)
    draw_clock(image, 12345.678)
    for cell in range(32):
        damaged = image.copy()
        damaged[:4, 4 * cell : 4 * cell + 4] ^= 255
        assert read_clock(damaged) is None


def test_every_frame_is_given_where_it_is_not_live() -> None:
    source = open_source("test:?live=0&frames=7&size=129x65")
    frames = [source.read(0) for _ in range(7)]
    assert [frame.index for frame in frames if frame] == list(range(7))
    assert all(frame.image.shape == (65, 129, 3) for frame in frames if frame)
    assert len({frame.image.tobytes() for frame in frames if frame}) == 7
    with pytest.raises(EndOfStream):
        source.read(0)


def test_live_frames_come_when_due_and_are_dropped_where_nobody_reads() -> None:
    source = open_source("test:?fps=100&size=128x64")
    first = source.read(1)
    assert source.read(0) is None
    time.sleep(0.1)
    late = source.read(1)
    assert first is not None
    assert late is not None
    assert late.index >= 10
    assert late.captured_at - first.captured_at >= 0.1
    shown = read_clock(late.image)
    assert shown is not None
    assert 0 <= late.captured_at - shown < 0.001


def test_close_wakes_a_reader() -> None:
    source = open_source("test:?fps=0.01&size=128x64")
    source.read(1)
    threading.Timer(0.05, source.close).start()
    began = time.monotonic()
    with pytest.raises(EndOfStream):
        source.read(60)
    assert time.monotonic() - began < 10
