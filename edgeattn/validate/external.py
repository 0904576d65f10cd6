"""External data of an ONNX file: bytes that stand beside it, and nowhere else.

A location comes from the file and may name anything. Only regular files in the model's folder or below it are read,
reached without a link, and long enough for the tensors they hold.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgeattn.errors import InputError, quote

if TYPE_CHECKING:
    import onnx

MAX_FILE_BYTES = 2**34


def external_files(tensors: Iterable[tuple[onnx.TensorProto, int]], folder: Path) -> list[Path]:
    """Check where tensors with external data point, and return the files, sorted by location.

    Args:
        tensors: each with the bytes that its shape and dtype need.
        folder: the model's folder, links resolved.

    Raises:
        InputError: a file outside the folder, a link, no regular file, or one that ends too early.
    """
    sizes: dict[str, int] = {}
    for tensor, wanted in tensors:
        what = f"initializer {quote(tensor.name)}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        repeated = [key for key, count in Counter(entry.key for entry in tensor.external_data).items() if count > 1]
        location = entries.get("location", "")
        if repeated or not isinstance(location, str):
            raise InputError(f"{what} says in two ways where its external data lies; save the model again")
        if location not in sizes:
            sizes[location] = _size(folder, location, f"{what}: external data file {quote(location)}")
        offset = _number(entries.get("offset", "0"), what)
        length = _number(entries.get("length", str(wanted)), what)
        if length != wanted:
            raise InputError(f"{what} needs {wanted} bytes, its external data has {length}; save the model again")
        if offset + length > sizes[location]:
            raise InputError(
                f"{what} ends at byte {offset + length} of {quote(location)}, which has {sizes[location]} bytes: it is "
                "cut off, or a git-lfs pointer (run git lfs pull)"
            )
    return [folder / location for location in sorted(sizes)]


def _size(folder: Path, location: str, what: str) -> int:
    parts = PurePosixPath(location).parts
    if not parts or ".." in parts or "\0" in location or location.startswith("/"):
        raise InputError(f"{what} is outside the model's folder; put it beside the model and save that again")
    path = folder
    for part in parts:
        path /= part
        try:
            info = path.lstat()
        except OSError as err:
            raise InputError(f"{what} cannot be read ({err.strerror}); put it beside the model") from err
        if stat.S_ISLNK(info.st_mode):
            raise InputError(f"{what} is reached through the symbolic link {quote(part)}; put a copy in its place")
    if not stat.S_ISREG(info.st_mode):
        raise InputError(f"{what} is not a regular file; put a copy in its place")
    if info.st_nlink > 1:
        raise InputError(f"{what} is a hard link to a file with another name; put a copy in its place")
    if info.st_size > MAX_FILE_BYTES:
        raise InputError(f"{what} has {info.st_size} bytes; at most {MAX_FILE_BYTES} are read")
    return info.st_size


def _number(text: str, what: str) -> int:
    if not (isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 20):
        raise InputError(f"{what} has external data at {quote(text)}; expected a number of bytes, 0 or more")
    return int(text)
