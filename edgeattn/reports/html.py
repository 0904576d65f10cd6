"""One offline HTML page from parts: everything escaped, nothing fetched; light, dark and printable.

The only code in it is `style.SCRIPT`, which sorts and filters tables; its hash is the only one that the page admits.
"""

from __future__ import annotations

import html
import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from edgeattn.reports.style import SCRIPT, STYLE
from edgeattn.reports.text import printable

__all__ = [
    "Cell", "Markup", "badge", "details", "element", "grid", "page", "pairs", "picture", "section", "table", "tiles",
]  # fmt: skip

Cell = str | tuple[str, float]  # what is shown, and the number that it is sorted by where it is not that number itself

LONG = 12  # rows from which on a table scrolls under its header and has a filter
_VOID = ("br", "circle", "img", "line", "meta", "path", "polyline", "rect")


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters an element."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One element; `class_` gives `class`, `stroke_width` gives `stroke-width`. Control characters become escapes."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(printable(str(value)))}"'
        for name, value in attributes.items()
    )
    if tag in _VOID and not children:
        return Markup(f"<{tag}{written}/>")
    inner = "".join(child if isinstance(child, Markup) else html.escape(printable(child)) for child in children)
    return Markup(f"<{tag}{written}>{inner}</{tag}>")


def page(title: str, *sections: Markup, data: Mapping[str, Any]) -> str:
    """The whole document; `data`, the report as JSON, is embedded for programs to read, with seven digits a number."""
    text = json.dumps(_rounded(data), allow_nan=False, separators=(",", ":"))
    # Inside a script element only these can end it or open a comment; in a JSON string the escapes mean the same.
    inert = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    admitted = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{admitted}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    raw = Markup(f'<script type="application/json" id="report">{inert}</script>')
    body = element("body", element("main", *sections), raw, element("script", Markup(SCRIPT)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def section(heading: str, *children: str, note: str = "") -> Markup:
    """A titled card, with a line of explanation under the title where there is one.

    Links reach it by its title: `report.html#where-the-time-goes`.
    """
    notes = [element("p", note, class_="note")] if note else []
    anchor = "-".join(re.findall("[a-z0-9]+", heading.lower()))
    return element("section", element("h2", heading), *notes, *children, id=anchor or "section")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    align: str = "",
    *,
    interactive: bool = False,
    caption: str = "",
) -> Markup:
    """A table; one that is interactive is sorted by a click on a header, and filtered where it is long.

    Args:
        header: titles of the columns.
        rows: cells as text, or as (text, number to sort by); a short row leaves its last columns empty.
        align: for each column `l`, `n` (left, never broken) or `r` (right; sorted as numbers, largest first); `l` for
            those beyond its end.
        interactive: whether there is something to sort.
        caption: what the table holds, above it.
    """
    sides = align.ljust(len(header), "l")

    def line(tag: str, cells: Sequence[Cell], **more: str) -> Markup:
        drawn = []
        for cell, side in zip(cells, sides[: len(cells)], strict=True):
            shown, key = (cell, {}) if isinstance(cell, str) else (cell[0], {"data_key": _key(cell[1])})
            drawn.append(element(tag, shown, **({"class_": side} if side != "l" else {}), **key, **more))
        return element("tr", *drawn)

    head = element("thead", line("th", header, scope="col"))
    body = element("tbody", *(line("td", row) for row in rows))
    title = [element("caption", caption)] if caption else []
    long = interactive and len(rows) > LONG
    # What scrolls must be reachable by keyboard.
    reach = {"tabindex": 0, "role": "region", "aria_label": caption or ", ".join(header)} if long else {}
    drawn = element("table", *title, head, body, **({"class_": "sortable"} if interactive else {}))
    return element("div", drawn, class_="scroll long" if long else "scroll", **reach)


def _key(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value!r}".replace("inf", "Infinity")


def pairs(rows: Mapping[str, str]) -> Markup:
    """Names and values, one pair a line."""
    return element(
        "dl", *(child for name, value in rows.items() for child in (element("dt", name), element("dd", value)))
    )


def tiles(rows: Sequence[tuple[str, str, str]]) -> Markup:
    """Big numbers side by side: (label, number, what it means)."""
    return element(
        "div",
        *(
            element("div", element("span", label), element("strong", number), element("small", meaning), class_="tile")
            for label, number, meaning in rows
        ),
        class_="tiles",
    )


def badge(good: bool | None, word: str) -> Markup:
    """A word on green or red, with a sign for readers who see no colours; grey where it is neither good nor bad."""
    sign, class_ = {True: ("✓ ", "good"), False: ("✗ ", "bad"), None: ("", "plain")}[good]
    return element("span", sign + word, class_=f"badge {class_}")


def picture(data: bytes, alt: str, width: int) -> Markup:
    """A PNG or JPEG inside the page, `width` pixels wide or as wide as there is room; `alt` says it in words."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return element("img", src=f"data:image/{kind};base64,{b64encode(data).decode()}", alt=alt, width=width)


def details(summary: str, *children: str) -> Markup:
    """What only some readers want, folded under a line; unfolded on paper."""
    return element("details", element("summary", summary), *children)


def grid(*children: Markup) -> Markup:
    """Cards or figures side by side, as many as fit."""
    return element("div", *children, class_="grid")
