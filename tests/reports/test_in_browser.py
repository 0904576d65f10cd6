"""Reports in a real browser: what a reader with a mouse, a keyboard, a dark screen or a printer gets."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgeattn.profile.align import Difference
from edgeattn.profile.compare import ComparisonReport
from edgeattn.reports.html import badge, details, element, page, pairs, picture, section, table, tiles
from edgeattn.reports.svg import bars, curves
from tests.browser import Tab, browser, needs_chromium
from tests.parity import samples as parity
from tests.profile.samples import sample_report, without_layers

pytestmark = needs_chromium

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"
ROWS = [(f"layer {index}", (f"{index % 7} ms", index % 7), f"{index / 10}") for index in range(30)]
SHOWN = (
    "[...document.querySelectorAll('#it tbody tr')].filter(row => !row.hidden).map(row => row.cells[%d].textContent)"
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def shown(tab: Tab, text: str, folder: Path, **view: Any) -> None:
    """Open a page from disk."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    tab.see(**view)
    tab.open(file.as_uri())


def with_table(caption: str = "layers") -> str:
    drawn = table(("name", "time", "share"), ROWS, "lrr", interactive=True, caption=caption)
    return page("A table", element("div", drawn, id="it"), data={})


def picture_page() -> str:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (200, 30, 40)).save(data, "PNG")
    head = element("header", element("h1", badge(True, "PASSED"), "x" * 200), tiles([("Latency", "3 ms", "median")]))
    return page(
        "A page",
        head,
        section("Things", pairs({"name": "y" * 300}), picture(data.getvalue(), "red", 40), note="a note"),
        section("Charts", bars([("a", 1.0, "1 ms", "bar")]), curves({"a": [(0, 0), (1, 1)]}, "x", "y")),
        section("More", details("more", table(("a", "b"), [("z" * 200, "1")], "lr"))),
        data={"a": 1},
    )


def comparison(name: str = "") -> str:
    one, other = sample_report(24, 3, name), sample_report(24, 3, f"{name}b")
    differences = tuple(
        Difference(layer.name, "nodes", (layer.name,), (f"{layer.name}b",), 0.5, 0.25, (0.1, 0.4), (f"slower{name}",))
        for layer in one.layers
    )
    return ComparisonReport(one, other, 1.08, (1.06, 1.1), 20, differences, 0.05).to_html()


PAGES = {
    "table": with_table(),
    "parts": picture_page(),
    "profile": sample_report(160, 32).to_html(),
    "hostile profile": sample_report(24, 3, HOSTILE).to_html(),
    "profile without layers": without_layers().to_html(),
    "parity": parity.sample_report().to_html(),
    "hostile parity": parity.sample_report(HOSTILE).to_html(),
    "comparison": comparison(),
    "hostile comparison": comparison(HOSTILE),
}


@pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_from_disk_without_complaints_or_requests(
    tab: Tab, tmp_path: Path, text: str, scheme: str
) -> None:
    shown(tab, text, tmp_path, scheme=scheme)
    assert tab.complaints == []
    assert all(url.startswith("data:image/") for url in tab.requests[1:])
    assert tab.evaluate("document.title") != "broken"
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("width", [1100, 600, 360])
def test_nothing_stands_out_beyond_the_window(tab: Tab, tmp_path: Path, text: str, width: int) -> None:
    shown(tab, text, tmp_path, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width


def test_script_tags_in_names_are_shown_as_they_are(tab: Tab, tmp_path: Path) -> None:
    shown(tab, PAGES["hostile profile"], tmp_path)
    assert tab.evaluate("document.querySelectorAll('script').length") == 2
    assert HOSTILE in tab.evaluate("document.querySelector('tbody td').textContent")
    assert HOSTILE in tab.evaluate("JSON.parse(document.getElementById('report').textContent).device")


def test_no_other_code_runs_even_where_it_stands_in_the_page(tab: Tab, tmp_path: Path) -> None:
    text = with_table().replace("</body>", "<script>document.title='broken'</script></body>")
    shown(tab, text, tmp_path)
    assert tab.evaluate("document.title") == "A table"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


def test_a_click_sorts_by_number_largest_first_and_another_smallest_first(tab: Tab, tmp_path: Path) -> None:
    shown(tab, with_table(), tmp_path)
    tab.click("th:nth-child(2) button")
    assert tab.evaluate(SHOWN % 1) == sorted((text for _, (text, _), _ in ROWS), reverse=True)
    assert tab.evaluate("document.querySelector('th:nth-child(2)').getAttribute('aria-sort')") == "descending"
    tab.click("th:nth-child(2) button")
    assert tab.evaluate(SHOWN % 1) == sorted(text for _, (text, _), _ in ROWS)
    tab.click("th:nth-child(3) button")
    assert tab.evaluate(SHOWN % 2) == [text for *_, text in reversed(ROWS)]
    assert tab.evaluate("[...document.querySelectorAll('[aria-sort]')].map(head => head.cellIndex)") == [2]
    assert tab.complaints == []


def test_names_sort_as_people_count(tab: Tab, tmp_path: Path) -> None:
    shown(tab, with_table(), tmp_path)
    tab.click("th:nth-child(1) button")
    assert tab.evaluate(SHOWN % 0) == [name for name, *_ in ROWS]


def test_what_is_no_number_stands_last_whichever_way(tab: Tab, tmp_path: Path) -> None:
    rows = [("a", "-"), ("b", "2"), ("c", "1,000"), ("d", ("inf", float("inf"))), ("e", "1e-3"), ("f",)]
    shown(tab, page("t", element("div", table(("n", "v"), rows, "lr", interactive=True), id="it"), data={}), tmp_path)
    for numbers in ("dcbe", "ebcd"):
        tab.click("th:nth-child(2) button")
        order = "".join(tab.evaluate(SHOWN % 0))
        assert (order[:4], set(order[4:])) == (numbers, {"a", "f"})


def test_the_keyboard_reaches_the_filter_every_header_and_the_rows(tab: Tab, tmp_path: Path) -> None:
    shown(tab, with_table(), tmp_path)
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Filter layers"
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "region"
    tab.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Tab")
    tab.press("Enter")
    assert tab.evaluate(SHOWN % 1)[0] == "6 ms"


def test_the_filter_keeps_rows_with_all_words_and_counts_them(tab: Tab, tmp_path: Path) -> None:
    shown(tab, with_table(), tmp_path)
    tab.click(".filter input")
    tab.write("LAYER  2.1")
    assert tab.evaluate(SHOWN % 0) == ["layer 21"]
    assert tab.evaluate("document.querySelector('.filter output').textContent") == "1 of 30 rows"
    tab.click("th:nth-child(2) button")
    assert tab.evaluate(SHOWN % 0) == ["layer 21"]


def test_headers_stay_in_sight_while_rows_scroll(tab: Tab, tmp_path: Path) -> None:
    shown(tab, with_table(), tmp_path)
    tab.evaluate("document.querySelector('.long').scrollTop = 300")
    top, head = tab.evaluate("['.long', 'th'].map(name => document.querySelector(name).getBoundingClientRect().top)")
    assert abs(top - head) < 2


@pytest.mark.parametrize("name", ["parts", "parity", "profile", "comparison"])
def test_whatever_is_pressed_or_looked_at_has_a_name_for_screen_readers(tab: Tab, tmp_path: Path, name: str) -> None:
    shown(tab, PAGES[name], tmp_path)
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    said = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in {"button", "image", "img", "searchbox", "region"}
    ]
    assert said
    assert all(name for _, name in said), said


