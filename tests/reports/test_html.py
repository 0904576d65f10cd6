from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from edgeattn.reports.html import Markup, element, page, pairs, section, table, tiles
from edgeattn.reports.svg import bars, histogram

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


def whole_page(text: str) -> str:
    return page(
        text,
        section(text, table((text, text), [(text, text)], "lr"), pairs({text: text}), note=text),
        tiles([(text, text, text)]),
        bars([(text, 1.0, text, True), (text, 0.0, text, False)]),
        histogram([(-6, -5.5, 3), (-5.5, -5, 0), (-5, -4.5, 9)], -5.2, text),
        data={text: text},
    )


@given(st.text(min_size=1) | st.text("<>/\"'&=! -scriptx", min_size=1))
def test_no_text_becomes_an_element_or_an_attribute(text: str) -> None:
    plain, hostile = Tags(whole_page("text")), Tags(whole_page(text))
    assert hostile.tags == plain.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in plain.attributes]


def test_the_page_is_valid_utf8_with_one_inert_script_and_nothing_fetched() -> None:
    text = whole_page(HOSTILE)
    text.encode("utf-8")
    seen = Tags(text)
    assert seen.tags.count("script") == 1
    assert ("type", "application/json") in seen.attributes
    assert not {"src", "href", "onerror", "onload"} & {name for name, _ in seen.attributes}
    assert any(value and value.startswith("default-src 'none'") for name, value in seen.attributes if name == "content")
    assert not re.search(r"https?://|url\(|@import", text)


def test_the_embedded_data_is_what_was_given() -> None:
    text = whole_page(HOSTILE)
    raw = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.S)
    assert raw
    assert json.loads(raw[1]) == {HOSTILE: HOSTILE}


def test_light_dark_and_print_have_styles() -> None:
    text = whole_page("x")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_only_markup_is_left_as_it_is() -> None:
    assert element("b", "<i>", element("i", "x"), class_="a", stroke_width=2) == (
        '<b class="a" stroke-width="2">&lt;i&gt;<i>x</i></b>'
    )
    assert isinstance(element("br"), Markup)


def test_bars_are_as_long_as_their_values() -> None:
    drawn = bars([("a", 4.0, "4 ms", True), ("b", 1.0, "1 ms", False)])
    a, b = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn))
    assert a == 4 * b
    assert "<title>a: 4 ms</title>" in drawn


def test_columns_beyond_the_limit_are_marked() -> None:
    drawn = histogram([(-6.0, -5.5, 3), (-5.5, -5.0, 0), (-5.0, -4.5, 9)], -5.2, "error")
    assert re.findall(r'class="(bar|over)"', drawn) == ["bar", "over"]
    assert "9 values (75 %)" in drawn


def test_charts_of_nothing_are_drawn() -> None:
    assert "<svg" in bars([])
    assert "<svg" in histogram([], -3.0, "error")
