"""Sources of frames by name: cameras, streams, videos, folders of images, and a test pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeattn.camera.frame import Source
from edgeattn.camera.reconnect import OnState, Reconnecting
from edgeattn.camera.uri import Uri, parse
from edgeattn.errors import InputError, redact
from edgeattn.images import IMAGE_SUFFIXES

__all__ = ["open_source"]


def open_source(uri: str | Path, *, on_state: OnState | None = None) -> Source:
    """Open a source by its name; see `edgeattn.camera.uri.parse` for the forms.

    A file is opened at once. A camera or a stream is opened while it is read, again and again until it answers, and
    anew whenever it is lost.

    Args:
        uri: what to open.
        on_state: told of each change of a camera or stream, with the reason; see `Reconnecting`.

    Raises:
        UsageError: the name cannot be meant.
        InputError: the file cannot be read, or holds no pictures.
        MissingDependencyError: what reads such a source is not installed.
    """
    name = parse(str(uri))
    if name.scheme == "test":
        from edgeattn.camera.sources.pattern import TestPattern

        return TestPattern(name)
    if name.scheme == "file":
        return _open_file(name)
    return Reconnecting(name.public, _opener(name), stall=name.options.get("stall"), on_state=on_state)


def _open_file(name: Uri) -> Source:
    from edgeattn.camera.sources.libav import open_libav
    from edgeattn.camera.sources.pictures import Pictures

    path = Path(name.target)
    if not path.exists():
        raise InputError(f"no such video, image or folder: {redact(name.target)}")
    return Pictures(name) if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES else open_libav(name)


def _opener(name: Uri) -> Callable[[], Source]:
    from edgeattn.camera.sources.gstreamer import open_gstreamer
    from edgeattn.camera.sources.libav import need_av, open_libav

    if name.scheme == "csi":
        return lambda: open_gstreamer(name)
    need_av()
    return lambda: (open_gstreamer if _through_gstreamer(name) else open_libav)(name)


def _through_gstreamer(name: Uri) -> bool:
    """Whether GStreamer is asked for, or better: with RTSP it is a frame younger, and it has a Jetson's decoder."""
    from edgeattn.camera.sources.gstreamer import has_element

    chosen = name.options
    if name.scheme in ("http", "https") or chosen.get("listen"):
        return False
    if "decoder" in chosen:
        return bool(chosen["decoder"] == "gstreamer")
    compressed = chosen.get("codec") in ("mjpeg", "h264")
    return name.scheme == "rtsp" or (name.scheme == "v4l2" and compressed and has_element("nvv4l2decoder"))