def test_without_javascript_the_table_is_plain(tab: Tab, tmp_path: Path) -> None:
    tab.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        shown(tab, with_table(), tmp_path)
        assert tab.evaluate("document.querySelectorAll('button, input').length") == 0
        assert tab.evaluate(SHOWN % 0) == [name for name, *_ in ROWS]
    finally:
        tab.send("Emulation.setScriptExecutionDisabled", value=False)


CONTRAST = """
(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = found => {
    for (; found; found = found.parentElement) {
      const colour = getComputedStyle(found).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("main *")].filter(found => !found.closest("title, desc") &&
    [...found.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(found => {
      const style = getComputedStyle(found);
      const own = found.namespaceURI.endsWith("svg") ? style.fill : style.color;
      const [a, b] = [light(own), light(behind(found))].sort((x, y) => y - x);
      return [(a + .05) / (b + .05), found.tagName, own];
    }).sort((x, y) => x[0] - y[0])[0];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["parts", "parity", "profile", "comparison"])
def test_text_has_the_contrast_that_wcag_asks_for(tab: Tab, tmp_path: Path, name: str, scheme: str) -> None:
    shown(tab, PAGES[name], tmp_path, scheme=scheme)
    lowest, *where = tab.evaluate(CONTRAST)
    assert lowest >= 4.5, where


def test_light_and_dark_differ(tab: Tab, tmp_path: Path) -> None:
    levels = []
    for scheme in ("light", "dark"):
        shown(tab, with_table(), tmp_path, scheme=scheme)
        levels.append(Image.open(io.BytesIO(tab.screenshot())).convert("L").getpixel((5, 5)))
    assert levels[0] > 200
    assert levels[1] < 60


def test_paper_is_white_shows_every_row_and_what_is_folded(tab: Tab, tmp_path: Path) -> None:
    shown(tab, with_table(), tmp_path, scheme="dark", media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    inner, outer = tab.evaluate("(box => [box.scrollHeight, box.clientHeight])(document.querySelector('.long'))")
    assert inner == outer
    assert tab.evaluate("getComputedStyle(document.querySelector('.filter')).display") == "none"
    shown(tab, picture_page(), tmp_path, media="print")
    assert tab.evaluate("document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})")
    assert tab.evaluate("document.querySelector('details table').getBoundingClientRect().height") > 20


def test_headers_on_paper_are_plain_text_because_chromium_does_not_repeat_buttons(tab: Tab, tmp_path: Path) -> None:
    shown(tab, with_table(), tmp_path, media="print")
    assert tab.evaluate("getComputedStyle(document.querySelector('th button')).display") == "contents"


def test_a_report_prints_on_a_few_pages(tab: Tab, tmp_path: Path) -> None:
    shown(tab, sample_report(40, 4).to_html(), tmp_path)
    paper = tab.pdf()
    assert paper.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 12
