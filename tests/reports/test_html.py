from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeattn.reports.html import Markup, badge, details, element, grid, page, pairs, picture, section, table, tiles
from edgeattn.reports.style import SCRIPT
from edgeattn.reports.svg import bars, curves, histogram, intervals, matrix, roofline, stack

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x00\u2028\ud800"


class Tags(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        last = self.tags[-1] if self.tags else ""
        self.texts[last] = self.texts.get(last, "") + data


def pixels(kind: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 30, 40)).save(data, kind)
    return data.getvalue()


def whole_page(text: str) -> str:
    return page(
        text,
        section(text, table((text, text), [(text, text)], "lr"), pairs({text: text}), note=text),
        table((text, text), [(text, (text, 2.5))] * 20, "lr", interactive=True, caption=text),
        grid(element("div", picture(pixels("PNG"), text, 40)), details(text, text)),
        tiles([(text, text, text)]),
        bars([(text, 1.0, text, "bar"), (text, 0.0, text, "soft")]),
        stack([(text, 9.0, text, "c1"), (text, 1.0, text, "c2")]),
        intervals([(text, 0.1, 0.2, 0.3)], mark=0.2, show=lambda value: text),
        histogram([(-6, -5.5, 3), (-5.5, -5, 0), (-5, -4.5, 9)], -5.2, text),
        curves({text: [(0.0, 0.5), (1.0, 0.7)], "other": [(0.0, 0.1)]}, text, text),
        matrix([[1, 2], [3, 4]], [text, "other"], [text, "other"], text, text),
        roofline([(1.0, 2.0, text)], [(text, 100.0, 10.0)], [(3.0, 4.0, text)]),
        data={text: text},
    )


@given(st.text(min_size=1) | st.text("<>/\"'&=! -scriptx", min_size=1))
def test_no_text_becomes_an_element_or_an_attribute(text: str) -> None:
    plain, hostile = Tags(whole_page("t" * len(text))), Tags(whole_page(text))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]


def test_the_page_is_valid_utf8_and_fetches_nothing() -> None:
    text = whole_page(HOSTILE)
    text.encode("utf-8")
    seen = Tags(text)
    assert not {"href", "onerror", "onload"} & {name for name, _ in seen.attributes}
    assert all(str(value).startswith("data:image/") for name, value in seen.attributes if name == "src")
    assert not re.search(r"https?://|url\(|@import", text)


def test_the_only_code_is_the_one_that_the_policy_admits() -> None:
    text = whole_page(HOSTILE)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.S)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="report"', ""]
    assert scripts[1][1] == SCRIPT
    assert len(SCRIPT) < 3000
    policies = [value for name, value in Tags(text).attributes if name == "content" and "default-src" in str(value)]
    admitted = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert [str(policy).split("; ")[:3] for policy in policies] == [
        ["default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{admitted}'"]
    ]


def test_the_embedded_data_is_what_was_given() -> None:
    text = whole_page(HOSTILE)
    raw = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.S)
    assert raw
    assert json.loads(raw[1]) == {HOSTILE: HOSTILE}


def test_the_embedded_numbers_have_seven_digits() -> None:
    raw = re.search(r'id="report">(.*?)</script>', page("x", data={"a": [1 / 3, 8.700000000000001, 7, True]}), re.S)
    assert raw
    assert raw[1] == '{"a":[0.3333333,8.7,7,true]}'


def test_light_dark_and_print_have_styles() -> None:
    text = whole_page("x")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_only_markup_is_left_as_it_is() -> None:
    assert element("b", "<i>", element("i", "x"), class_="a", stroke_width=2) == (
        '<b class="a" stroke-width="2">&lt;i&gt;<i>x</i></b>'
    )
    assert isinstance(element("br"), Markup)


@pytest.mark.parametrize(
    ("value", "written"), [(0.25, "0.25"), (1e-9, "1e-09"), (float("inf"), "Infinity"), (float("nan"), "")]
)
def test_a_cell_is_sorted_by_the_number_it_was_given(value: float, written: str) -> None:
    drawn = table(("name", "share"), [("a", ("a lot", value))], "lr", interactive=True)
    assert f'<td class="r" data-key="{written}">a lot</td>' in drawn


def test_only_long_tables_scroll_and_can_be_reached_by_keyboard() -> None:
    long, short = (table(("a", "b"), [("x", "1")] * count, "lr", interactive=True) for count in (13, 12))
    assert long.startswith('<div class="scroll long" tabindex="0" role="region" aria-label="a, b">')
    assert short.startswith('<div class="scroll"><table class="sortable">')
    assert table(("a", "b"), [("x", "1")] * 13).startswith('<div class="scroll"><table><thead>')


@pytest.mark.parametrize(("heading", "anchor"), [("What is slow, and why", "what-is-slow-and-why"), ("?", "section")])
def test_a_section_can_be_linked_to(heading: str, anchor: str) -> None:
    assert section(heading).startswith(f'<section id="{anchor}"><h2>')


def test_short_rows_leave_their_last_columns_empty() -> None:
    assert table(("a", "b"), [("x",)]).count("<td") == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_the_bytes_that_were_given(kind: str) -> None:
    drawn = picture(pixels(kind), 'a red "flag"', 40)
    match = re.fullmatch(
        rf'<img src="data:image/{kind.lower()};base64,([\w+/=]+)" alt="a red &quot;flag&quot;" width="40"/>', drawn
    )
    assert match
    assert base64.b64decode(match[1]) == pixels(kind)


def test_good_and_bad_have_signs_and_neither_has_none() -> None:
    assert [re.sub("<[^>]*>", "", badge(good, "x")) for good in (True, False, None)] == ["✓ x", "✗ x", "x"]
