from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from edgeattn.reports.junit import Case, junit


def test_counts_names_and_failures_are_where_ci_looks_for_them() -> None:
    root = ElementTree.fromstring(junit("suite", [Case("good"), Case("bad", "because")]))
    suite = root.find("testsuite")
    assert root.tag == "testsuites"
    assert suite is not None
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("suite", "2", "1")
    assert [case.get("name") for case in suite.iter("testcase")] == ["good", "bad"]
    assert [failure.get("message") for failure in suite.iter("failure")] == ["because"]


@given(st.text(), st.text(min_size=1))
def test_any_text_stays_readable_xml(name: str, failure: str) -> None:
    text = junit(name, [Case(name, failure)])
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert len(list(root.iter("failure"))) == 1
