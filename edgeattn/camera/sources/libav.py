"""Videos, V4L2 cameras and network streams through PyAV (FFmpeg's libraries)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.camera.frame import EndOfStream, Frame
from edgeattn.camera.uri import Uri
from edgeattn.errors import (
    EdgeAttnError,
    InputError,
    MissingDependencyError,
    SourceError,
    UnsupportedError,
    UsageError,
    one_line,
    redact,
)
from edgeattn.images import MAX_PIXELS

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

    from edgeattn.tensors import Array

# For libav's own calls, which nothing else can interrupt; `Reconnecting` gives up earlier.
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 7.0, 10.0
_MAX_BROKEN = 1000  # packets in a row that cannot be read, before a file is
_MAX_WAITING = 256  # packets whose pictures are still to come out of the decoder
_POLL_S = 0.002
_NONBLOCK = 4  # AVFMT_FLAG_NONBLOCK, which has no name among the options
# Measured on a 30 fps stream, age of a frame at p95: 182 ms without these, 43 ms with them.
_EAGER = {"fflags": "nobuffer", "analyzeduration": "0", "probesize": "32768"}
_PROTOCOLS = {
    "file": "file",
    "rtsp": "rtp,tcp,udp",
    "rtsps": "rtp,tcp,udp,tls",
    "http": "http,https,httpproxy,tcp,tls,crypto",
    "https": "https,httpproxy,tcp,tls,crypto",
}


def need_av() -> Any:
    """The package `av`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import av
    except ImportError as err:
        raise MissingDependencyError(
            "PyAV, which reads videos and streams, is not installed; pip install 'edgeattn[camera]'"
        ) from err
    return av


