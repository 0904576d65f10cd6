"""A plugin library in words only: what it says that it has, which is all that planning looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeattn import files
from edgeattn.backends.trt import registry
from edgeattn.backends.trt.plugin_library import NAME, PluginLibrary
from edgeattn.backends.trt.plugins import Request


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, requests: Sequence[Request]) -> Path:
    """Let this machine have a library that says it has some kernels."""
    path = folder / NAME
    path.write_bytes(b"no library")
    made = PluginLibrary(
        path, files.sha256_file(path), "", "10.3", tuple((request, ("sm_87",)) for request in requests)
    )
    files.write_json(folder / f"{NAME}.json", made.to_json())
    monkeypatch.setenv(registry.VARIABLE, str(path))
    return path
