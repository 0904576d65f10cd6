"""What a camera gives: frames, one after the other, from anything that can be read and closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgeattn.tensors import Array


class EndOfStream(Exception):  # noqa: N818
    """There are no more frames, as at the end of a file, or because the source was closed. No error."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture, and when and where it came from. Times are `time.monotonic()` in seconds.

    `image` is RGB, uint8 (H, W, 3), and may change its size from one frame to the next. `index` counts the frames of
    its source from 0, with those that were dropped, so that gaps show them. `captured_at` is when its first byte was
    seen, `decoded_at` when the picture was ready. `source` is the URI without credentials, `epoch` how often the
    source had been opened anew.
    """

    image: Array
    index: int
    captured_at: float
    decoded_at: float
    source: str
    epoch: int = 0


class Source(Protocol):
    """Where frames come from. One thread reads; any thread may close, which ends a waiting `read` at once.

    `uri` names it, without credentials. `live` says that frames are lost unless they are read as they come, as from
    a camera; else all of them wait, as in a file. `fps` is what it announces, if it does.
    """

    @property
    def uri(self) -> str: ...

    @property
    def live(self) -> bool: ...

    @property
    def fps(self) -> float | None: ...

    def read(self, timeout: float) -> Frame | None:
        """The next frame, or None where none came within `timeout` seconds.

        Raises:
            EndOfStream: there are no more, or the source was closed.
            SourceError: the source is lost; `Reconnecting` opens it anew.
        """

    def close(self) -> None:
        """Let go of the device, connection or file; more than once is no error."""
