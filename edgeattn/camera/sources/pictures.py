"""A folder of images, or one image, as a source: every one of them, by name, each of its own size."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from edgeattn.camera.frame import EndOfStream, Frame
from edgeattn.camera.uri import Uri
from edgeattn.errors import InputError
from edgeattn.images import IMAGE_SUFFIXES, read_image, upright


class Pictures:
    """The images of a folder in the order of their names, upright and in 8-bit RGB.

    What cannot be read is skipped and counted in `corrupt`.

    Raises:
        InputError: there is no such folder or image, or no image in it.
    """

    live = False
    fps: float | None = None

    def __init__(self, uri: Uri) -> None:
        self.uri = uri.public
        self.corrupt = 0
        path = Path(uri.target)
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
        except OSError as err:
            raise InputError(f"cannot read the folder {path}: {err.strerror}") from err
        self._paths = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        if not self._paths:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            raise InputError(f"no image in {path}; expected a video, or files that end in {known}")
        self._index = 0
        self._closed = False

    def read(self, timeout: float) -> Frame | None:
        """The next image.

        Raises:
            EndOfStream: that was the last, or the source was closed.
            InputError: none of them could be read.
        """
        while not self._closed and self._index < len(self._paths):
            path, index = self._paths[self._index], self._index
            self._index += 1
            captured = time.monotonic()
            try:
                image = np.array(upright(read_image(path), "RGB"))
            except InputError:
                self.corrupt += 1
                if self.corrupt == len(self._paths):
                    raise
                continue
            return Frame(image, index, captured, time.monotonic(), self.uri)
        raise EndOfStream(self.uri)

    def close(self) -> None:
        """End the stream."""
        self._closed = True
