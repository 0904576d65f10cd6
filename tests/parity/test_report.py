"""What a report says, in every form it has."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from edgeattn.parity.report import (
    ClassParity,
    LatencyPair,
    MapParity,
    MetricParity,
    OutputParity,
    ParityReport,
    RebuildParity,
    SampleParity,
    ShapeParity,
)
from edgeattn.reports.latency import latency_report

HOSTILE = '</script><script>alert("1")</script>|`*_x_*`\n'
SCHEMA = json.loads((files("edgeattn.reports") / "schemas" / "parity.json").read_text())


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def report(name: str = "y", *, passed: bool = True) -> ParityReport:
    """One with everything in it, all named `name`; INT8 and NaN make the odd values."""
    failures = () if passed else (f"{name} is wrong",)
    output = OutputParity(
        name, "float32", (1, 3), 3, 0.1, 0.1, 0.1, 0.9, float("inf"), name, (1,), 0, None, None, 0.2, 0.2, 1.0,
        ((-2.0, -1.0, 3),), failures, 2,
    )  # fmt: skip
    interval = {"reference": (0.8, 1.0), "engine": (0.7, 0.9), "drop": (-0.1, 0.2)}
    latency = latency_report([1_000_000, 2_000_000], 1)
    pictures = {what: png() for what in ("input", "reference", "engine", "difference")}
    return ParityReport(
        "int8",
        {"engine": name, "reference": name, "data": name},
        40,
        (output,),
        (ShapeParity({name: (1, 3)}, "real", float("nan"), 0.1, failures),),
        (MetricParity("top1", 0.9, 0.8, 0.7, 40, 0.15, interval), MetricParity("top5", 1.0, 1.0, None, 40)),
        (LatencyPair(1, latency, latency),),
        {"device": name},
        failures,
        classes=(ClassParity(0, "top1", 0.9, None), ClassParity(3, "top1", 0.5, 0.25)),
        curves={"reference": ((0.0, 1.0), (1.0, 0.5)), "engine": ((0.0, 1.0), (1.0, 0.4))},
        agreement=((0, 0, 30), (0, 3, 2), (3, 3, 8)),
        worst=(SampleParity(name, 0.2, 1.0, 0.1, name, name, name, pictures),),
        rebuilds=(RebuildParity("rebuild 1", "ab", 0.1, 0.01, 0.02, {"top1": 0.8}, failures),),
        maps=(MapParity("CBAM", name, "spatial", name, 0.1, None, None, 0.2, 0.3, failures, png(), png()),),
    )


def unknown(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """The keys of a value that its schema does not describe."""
    schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "oneOf" in schema:
        schema = schema["oneOf"][0 if value is None else 1]
    if isinstance(value, list):
        return [key for item in value for key in unknown(item, schema.get("items", {}))]
    if not isinstance(value, dict):
        return []
    described, rest = schema.get("properties", {}), schema.get("additionalProperties")
    found = [key for key in value if key not in described and not rest]
    return found + [more for key, item in value.items() for more in unknown(item, described.get(key, rest or {}))]


@pytest.mark.parametrize("passed", [True, False])
def test_json_is_what_the_published_schema_says_and_the_schema_knows_every_key(passed: bool) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    plain = json.loads(json.dumps(report(passed=passed).to_json(), allow_nan=False))
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(plain)] == []
    assert unknown(plain, SCHEMA) == []
    assert plain["metrics"]["top1"]["confidence_interval"]["drop"] == [-0.1, 0.2]
    assert plain["metrics"]["top5"]["confidence_interval"] is None
    assert plain["attention_maps"][0]["map"] == "spatial"


def test_a_schema_that_lacks_a_key_or_has_another_type_is_noticed() -> None:
    plain = json.loads(json.dumps(report().to_json()))
    plain["outputs"][0].pop("cosine")
    plain["worst_samples"][0]["decision"] = "no"
    assert len(list(Draft202012Validator(SCHEMA).iter_errors(plain))) == 2
    assert unknown({**plain, "more": 1}, SCHEMA) == ["more"]


def test_junit_has_one_case_for_each_check() -> None:
    tree = ElementTree.fromstring(report(passed=False).to_junit())
    names = [case.get("name") for case in tree.iter("testcase")]
    assert names == [
        "output y", "shape y 1x3", "metric top1", "metric top5", "rebuild 1", "attention y (spatial)",
    ]  # fmt: skip
    failing = [case.get("name") for case in tree.findall(".//failure/..")]
    assert failing == [name for name in names if not str(name).startswith("metric")]


def test_markdown_says_verdict_metrics_outputs_and_latency() -> None:
    text = report().to_markdown("out/r.html")
    assert text.startswith("### ✅ parity passed: y\n")
    assert "| top1 | 90.00 % | 80.00 % | 10.00 % | -10.00 .. 20.00 % | 15.00 % | within the bound, but 40 sam" in text
    assert "| y | 0.1 | 0.2 | 0.1 | 0.9000000 | inf |" in text
    assert "| 1 | 1.000 | 1.000 | 1.00x |" in text
    assert "1 of 1 shapes agree, 1 of 1 rebuilds, 1 of 1 attention maps." in text
    assert text.endswith("The whole report: [out/r.html](<out/r.html>)\n")
    failed = report(passed=False).to_markdown()
    assert failed.startswith("### ❌ parity failed: y\n")
    assert "\n- y is wrong\n" in failed
    assert "](<out/r%20%3E.html>)" in report().to_markdown("out/r >.html")
    assert "html" not in failed


def test_markdown_shows_names_as_they_are() -> None:
    text = report(HOSTILE, passed=False).to_markdown()
    assert "<script" not in text
    assert all(line.count("|") == 7 for line in text.splitlines() if line.startswith("| &lt;"))
    assert r"\`\*\_x\_\*\`" in text


def test_a_page_holds_every_part_and_executes_nothing_of_a_models() -> None:
    page = replace(report(HOSTILE, passed=False), reasons=(HOSTILE, "far", "farther")).to_html()
    for heading in (
        "Why it failed", "Task", "Latency", "What was compared", "Outputs", "The samples that differ most",
        "Agreement of the two", "Classes", "Precision over recall", "Attention maps", "Rebuilds", "Shapes",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert page.count("data:image/png;base64,") == 6
    assert "<script>alert" not in page
    assert "2 of 3 values of the original are not finite." in page
    assert page.count("<script") == 2  # the report as data, and the page's own


def test_a_page_of_a_report_with_nothing_but_outputs_has_no_empty_sections() -> None:
    whole = report()
    bare = ParityReport(whole.precision, {}, 0, whole.outputs, whole.shapes)
    page = bare.to_html()
    assert page.count("<h2>") == 3
    assert "Task" not in page.partition("<main>")[2].partition("</main>")[0]


def test_maps_that_fail_fail_the_report() -> None:
    (good,) = report().maps
    bad = replace(good, name="layer3", failures=("layer3 looks elsewhere",))
    found = report().with_maps([good, bad])
    assert not found.passed
    assert found.reasons == ("layer3 looks elsewhere",)
    assert "✗ failed</span> layer3" in found.to_html()
    assert "layer3 (spatial)" in str(found)
