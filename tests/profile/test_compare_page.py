from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from edgeattn.profile.align import differences
from edgeattn.profile.compare import ComparisonReport
from edgeattn.profile.compare_page import compare_page
from tests.profile.samples import sample_report, without_layers

HOSTILE = "</script><script>alert(1)</script>"


def compared(slower: float = 2.0, name: str = "", bound: float | None = 0.05) -> ComparisonReport:
    """The third layer takes longer than in the baseline, and in another precision; all else is the same."""
    baseline = sample_report(layers=12, name=name)
    first, second, third, *rest = baseline.layers
    low, high = third.interval_ms
    changed = replace(
        third, median_ms=slower * third.median_ms, interval_ms=(slower * low, slower * high), precision="int8"
    )
    engine = replace(baseline, layers=(first, second, changed, *rest), engine=f"new{name}.engine")
    return ComparisonReport(engine, baseline, 1.2, (1.1, 1.3), 20, differences(engine, baseline), bound)


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))


def test_the_page_says_the_verdict_and_where_and_why() -> None:
    report = compared()
    text = text_of(compare_page(report))
    slowest = report.differences[0]
    for fact in ("FAILED", "1.200×", "between +10.0 % and +30.0 %", "new.engine against model.engine"):
        assert fact in text
    assert f"{slowest.name} takes {slowest.difference_ms:.3g} ms more: precision int8 instead of bfloat16" in text


def test_where_nothing_differs_the_page_says_so() -> None:
    assert "No layer differs beyond the noise." in compare_page(compared(slower=1.0))


def test_without_layers_there_is_no_table_of_them() -> None:
    report = without_layers()
    page = compare_page(ComparisonReport(report, report, 1.0, (0.9, 1.1), 20, ()))
    assert "Layer by layer" not in page
    assert "The two" in page


@pytest.mark.parametrize(("bound", "badge"), [(0.05, "FAILED"), (0.2, "UNDECIDED"), (0.5, "PASSED"), (None, "")])
def test_the_badge_is_the_gates(bound: float | None, badge: str) -> None:
    found = re.findall(r'<span class="badge[^>]*>[^A-Z<]*([A-Z]+)', compare_page(compared(bound=bound)))
    assert found == ([badge] if badge else [])


def test_the_json_is_in_the_page_and_names_end_no_script() -> None:
    report = compared(name=HOSTILE)
    page = compare_page(report)
    raw = re.search(r'id="report">(.*?)</script>', page, re.DOTALL)
    assert raw
    found = json.loads(raw[1])
    assert set(found) == set(report.to_json())
    assert [item["name"] for item in found["differences"]] == [item.name for item in report.differences]
    assert not any("layers" in found[side] for side in ("engine", "baseline"))
    assert HOSTILE not in page
