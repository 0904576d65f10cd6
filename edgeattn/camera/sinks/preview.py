"""The preview: each source as moving pictures with what the model says of them, and how it is doing beside it."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from edgeattn.camera.outlets import Result
from edgeattn.camera.sinks.overlay import Overlay
from edgeattn.camera.sinks.page import CONTENT_POLICY, page
from edgeattn.camera.sinks.serving import Answer, Server
from edgeattn.camera.timing import Stats

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 1280  # of a picture's longer side, where the overlay is told so
MOST_VIEWERS = 8  # of all sources, at a time
MOST_SOURCES = 64
_QUALITY = 80
_STILL = 2.0  # seconds after which a picture that stands still is sent again, which tells who has left
_BOUNDARY = "frame"


@dataclass(frozen=True)
class Shot:
    """One encoded picture; `number` counts those of its source."""

    number: int
    jpeg: bytes


class Screen:
    """The newest result of one source, which is drawn and encoded when somebody looks, and once for all of them."""

    def __init__(self, draw: Callable[[Result], Image]) -> None:
        self._draw = draw
        self._changed = threading.Condition()
        self._encoding = threading.Lock()
        self._result: Result | None = None
        self._number = 0
        self._shot = Shot(0, _jpeg(_blank()))

    def show(self, result: Result) -> None:
        """Take the place of the result before; never waits for a viewer."""
        with self._changed:
            self._result, self._number = result, self._number + 1
            self._changed.notify_all()

    def newest(self, after: int = -1, timeout: float = 0.0) -> Shot:
        """The newest picture, gray before the first; waits `timeout` seconds for one with a number beyond `after`."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > after, timeout)
        with self._encoding:
            with self._changed:
                result, number = self._result, self._number
            if number != self._shot.number and result is not None:
                self._shot = Shot(number, _jpeg(self._draw(result)))
            return self._shot


class Preview:
    """A sink that serves what it gets at `url`.

    Args:
        address: see `serving.parse_address`.
        overlay: how a result is drawn.
        stats: the pipeline's numbers.
        token: see `serving.Server`; made up where an address of other machines needs one.

    Raises:
        EdgeAttnError: the address cannot be served.
    """

    lossless = False

    def __init__(self, address: tuple[str, int], overlay: Overlay, stats: Callable[[], Stats], token: str = "") -> None:
        self._stats = stats
        self._uris = [source.uri for source in stats().sources][:MOST_SOURCES]
        self._screens = [Screen(overlay) for _ in self._uris]
        self._ages: dict[str, float] = {}
        self._seats, self._counting = MOST_VIEWERS * len(self._uris), threading.Lock()
        self._over = threading.Event()
        pages = {"/": self._page, "/stats.json": self._numbers}
        for index, screen in enumerate(self._screens):
            pages[f"/stream/{index}"] = lambda screen=screen: self._stream(screen)  # type: ignore[misc]
            pages[f"/frame/{index}.jpg"] = lambda screen=screen: Answer("image/jpeg", screen.newest().jpeg)  # type: ignore[misc]
        self._server = Server(address, pages, token)
        self.url = self._server.url

    def __call__(self, result: Result) -> None:
        """Show a result."""
        self._ages[result.frame.source] = result.age
        if result.frame.source in self._uris:
            self._screens[self._uris.index(result.frame.source)].show(result)

    def close(self) -> None:
        """Serve no more."""
        self._over.set()
        self._server.close()

    def _page(self) -> Answer:
        headers = {"Content-Security-Policy": CONTENT_POLICY}
        return Answer("text/html; charset=utf-8", page(self._uris).encode(), headers)

    def _numbers(self) -> Answer:
        found = self._stats().to_json()
        for source in found["sources"]:
            age = self._ages.get(source["uri"])
            source["age_ms"] = None if age is None else 1000 * age
        return Answer("application/json", json.dumps(found).encode())

    def _stream(self, screen: Screen) -> Answer:
        if self._seats <= 0:
            text = f"{MOST_VIEWERS} viewers are looking already\n".encode()
            return Answer("text/plain", text, {"Retry-After": "5"}, status=HTTPStatus.SERVICE_UNAVAILABLE)
        return Answer(f"multipart/x-mixed-replace; boundary={_BOUNDARY}", send=lambda write: self._play(screen, write))

    def _play(self, screen: Screen, write: Callable[[bytes], object]) -> None:
        """Send the newest picture whenever there is a newer one, until the viewer leaves."""
        with self._counting:
            self._seats -= 1
        try:
            write(f"--{_BOUNDARY}\r\n".encode())
            shot = screen.newest()
            while not self._over.is_set():
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(shot.jpeg)}\r\n\r\n"
                # With the boundary that ends it: a browser shows a part when it has seen its end.
                write(head.encode() + shot.jpeg + f"\r\n--{_BOUNDARY}\r\n".encode())
                shot = screen.newest(shot.number, _STILL)
        finally:
            with self._counting:
                self._seats += 1


def _jpeg(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _blank() -> Image:
    from PIL import Image as Pictures

    return Pictures.new("RGB", (320, 180), (48, 52, 60))