def open_libav(name: Uri) -> LibavSource:
    """Open a video file, a V4L2 device, or an rtsp, rtsps, http or https address.

    Raises:
        InputError: the file is no video that FFmpeg can read, or has no pictures in it.
        SourceError: the device or server does not answer, or not with a stream.
        UnsupportedError: this user may not open the device, or this FFmpeg has no such protocol.
        UsageError: the server refuses the user or the password.
        MissingDependencyError: PyAV is not installed.
    """
    av = need_av()
    live = name.live
    try:
        container = av.open(
            f"file:{name.target}" if name.scheme == "file" else name.target,  # there are colons in names
            format="video4linux2,v4l2" if name.scheme == "v4l2" else None,
            options=_options(name),
            timeout=(OPEN_TIMEOUT_S, max(READ_TIMEOUT_S, name.options.get("stall", 0))) if live else None,
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as err:
        raise _refusal(err, name) from None  # libav's own text holds the password
    return LibavSource(name, container)


def _options(name: Uri) -> dict[str, str]:
    chosen: Mapping[str, Any] = name.options
    options = dict(_EAGER) if name.live else {}
    if name.scheme in _PROTOCOLS:
        options["protocol_whitelist"] = _PROTOCOLS[name.scheme]
    if name.scheme in ("rtsp", "rtsps"):
        options["rtsp_transport"] = chosen.get("transport", "tcp")
        if chosen.get("listen"):
            options |= {"rtsp_flags": "listen", "listen_timeout": f"{OPEN_TIMEOUT_S:.0f}"}
    if name.scheme == "v4l2":
        options["fflags"] = f"nobuffer+{_NONBLOCK}"  # a camera that says nothing would hold its reader for ever
        if {"width", "height"} <= chosen.keys():
            options["video_size"] = f"{chosen['width']}x{chosen['height']}"
        if "fps" in chosen:
            options["framerate"] = f"{chosen['fps']:g}"
        if "codec" in chosen:
            options["input_format"] = chosen["codec"]
    return options


def _refusal(err: Exception, name: Uri) -> EdgeAttnError:
    """Our error for what libav says when it opens or reads."""
    from av import error

    said = redact(one_line(getattr(err, "strerror", None) or str(err)))
    if isinstance(err, error.HTTPUnauthorizedError | error.HTTPForbiddenError):
        what = f"{name.public} refuses the user or the password, or needs one: {said}"
        return UsageError(f"{what}; expected {name.scheme}://user:password@host")
    if isinstance(err, error.ProtocolNotFoundError):
        return UnsupportedError(f"{name.public}: this FFmpeg cannot: {said}; `edgeattn camera doctor` says what it can")
    if isinstance(err, PermissionError) and name.scheme == "v4l2":
        return UnsupportedError(f"{name.public}: {said}; add the user to the group video, and log in again")
    if not name.live:
        return InputError(f"cannot read {name.public} as a video: {said}")
    if isinstance(err, error.ExitError):
        return SourceError(f"{name.public} says nothing")
    return SourceError(f"{name.public}: {said}")


class LibavSource:
    """The first video stream of a container, decoded, upright, in RGB.

    Packets that cannot be decoded are skipped and counted in `corrupt`. `captured_at` is when the packet that holds the
    picture was complete, which is the first that libav shows of it.
    """

    def __init__(self, name: Uri, container: Any) -> None:
        self.uri = name.public
        self.live = name.live
        self.corrupt = 0
        self._name = name
        self._container = container
        # A song's cover is a video stream, too.
        videos = [stream for stream in container.streams.video if "attached_pic" not in str(stream.disposition)]
        if not videos:
            container.close()
            raise _no_pictures(name, "no video stream")
        self._stream = videos[0]
        self._stream.thread_type = "SLICE" if self.live else "AUTO"  # threads by frame keep a frame each
        if self.live:
            from av.codec.context import Flags

            self._stream.codec_context.flags |= Flags.low_delay
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        self.fps = rate if 0.01 <= rate <= 1000 else None
        self._packets: Iterator[Packet[Any]] = container.demux(self._stream)
        self._decoded: deque[tuple[VideoFrame, float]] = deque()
        self._arrivals: dict[int | None, float] = {}
        self._index = 0
        self._broken = 0
        self._closed = False
        self._busy = Lock()

    @property
    def size(self) -> tuple[int, int]:
        """(w, h) as announced."""
        return self._stream.codec_context.width, self._stream.codec_context.height

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec, such as h264."""
        return str(self._stream.codec_context.name)

    def read(self, timeout: float) -> Frame | None:
        """The next frame; where libav itself waits, for up to its own timeout.

        Raises:
            EndOfStream: there are no more, or the source was closed.
            InputError: a file that holds no picture that can be decoded, or one of more than 64 MPix.
            SourceError: the device or server was lost.
        """
        try:
            with self._busy:
                return self._next(time.monotonic() + timeout)
        finally:
            if self._closed:
                self.close()

    def close(self) -> None:
        """Close it, or where another thread is reading, let that one do it when libav comes back to it."""
        self._closed = True
        if self._busy.acquire(blocking=False):
            try:
                self._container.close()
            finally:
                self._busy.release()

    def _next(self, deadline: float) -> Frame | None:
        while not self._closed and not self._decoded:
            packet = self._packet()
            if packet is not None:
                self._decode(packet)
            elif time.monotonic() >= deadline:
                return None
        if self._closed:
            raise EndOfStream(self.uri)
        frame, captured = self._decoded.popleft()
        if frame.width * frame.height > MAX_PIXELS:
            raise InputError(f"{self.uri}: a picture of {frame.width}x{frame.height} pixels, more than 64 million")
        self._index += 1
        image = _upright_rgb(frame)
        return Frame(image, self._index - 1, captured, time.monotonic(), self.uri)

    def _packet(self) -> Packet[Any] | None:
        """The next packet, or None where there is none yet."""
        from av import error

        try:
            return next(self._packets)
        except StopIteration:
            if self._index == 0 and not self.live:
                raise _no_pictures(self._name, "no picture that can be decoded") from None
            raise EndOfStream(self.uri) from None
        except error.BlockingIOError:
            time.sleep(_POLL_S)
        except error.InvalidDataError as err:
            self.corrupt += 1
            self._broken += 1
            if self._broken > _MAX_BROKEN:
                raise _refusal(err, self._name) from None
        except (error.FFmpegError, OSError) as err:
            raise _refusal(err, self._name) from None
        self._packets = self._container.demux(self._stream)  # an error has ended the generator
        return None

    def _decode(self, packet: Packet[Any]) -> None:
        from av import error

        now = time.monotonic()
        if len(self._arrivals) >= _MAX_WAITING:
            self._arrivals.clear()
        self._arrivals[packet.pts] = now
        try:
            frames = packet.decode()
        except error.FFmpegError:
            frames = []
            self._skip()
        self._broken = 0
        for frame in frames:
            if frame.is_corrupt:
                self._skip()
            else:
                self._decoded.append((frame, self._arrivals.pop(frame.pts, now)))

    def _skip(self) -> None:
        self.corrupt += 1
        self._index += 1


def _no_pictures(name: Uri, what: str) -> EdgeAttnError:
    kind = SourceError if name.live else InputError
    return kind(f"{name.public} has {what}; expected a video")


def _upright_rgb(frame: VideoFrame) -> Array:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))) if frame.rotation else image
