"""Tables in the README that scripts write between marks, `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

import re


def between(text: str, name: str, found: str) -> str:
    """The text with what was found between the marks of a name."""
    marks = rf"(<!-- {name} -->\n).*(<!-- /{name} -->)"
    return re.sub(marks, lambda mark: f"{mark[1]}{found}\n{mark[2]}", text, flags=re.S)
