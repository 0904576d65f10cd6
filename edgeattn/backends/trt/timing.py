"""TensorRT's timing cache on disk: measured kernels, good for one GPU, driver and TensorRT, and for nothing else.

The file is TensorRT's own, as trtexec reads and writes it. What it was measured on stands beside it in `FILE.json`,
since TensorRT compares only part of that, and some versions fail on a damaged cache in the middle of a build.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from edgeattn import files
from edgeattn.errors import InputError


def read_cache(path: Path, key: str) -> tuple[bytes, list[str]]:
    """Read a timing cache, and say what was wrong with it; empty where there is none that fits.

    A cache without a key (trtexec's) is left for TensorRT to judge.

    Raises:
        InputError: there is a file that cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b"", []
    except OSError as err:
        raise InputError(f"cannot read the timing cache {path}: {err.strerror}") from err
    expected = _key_of(path)
    if expected is not None and expected != {"key": key, "sha256": hashlib.sha256(data).hexdigest()}:
        what = "was measured on something else" if expected.get("key") not in (None, key) else "is damaged"
        return b"", [set_aside(path, what)]
    return data, []


def set_aside(path: Path, what: str) -> str:
    """Keep an unusable cache as `FILE.bad`, and return the sentence that says so."""
    bad = path.with_name(path.name + ".bad")
    path.replace(bad)
    return f"the timing cache {path} {what}: kept as {bad.name}, a new one is started"


def write_cache(path: Path, key: str, data: bytes) -> None:
    """Replace a timing cache and its key.

    Raises:
        EdgeAttnError: it cannot be written.
    """
    files.write_atomic(path, data)
    record = {"key": key, "sha256": hashlib.sha256(data).hexdigest()}
    files.write_atomic(_key_path(path), (json.dumps(record) + "\n").encode())


def _key_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _key_of(path: Path) -> dict[str, str] | None:
    try:
        record = json.loads(_key_path(path).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
