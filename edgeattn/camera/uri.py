"""Sources by name, in the forms of jetson-utils, and how to speak of them without their passwords."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from edgeattn.errors import UsageError, did_you_mean, one_line, quote, redact

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True)
class Uri:
    """A source's name, understood.

    `target` is the sensor's number, the path of the device or file, or the URL with its credentials, which is why it is
    in no repr. `public` names the source without them. `options` are typed, and only those that were given.
    """

    scheme: str
    target: str = field(repr=False)
    public: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether frames are lost unless they are read as they come."""
        return self.scheme != "file" and self.options.get("live", True)

    @property
    def secret(self) -> bool:
        """Whether the target holds what `public` does not."""
        return self.scheme in NETWORK and self.target != self.public


def parse(text: str) -> Uri:
    """Understand `csi://0`, `v4l2:///dev/video0`, `/dev/video0`, `rtsp://...`, `http://...`, a path, or `test:`.

    Options of csi, v4l2, file and test stand in the query (`csi://0?width=1280&height=720&fps=30`). The query of a
    network address is its server's, so there they stand in the fragment, which no server sees
    (`rtsp://host/live#transport=udp`). `rtsp://127.0.0.1:8554/in#listen=1` waits there for a sender.

    Raises:
        UsageError: the scheme or an option is unknown, or a value is not of its form. No message shows a password.
    """
    match = _SCHEME.match(text)
    if match is None or os.path.exists(text):
        return _local("v4l2" if text.startswith("/dev/") else "file", text, "")
    scheme = match[1].lower()
    if scheme not in OPTIONS:
        what = f"{scheme + '://...' if '@' in text else redact(quote(text))} is no source, and no path that exists"
        raise UsageError(f"{what}: scheme {scheme!r} is unknown; {did_you_mean(scheme, OPTIONS)}")
    rest = text[match.end() :]
    if scheme in NETWORK:
        return _remote(scheme, text)
    target, _, query = rest.removeprefix("//").partition("?")
    return _local(scheme, unquote(target), query)


def _local(scheme: str, target: str, query: str) -> Uri:
    form, expected = _TARGETS[scheme]
    public = {"test": "test:", "file": ""}.get(scheme, f"{scheme}://") + target + (f"?{query}" if query else "")
    if not form.fullmatch(target):
        raise UsageError(f"{one_line(public or scheme)!r} as a source: expected {expected}")
    return Uri(scheme, target, public, _options(scheme, query, public))


def _remote(scheme: str, text: str) -> Uri:
    url, _, fragment = text.partition("#")
    authority = re.split(r"[/?]", url.partition("://")[2], maxsplit=1)
    host = authority[0].rpartition("@")[2]
    if "@" in "".join([*authority[1:], fragment]) or not text.isprintable() or " " in text:
        raise UsageError(f"a {scheme} address with a space, or an @ or # in a name or password: write %20, %40 or %23")
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]+)(:\d{1,5})?", host):
        raise UsageError(f"a {scheme} address without a host that can be meant; expected {scheme}://host[:port]/path")
    public = redact(url)
    return Uri(scheme, url, public, _options(scheme, fragment, public))


def _options(scheme: str, query: str, name: str) -> dict[str, Any]:
    known = OPTIONS[scheme]
    found: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UsageError(f"{one_line(name)}: option {quote(key)} is unknown; {did_you_mean(key, known)}")
        form, read = known[key]
        try:
            found[key] = read(value)
        except ValueError as err:
            raise UsageError(f"{one_line(name)}: {key} is {quote(value)}, expected {form}") from err
    if ("width" in found) != ("height" in found):
        raise UsageError(f"{one_line(name)}: width and height go together")
    return found


_Form = tuple[str, Callable[[str], Any]]


def _within(kind: Callable[[str], Any], low: float, high: float) -> _Form:
    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return f"a {'whole ' if kind is int else ''}number from {low:g} to {high:g}", read


def _one_of(*words: str) -> _Form:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return " or ".join(words), read


def _read_size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.split("x"))
    if not (128 <= width <= 8192 and 64 <= height <= 8192):
        raise ValueError(text)
    return width, height


_SIDE = _within(int, 16, 16384)
_FPS = _within(float, 0.01, 1000)
_STALL = _within(float, 0.1, 3600)
_DECODER = _one_of("pyav", "gstreamer")
_NET = {"stall": _STALL}
_BOOL: _Form = ("0 or 1", lambda text: bool(["0", "1"].index(text)))
_RTSP = {"transport": _one_of("tcp", "udp"), "decoder": _DECODER, "stall": _STALL, "listen": _BOOL}
_TARGETS = {
    "csi": (re.compile(r"\d{1,2}"), "the number of a sensor, as in csi://0"),
    "v4l2": (re.compile(r"/dev/[\w./:@+-]+"), "the path of a device, as in v4l2:///dev/video0"),
    "file": (re.compile(r".+", re.DOTALL), "the path of a video, an image or a folder of images"),
    "test": (re.compile(""), "nothing but options, as in test:?size=640x480&fps=30"),
}
NETWORK = ("rtsp", "rtsps", "http", "https")
OPTIONS: Mapping[str, Mapping[str, _Form]] = {
    "csi": {"width": _SIDE, "height": _SIDE, "fps": _FPS, "flip": _within(int, 0, 7), "stall": _STALL},
    "v4l2": {
        "width": _SIDE, "height": _SIDE, "fps": _FPS, "codec": _one_of("mjpeg", "yuyv422", "nv12", "h264"),
        "decoder": _DECODER, "stall": _STALL,
    },
    "rtsp": _RTSP,
    "rtsps": _RTSP,
    "http": _NET,
    "https": _NET,
    "file": {},
    "test": {
        "size": ("WxH, at least 128x64", _read_size), "fps": _FPS, "frames": _within(int, 1, 10**9),
        "live": _BOOL,
    },
}  # fmt: skip
