"""Reports: what a check, a build or a measurement found, for people and for machines.

`text` prints on a terminal, `html` and `svg` make one offline page, `junit` speaks to CI.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Report"]


class Report(Protocol):
    """A frozen value that shows itself: `str()` is a plain aligned table."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`. Once published, keys stay."""

    def to_html(self) -> str:
        """One self-contained page: nothing fetched, and no code but the one that sorts and filters its tables."""

    def to_junit(self) -> str:
        """JUnit XML, one test case per claim."""
