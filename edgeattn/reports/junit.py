"""JUnit XML, the form in which CI systems read results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

__all__ = ["Case", "junit"]

# What XML 1.0 admits; anything else makes the whole file unreadable to its consumer.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One claim; `failure` says why it does not hold and is empty where it does."""

    name: str
    failure: str = ""


def junit(suite: str, cases: Sequence[Case]) -> str:
    """Write one `testsuite` with a `testcase` for each claim; what XML cannot hold is replaced."""
    totals = {
        "name": _legal(suite),
        "tests": str(len(cases)),
        "failures": str(sum(bool(case.failure) for case in cases)),
        "errors": "0",
        "skipped": "0",
    }
    root = ElementTree.Element("testsuites")
    parent = ElementTree.SubElement(root, "testsuite", totals)
    for case in cases:
        entry = ElementTree.SubElement(parent, "testcase", classname=_legal(suite), name=_legal(case.name))
        if case.failure:
            ElementTree.SubElement(entry, "failure", message=_legal(case.failure)).text = _legal(case.failure)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
