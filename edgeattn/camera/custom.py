"""Sources of one's own: whatever can be read and closed, or any iterable of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.camera.frame import EndOfStream, Frame, Source
from edgeattn.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgeattn.tensors import Array


class Custom:
    """A source of pictures, made of a function `read(timeout)`; StopIteration is its end, None no picture yet.

    A picture is uint8 (H, W, 3) in RGB, or an image of Pillow's, or a `Frame`, which keeps its own times.
    """

    fps: float | None = None

    def __init__(self, uri: str, read: Callable[[float], Any], close: Callable[[], object], *, live: bool) -> None:
        self.uri, self.live = uri, live
        self._read, self._close = read, close
        self._count = 0
        self._closed = False

    def read(self, timeout: float) -> Frame | None:
        """The next picture.

        Raises:
            EndOfStream: there are no more, or the source was closed.
            InputError: it is no picture.
        """
        asked = time.monotonic()
        if self._closed:
            raise EndOfStream(self.uri)
        try:
            picture = self._read(timeout)
        except StopIteration:
            raise EndOfStream(self.uri) from None
        if picture is None or isinstance(picture, Frame):
            return picture
        pixels, now = _pixels(picture, self.uri), time.monotonic()
        self._count += 1
        return Frame(pixels, self._count - 1, now if self.live else asked, now, self.uri)  # a camera waits for light

    def close(self) -> None:
        """Give no more pictures."""
        if not self._closed:
            self._closed = True
            self._read = lambda timeout: None  # a generator that nobody else holds closes
            self._close()


def as_sources(given: Any, on_state: Callable[[str, str, str], None] | None = None) -> list[Source]:
    """The sources meant: a URI or path, an object with `read` and `close`, an iterable of pictures, or a list of these.

    `on_state` is called with the URI, the new state and the reason when a camera or stream is lost or comes back.

    Raises:
        UsageError: it is none of them, or there is none.
    """
    several = given if isinstance(given, list | tuple) and not any(map(_is_picture, given[:1])) else [given]
    found: list[Source] = []
    try:
        for one in several:
            found.append(_source(one, f"custom:{len(found)}", on_state))
    except BaseException:
        for source in found:
            source.close()
        raise
    if not found:
        raise UsageError("no source was given; name one, such as test:")
    return found


def _source(one: Any, name: str, on_state: Callable[[str, str, str], None] | None) -> Source:
    """One source; `name` is its URI where it has none itself."""
    if isinstance(one, str | Path):
        from edgeattn.camera.sources import open_source
        from edgeattn.camera.uri import parse

        uri = str(one)
        return open_source(uri, on_state=on_state and partial(on_state, parse(uri).public))
    if hasattr(one, "read") and hasattr(one, "close"):
        complete: Source = one
        live = getattr(one, "live", True)
        return complete if hasattr(one, "uri") else Custom(name, one.read, one.close, live=live)
    if isinstance(one, Iterable) and not _is_picture(one):
        pictures = iter(one)
        return Custom(name, lambda timeout: next(pictures), lambda: None, live=False)
    raise UsageError(
        f"{type(one).__name__} is no source; expected a URI, an iterable of pictures, or an object with read(timeout) "
        f"and close()"
    )


def _is_picture(value: object) -> bool:
    return isinstance(value, np.ndarray | Frame) or hasattr(value, "getexif")


def _pixels(picture: Any, uri: str) -> Array:
    if hasattr(picture, "getexif"):
        picture = np.asarray(picture.convert("RGB"))
    if (
        not isinstance(picture, np.ndarray)
        or picture.dtype != np.uint8
        or picture.shape[2:] != (3,)
        or not picture.size
    ):
        got = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise InputError(f"{uri} gave {got}; expected a picture, uint8 (height, width, 3) in RGB")
    return picture
