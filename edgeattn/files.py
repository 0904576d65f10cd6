"""Files that are whole or absent: hashing, atomic replacement, and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from edgeattn.errors import EdgeAttnError, InputError


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    return digest.hexdigest()


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is removed.

    Whoever looks at `path` sees the old bytes or the new ones, whenever the writer dies. What a killed writer
    left behind is swept by the next one.

    Raises:
        EdgeAttnError: the folder does not exist or the disk refuses the bytes.
    """
    _sweep(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    except OSError as err:
        raise EdgeAttnError(f"cannot write {path}: {err.strerror or err}; what was there is untouched") from err
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's content in one step; see `staged`."""
    with staged(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the only right to write `path`; a second process is refused at once.

    The lock is the kernel's and ends with its process, so a file left by a killed one does not lock.

    Raises:
        EdgeAttnError: another process holds it, or the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        stream = lock.open("w")
    except OSError as err:
        raise EdgeAttnError(f"cannot write {path}: {err.strerror}") from err
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgeAttnError(f"{path} is being written by another process; wait for it to end") from None
        # A holder that has just left may have unlinked the file we opened: then the lock is on nothing.
        if not lock.exists() or os.fstat(stream.fileno()).st_ino != lock.stat().st_ino:
            raise EdgeAttnError(f"{path} has just been written by another process; start again")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    for part in path.parent.glob(f".{path.name}.*.part"):
        pid = part.name.split(".")[-2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            part.unlink(missing_ok=True)
