"""Files that are whole or absent: hashing, atomic replacement, and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from edgeattn.errors import EdgeAttnError, InputError, UsageError, one_line, quote

MAX_TOML_BYTES = 2**20


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading: whoever names a pipe or a device by mistake does not wait for its writer.

    Raises:
        InputError: there is no such file, it is not a regular one, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, ValueError) as err:  # ValueError: a zero byte in the name
        raise InputError(f"cannot read {path}: {getattr(err, 'strerror', err)}") from err
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"cannot read {path}: it is {what}; expected a regular file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit_bytes: int | None = None) -> bytes:
    """The content of a regular file.

    Raises:
        InputError: it cannot be read (see `open_regular`), or has more than `limit_bytes`.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if limit_bytes is not None and size > limit_bytes:
            raise InputError(
                f"cannot read {path}: it has {size} bytes, expected at most {limit_bytes}; is it the right file?"
            )
        try:
            return stream.read(size)
        except OSError as err:
            raise InputError(f"cannot read {path}: {err.strerror}") from err


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: it cannot be read (see `open_regular`), or is no TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    data = read_bytes(path, MAX_TOML_BYTES)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as err:
        raise InputError(f"{path} is not TOML: {one_line(err)}") from err


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        InputError: it cannot be read (see `open_regular`).
    """
    return sha256_files([path])


def sha256_files(paths: Iterable[Path], start: bytes = b"") -> str:
    """Hex SHA-256 of `start` and the bytes of files, one after the other, in pieces that fit any memory.

    Raises:
        InputError: one of them cannot be read (see `open_regular`).
    """
    digest = hashlib.sha256(start)
    for path in paths:
        with open_regular(path) as stream:
            try:
                while block := stream.read(1 << 20):
                    digest.update(block)
            except OSError as err:
                raise InputError(f"cannot read {path}: {err.strerror}") from err
    return digest.hexdigest()


def output_file(path: Path, *sources: Path) -> Path:
    """The file that writing to `path` replaces, links followed: asked before the work that it will hold.

    Raises:
        EdgeAttnError: its folder does not exist, or it is no regular file.
        UsageError: it is one of `sources`, which would be lost.
    """
    try:
        target = Path(os.path.realpath(path))
        existing = os.path.exists(target)
    except ValueError as err:  # a zero byte in the name
        raise EdgeAttnError(f"cannot write {quote(path)}: {err}") from err
    if existing and not os.path.isfile(target):
        raise EdgeAttnError(f"cannot write {path}: it is a folder, a pipe or a device; name a file")
    if not os.path.isdir(target.parent):
        raise EdgeAttnError(f"cannot write {path}: its folder does not exist")
    for source in sources:
        if os.path.realpath(source) == str(target) or (
            existing and os.path.exists(source) and os.path.samefile(source, target)
        ):
            raise UsageError(f"{path} would overwrite {source}, which is still needed; name another file")
    return target


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Whoever looks at `path` sees the old bytes or the new ones, whenever the writer dies. What a killed writer
    left behind is swept by the next one. A link stays, and what it points to is replaced.

    Raises:
        EdgeAttnError: the folder does not exist, the disk refuses the bytes, or `path` is no regular file.
    """
    path = output_file(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _sweep(path)
        yield part
        _sync(part)
        os.replace(part, path)
    except OSError as err:
        raise EdgeAttnError(f"cannot write {path}: {err.strerror or err}; what was there is untouched") from err
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    # Some file systems cannot sync a folder; the file itself is safe by now.
    with contextlib.suppress(OSError):
        _sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content in one step; see `staged`."""
    with staged(path) as part:
        part.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by a value as JSON; see `staged`."""
    write_atomic(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """A value as JSON that any encoding of Unicode holds: half a surrogate, from a file's name, stays an escape."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace").decode()


def finite(value: Any) -> Any:
    """Plain values with null for what JSON has no number for: an engine may well say nan."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the only right to write `path`; a second process is refused at once.

    The lock is the kernel's and ends with its process, so a file left by a killed one does not lock.

    Raises:
        EdgeAttnError: another process holds it, or the folder cannot be written.
    """
    path = output_file(path)
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(lock.open("w"))
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A holder that has just left may have unlinked the file we opened: then the lock is on nothing.
            stale = not os.path.samestat(os.fstat(stream.fileno()), lock.stat())
        except (BlockingIOError, FileNotFoundError):
            stale = True
        except OSError as err:
            raise EdgeAttnError(f"cannot write {path}: {err.strerror}") from err
        if stale:
            raise EdgeAttnError(f"{path} is being written by another process; wait for it to end")
        stack.callback(lock.unlink, missing_ok=True)
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            part.unlink(missing_ok=True)
