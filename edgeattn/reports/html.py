"""One offline HTML page from parts: everything escaped, nothing executed or fetched; light, dark and printable."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgeattn.reports.text import printable

__all__ = ["Markup", "badge", "element", "page", "pairs", "section", "table", "tiles"]

_VOID = ("meta", "br", "line", "rect")


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters an element."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """One element; `class_` gives `class`, `stroke_width` gives `stroke-width`. Control characters become escapes."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(printable(str(value)))}"'
        for name, value in attributes.items()
    )
    if tag in _VOID and not children:
        return Markup(f"<{tag}{written}{'/' if tag in ('line', 'rect') else ''}>")
    inner = "".join(child if isinstance(child, Markup) else html.escape(printable(child)) for child in children)
    return Markup(f"<{tag}{written}>{inner}</{tag}>")


def page(title: str, *sections: Markup, data: Mapping[str, Any]) -> str:
    """The whole document; `data`, the report as JSON, is embedded for programs to read."""
    text = json.dumps(data, allow_nan=False)
    # Inside a script element only these can end it or open a comment; in a JSON string the escapes mean the same.
    inert = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    raw = Markup(f'<script type="application/json" id="report">{inert}</script>')
    body = element("body", element("main", *sections), raw)
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def section(heading: str, *children: str, note: str = "") -> Markup:
    """A titled card, with a line of explanation under the title where there is one."""
    notes = [element("p", note, class_="note")] if note else []
    return element("section", element("h2", heading), *notes, *children)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> Markup:
    """A table; `align` holds `l` or `r` for each column, `l` for those beyond its end."""
    sides = align.ljust(len(header), "l")

    def line(tag: str, cells: Sequence[str]) -> Markup:
        return element(
            "tr", *(element(tag, cell, class_=side) for cell, side in zip(cells, sides[: len(cells)], strict=True))
        )

    body = element("tbody", *(line("td", row) for row in rows))
    return element("div", element("table", element("thead", line("th", header)), body), class_="scroll")


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


def badge(good: bool, word: str) -> Markup:
    """A word on green or red; it carries a sign too, for readers who see no colours."""
    return element("span", f"{'✓' if good else '✗'} {word}", class_=f"badge {'good' if good else 'bad'}")


_STYLE = """
:root { --bg:#f6f7f9; --card:#fff; --ink:#1a1d23; --dim:#626b7a; --line:#e3e6eb; --accent:#3563e9; --soft:#a9b4c6;
  --good:#0f7b46; --good-bg:#dcf5e7; --bad:#b3261e; --bad-bg:#fde4e1; }
@media (prefers-color-scheme: dark) { :root { --bg:#111418; --card:#191d23; --ink:#e7eaef; --dim:#97a1b1;
  --line:#2a3038; --accent:#7d9dff; --soft:#4c586a; --good:#5fd896; --good-bg:#12321f; --bad:#ff8a80;
  --bad-bg:#43191a; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 24px 64px; }
header { margin-bottom:24px; }
header p { margin:0; color:var(--dim); }
h1 { margin:4px 0 12px; font-size:26px; line-height:1.25; letter-spacing:-.01em; overflow-wrap:anywhere; }
h2 { margin:0 0 4px; font-size:16px; }
section, .tile { background:var(--card); border:1px solid var(--line); border-radius:12px; }
section { padding:20px 24px; margin-top:16px; }
.note { margin:0 0 12px; color:var(--dim); font-size:13px; }
.badge { display:inline-block; padding:1px 10px; border-radius:99px; font-weight:600; font-size:13px;
  white-space:nowrap; }
header .badge { font-size:18px; padding:4px 16px; margin-right:10px; }
.good { color:var(--good); background:var(--good-bg); } .bad { color:var(--bad); background:var(--bad-bg); }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:16px; }
.tile { padding:16px 20px; } .tile span, .tile small { display:block; color:var(--dim); font-size:13px; }
.tile strong { display:block; font-size:26px; line-height:1.3; font-variant-numeric:tabular-nums; }
.note + .note, figure + .note { margin-top:12px; margin-bottom:0; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; width:100%; font-size:14px; }
th { color:var(--dim); font-weight:500; font-size:13px; }
th, td { padding:7px 20px 7px 0; border-bottom:1px solid var(--line); text-align:left; vertical-align:top; }
tbody tr:last-child td { border-bottom:0; }
th.r, td.r { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
td { overflow-wrap:anywhere; } td.l:not(:empty) { min-width:90px; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:4px 24px; margin:8px 0 0; font-size:14px; }
dt { color:var(--dim); } dd { margin:0; overflow-wrap:anywhere; }
ul { margin:8px 0 0; padding-left:20px; }
figure { margin:18px 0 0; overflow-x:auto; } figcaption { color:var(--dim); font-size:13px; margin-bottom:6px; }
svg { display:block; width:100%; min-width:560px; height:auto;
  font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
svg text { fill:var(--ink); } svg .dim { fill:var(--dim); } svg .bar { fill:var(--accent); }
svg .soft { fill:var(--soft); } svg .over { fill:var(--bad); } svg line { stroke:var(--line); }
svg .mark { stroke:var(--bad); stroke-dasharray:4 3; }
@media (max-width:600px) { main { padding:20px 12px; } section { padding:16px; } dl { grid-template-columns:1fr; }
  dd { margin-bottom:6px; } }
@media print { :root { --bg:#fff; --card:#fff; --ink:#000; --dim:#444; --line:#ccc; --accent:#3563e9; --soft:#a9b4c6;
  --good:#0f7b46; --good-bg:#dcf5e7; --bad:#b3261e; --bad-bg:#fde4e1; }
  main { max-width:none; padding:0; } section, .tile, tr { break-inside:avoid; }
  .badge { print-color-adjust:exact; -webkit-print-color-adjust:exact; }
  svg * { print-color-adjust:exact; -webkit-print-color-adjust:exact; } }
"""
