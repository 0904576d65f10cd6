"""Results as a video file, which plays however the recording ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn import files
from edgeattn.camera.outlets import Result
from edgeattn.errors import EdgeAttnError, MissingDependencyError, UsageError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

CODECS = ("libx264", "mpeg4")  # the first that PyAV was built with
_TICKS = 90_000  # a second
_KEY_FRAMES = 30  # pictures from one to the next; what is between two is lost with the power
_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "23", "tune": "zerolatency"}, "mpeg4": {"qscale": "4"}}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
_THREADS = 2  # the engine needs the others


def track_path(path: Path, number: int) -> Path:
    """The file of the source of this number, from 1."""
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


class Recording:
    """A sink that writes what `draw` makes of results to an MP4 file, at the times at which they were captured.

    The file is in fragments of 30 pictures, so that it plays up to the last of them after a crash as well. A second
    source goes to `NAME-2.mp4`, and so on. All pictures of a file have the size of its first one; others are fitted in.

    Args:
        path: the file.
        draw: makes a picture of a result.
        rates: frames a second of those sources that are read as fast as it goes, such as videos, by name.

    Raises:
        MissingDependencyError: PyAV is not installed.
        UsageError: the name does not end in `.mp4`.
        EdgeAttnError: the file cannot be written.
    """

    def __init__(
        self, path: str | Path, draw: Callable[[Result], Image], rates: Mapping[str, float] | None = None
    ) -> None:
        self._path, self._draw, self._rates = Path(path), draw, rates or {}
        if self._path.suffix.lower() != ".mp4":
            raise UsageError(f"{path} would be an MP4 by another name; call it {self._path.with_suffix('.mp4').name}")
        files.output_file(self._path)
        try:
            import av  # noqa: F401
        except ImportError as err:
            raise MissingDependencyError(
                "PyAV, which --record needs, is not installed; pip install 'edgeattn[camera]'"
            ) from err
        self._tracks: dict[str, _Track] = {}

    def __call__(self, result: Result) -> None:
        """Write one result."""
        picture, frame = self._draw(result), result.frame
        rate = self._rates.get(frame.source)
        at = frame.captured_at if rate is None else frame.index / rate
        if frame.source not in self._tracks:
            path = track_path(self._path, len(self._tracks) + 1)
            self._tracks[frame.source] = _Track(path, picture.size, at)
        self._tracks[frame.source].write(picture, at)

    def close(self) -> None:
        """Finish the files."""
        for track in self._tracks.values():
            track.close()


class _Track:
    """One file; `began` is the time of its first picture."""

    def __init__(self, path: Path, size: tuple[int, int], began: float) -> None:
        import av

        self._path, self._began, self._last = path, began, -1
        codec = next(name for name in CODECS if name in av.codecs_available)
        with _wrapped(path):
            self._file = av.open(str(path), "w", format="mp4", options=_FRAGMENTS)
            stream: Any = self._file.add_stream(codec, rate=30, options=_OPTIONS[codec])
        # Colours have half the resolution, so sides are even.
        self._size = max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
        stream.codec_context.gop_size = _KEY_FRAMES
        stream.codec_context.thread_count = _THREADS
        self._stream = stream

    def write(self, picture: Image, at: float) -> None:
        import av
        from PIL import ImageOps

        if picture.size != self._size:
            near = all(0 <= side - ours <= 1 for side, ours in zip(picture.size, self._size, strict=True))
            picture = picture.crop((0, 0, *self._size)) if near else ImageOps.pad(picture, self._size)
        self._last = max(self._last + 1, round((at - self._began) * _TICKS))
        with _wrapped(self._path):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
            self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        with _wrapped(self._path):
            self._file.mux(self._stream.encode(None))
            self._file.close()


@contextmanager
def _wrapped(path: Path) -> Iterator[None]:
    """PyAV's errors as ours."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as err:
        raise EdgeAttnError(f"cannot record to {path}: {one_line(err)}; what is in it already plays") from err
