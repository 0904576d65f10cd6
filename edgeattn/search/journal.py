"""What a search has done so far, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeattn import __version__, files
from edgeattn.errors import EdgeAttnError
from edgeattn.search.budget import Accuracy

MOST_STARTS = 2  # of one candidate: what ended the process twice is not tried again


class Journal:
    """One search's folder: the engines it built, and a line about each candidate."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open the folder of an interrupted search, or an empty one where there is none of the same identity."""
        self.folder = folder
        self.path = folder / "journal.json"
        self.entries: dict[str, dict[str, Any]] = {}
        key = hashlib.sha256(json.dumps([__version__, identity], sort_keys=True, default=str).encode()).hexdigest()
        with contextlib.suppress(EdgeAttnError, ValueError, KeyError, TypeError):
            found = json.loads(files.read_bytes(self.path))
            if found["key"] == key:
                self.entries = dict(found["entries"])
        if not self.entries:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        self.key = key

    def engine(self, name: str) -> Path:
        """Where a candidate's engine is, or goes."""
        entry = self.entries.setdefault(name, {"number": len(self.entries), "starts": 0})
        return self.folder / f"{entry['number']}.engine"

    def started(self, name: str) -> str:
        """Note that a candidate is begun; why it must not be, or nothing."""
        self.engine(name)
        entry = self.entries[name]
        if entry["starts"] >= MOST_STARTS:
            return "it ended the process twice"
        entry["starts"] += 1
        self._write()
        return ""

    def interrupted(self, name: str) -> None:
        """Note that a candidate was begun and stopped by a person: it is not to blame."""
        self.entries[name]["starts"] -= 1
        self._write()

    def built(self, name: str, accuracy: Accuracy | None) -> None:
        """Note that a candidate's engine is there, and what it is worth."""
        self.entries[name]["accuracy"] = dataclasses.asdict(accuracy) if accuracy else None
        self._write()

    def known(self, name: str) -> tuple[Path, Accuracy | None] | None:
        """The engine of a candidate that was built before the interruption."""
        entry = self.entries.get(name, {})
        if "accuracy" not in entry:
            return None
        found = entry["accuracy"]
        return self.engine(name), Accuracy(found["values"], found["drops"], tuple(found["failures"])) if found else None

    def _write(self) -> None:
        files.write_json(self.path, {"key": self.key, "entries": self.entries})


@contextlib.contextmanager
def journal(output: Path, identity: Mapping[str, Any]) -> Iterator[Journal]:
    """A search's journal beside its output; it goes when the search ends, and stays where it is interrupted."""
    folder = output.parent / f".{output.name}.search"
    kept = Journal(folder, identity)
    try:
        yield kept
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
