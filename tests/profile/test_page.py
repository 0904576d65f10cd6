from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from edgeattn.profile.page import profile_page
from edgeattn.profile.report import ProfileReport
from edgeattn.reports.html import element
from tests.profile.samples import sample_report, without_layers


def headings(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def rows(text: str, heading: str) -> list[str]:
    part = next(part for part in text.split("<section ") if f"<h2>{heading}</h2>" in part)
    return re.findall("<tr>(<td.*?)</tr>", part)


def test_a_profile_of_a_network_like_resnet_50_is_below_300_kb() -> None:
    # ONNX Runtime, of all backends, makes the most layers of a ResNet-50 with CBAM: 380, with 16 blocks.
    assert len(profile_page(sample_report(380, 16)).encode()) < 300_000


def test_the_page_says_what_the_report_says() -> None:
    report = sample_report()
    text = profile_page(report)
    raw = re.search(r'id="report">(.*?)</script>', text, re.S)
    assert raw
    found, given = json.loads(raw[1]), json.loads(json.dumps(report.to_json()))
    assert set(given) - set(found) == {"layers", "roofline"}
    for key in ("engine", "shapes", "memory", "environment", "notes"):
        assert found[key] == given[key]
    assert found["latency"]["p50_ms"] == pytest.approx(given["latency"]["p50_ms"], rel=1e-6)
    said = re.sub("<[^>]*>", " ", text)
    for fact in ("model.engine", "openvino", "bf16", "114.4 MiB", "31 mJ", report.plan_sha256, "3.7 GHz", "a note"):
        assert fact in said, fact


def test_layers_are_a_table_the_slowest_first_with_all_that_is_known_of_them() -> None:
    report = sample_report()
    drawn = rows(profile_page(report), "Layers")
    slowest = sorted(report.layers, key=lambda layer: -layer.median_ms)
    assert len(drawn) == len(slowest)
    for row, layer in zip(drawn, slowest, strict=True):
        for fact in (layer.name, layer.kernel, layer.kind, layer.precision, f"{layer.median_ms:.4f}", *layer.nodes[:3]):
            assert fact in row
        assert (layer.attention or layer.module) in row


def test_of_very_many_layers_the_fastest_are_left_out() -> None:
    text = profile_page(sample_report(520, 0))
    assert len(rows(text, "Layers")) == 500
    assert "the slowest 500 of 520" in text


def test_each_block_says_what_ran_it_and_why_not_better() -> None:
    text = profile_page(sample_report(blocks=2))
    fused, other = re.findall("<div><h3>.*?</dl></div>", text)
    assert "one kernel" in fused
    assert "why not better" not in fused
    assert "several kernels" in other
    assert "the head size is above 256" in other
    assert "between 0.15 and 0.25 ms" in other


def test_blocks_beyond_the_slowest_are_folded() -> None:
    text = profile_page(sample_report(160, 20))
    before, folded = text.split("<summary>8 faster blocks</summary>")
    assert before.count("<h3>") == 12
    assert folded.count("<h3>") == 8


@pytest.mark.parametrize(
    ("report", "missing"),
    [
        (without_layers(), ["What is slow, and why", "Where the time goes", "Layers", "Against the roof"]),
        (sample_report(blocks=0), ["Attention"]),
        (replace(sample_report(), ceilings=()), ["Against the roof"]),
        (replace(sample_report(), reconciliation=None), ["Do the layers add up?"]),
    ],
    ids=["no layers", "no attention", "no ceilings", "no sums"],
)
def test_of_what_is_not_known_there_is_no_section(report: ProfileReport, missing: list[str]) -> None:
    found = headings(profile_page(report))
    assert not set(missing) & set(found)
    assert {"The whole engine", "Where it was measured"} <= set(found)


def test_a_warning_stands_at_the_top() -> None:
    unsteady = replace(sample_report().latency, coefficient_of_variation=0.3)
    text = profile_page(replace(sample_report(), latency=unsteady))
    assert text.index(element("p", unsteady.warning, class_="warn")) < text.index("<h2>")
