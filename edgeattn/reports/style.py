"""How pages look, and the one script they hold: both go into every page as they stand."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { --bg:#f6f7f9; --card:#fff; --ink:#1a1d23; --dim:#5c6573; --line:#e3e6eb; --accent:#3563e9; --soft:#8794a8;
  --good:#0f7b46; --good-bg:#dcf5e7; --bad:#b3261e; --bad-bg:#fde4e1; --warn:#8a5300; --warn-bg:#fdf0d5;
  --c2:#d0751f; --c3:#0b8f82; --c4:#8159cf; --c5:#c13b79; --c6:#6a8a1f; --c7:#64748b; }
@media (prefers-color-scheme: dark) { :root { --bg:#111418; --card:#191d23; --ink:#e7eaef; --dim:#9aa4b3;
  --line:#2a3038; --accent:#7d9dff; --soft:#5f6c84; --good:#5fd896; --good-bg:#12321f; --bad:#ff8a80;
  --bad-bg:#43191a; --warn:#f5c469; --warn-bg:#3a2c10; --c2:#f0a35c; --c3:#3cc4b4; --c4:#b295f0; --c5:#ee7fb0;
  --c6:#a5c456; --c7:#94a3b8; } }
* { box-sizing:border-box; }
body { margin:0; overflow-wrap:break-word; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; }
main { max-width:1080px; margin:0 auto; padding:40px 24px 64px; }
header { margin-bottom:24px; }
header p { margin:0; color:var(--dim); } .tiles + p { margin-top:14px; }
h1 { margin:4px 0 12px; font-size:26px; line-height:1.25; letter-spacing:-.01em; overflow-wrap:anywhere; }
header .lead { margin:0 0 20px; color:var(--ink); font-size:17px; max-width:46em; overflow-wrap:anywhere; }
h2 { margin:0 0 4px; font-size:16px; } h3 { margin:0; font-size:14px; overflow-wrap:anywhere; }
section, .tile { background:var(--card); border:1px solid var(--line); border-radius:12px; }
section { padding:20px 24px; margin-top:16px; }
.note { margin:0 0 12px; color:var(--dim); font-size:13px; max-width:78em; overflow-wrap:anywhere; }
.badge { display:inline-block; padding:1px 10px; border-radius:99px; font-weight:600; font-size:13px;
  white-space:nowrap; }
header .badge { font-size:18px; padding:4px 16px; margin-right:10px; }
.good { color:var(--good); background:var(--good-bg); } .bad { color:var(--bad); background:var(--bad-bg); }
.plain { color:var(--dim); background:var(--line); }
.warn { color:var(--warn); background:var(--warn-bg); padding:8px 14px; border-radius:8px; margin:12px 0 0;
  font-size:14px; overflow-wrap:anywhere; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(180px,1fr)); gap:16px; }
.tile { padding:16px 20px; } .tile span, .tile small { display:block; color:var(--dim); font-size:13px; }
.tile strong { display:block; font-size:26px; line-height:1.3; font-variant-numeric:tabular-nums; }
.note + .note, figure + .note, .scroll + .note { margin-top:12px; margin-bottom:0; }
.grid { display:grid; grid-template-columns:repeat(auto-fill,minmax(280px,1fr)); gap:16px; margin-top:16px; }
.grid > * { min-width:0; } .grid > div { border:1px solid var(--line); border-radius:10px; padding:14px 16px; }
.scroll { overflow-x:auto; margin-top:8px; } .scroll.long { max-height:min(70vh,640px); overflow:auto; }
table { border-collapse:collapse; width:100%; font-size:14px; }
caption { text-align:left; color:var(--dim); font-size:13px; padding-bottom:4px; }
th { color:var(--dim); font-weight:500; font-size:13px; }
th, td { padding:7px 20px 7px 0; border-bottom:1px solid var(--line); text-align:left; vertical-align:top; }
.long th { position:sticky; top:0; background:var(--card); border:0; box-shadow:inset 0 -1px var(--line); z-index:1; }
tbody tr:last-child td { border-bottom:0; }
th.r, td.r { text-align:right; font-variant-numeric:tabular-nums; } .r, .n { white-space:nowrap; }
td { overflow-wrap:anywhere; } td:not(.r, .n, :empty) { min-width:90px; }
.two { display:block; min-width:170px; } td small { display:block; color:var(--dim); font-size:12px; }
th button { font:inherit; color:inherit; background:none; border:0; padding:0; cursor:pointer; text-align:inherit; }
th button:hover { color:var(--ink); } th button::after { content:"\\2195"; opacity:.35; margin-left:4px; }
[aria-sort] button { color:var(--ink); } [aria-sort] button::after { opacity:1; }
[aria-sort=ascending] button::after { content:"\\2191"; } [aria-sort=descending] button::after { content:"\\2193"; }
.filter { display:flex; flex-wrap:wrap; gap:12px; align-items:baseline; margin-top:10px; color:var(--dim);
  font-size:13px; }
.filter input { font:inherit; color:var(--ink); background:var(--bg); border:1px solid var(--soft); border-radius:8px;
  padding:5px 12px; width:min(320px,100%); }
:focus-visible { outline:2px solid var(--accent); outline-offset:2px; }
dl { display:grid; grid-template-columns:fit-content(40%) 1fr; gap:4px 24px; margin:8px 0 0; font-size:14px; }
dt { color:var(--dim); } dd { margin:0; } dt, dd { overflow-wrap:anywhere; }
.grid dl { column-gap:12px; font-size:13px; }
ul { margin:8px 0 0; padding-left:20px; overflow-wrap:anywhere; }
.legend { list-style:none; padding:0; margin:10px 0 0; display:flex; flex-wrap:wrap; gap:4px 20px; font-size:13px; }
.legend b { font-weight:600; font-variant-numeric:tabular-nums; }
details { margin-top:12px; } summary { cursor:pointer; color:var(--dim); font-size:14px; }
img { display:block; max-width:100%; height:auto; border-radius:6px; }
figure { margin:18px 0 0; overflow-x:auto; } figcaption { color:var(--dim); font-size:13px; margin-bottom:6px; }
.grid > figure, .shots figure { margin:0; } .shots { display:flex; flex-wrap:wrap; gap:8px 12px; margin:8px 0; }
.grid.wide { grid-template-columns:1fr; } .wide > div { display:flex; flex-wrap:wrap; gap:4px 24px; }
.wide > div > * { margin:0; } .wide .told { flex:1 1 220px; }
svg { display:block; font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
svg[viewBox] { max-width:100%; height:auto; } figure > svg[viewBox] { min-width:440px; }
.legend svg { display:inline-block; margin-right:6px; vertical-align:-1px; }
svg text { fill:var(--ink); } svg .dim { fill:var(--dim); } svg .bar, svg .c1 { fill:var(--accent); }
svg .soft, svg .c8 { fill:var(--soft); } svg .over { fill:var(--bad); } svg .c2 { fill:var(--c2); }
svg .c3 { fill:var(--c3); } svg .c4 { fill:var(--c4); } svg .c5 { fill:var(--c5); } svg .c6 { fill:var(--c6); }
svg .c7 { fill:var(--c7); } svg line { stroke:var(--line); } svg .rule { stroke:var(--dim); stroke-width:1.5; }
svg .mark { stroke:var(--bad); stroke-dasharray:4 3; } svg .strong { font-weight:600; }
svg polyline { fill:none; stroke-width:2; stroke-linejoin:round; } svg .s1 { stroke:var(--accent); }
svg .s2 { stroke:var(--c2); } svg .s3 { stroke:var(--c3); } svg .s4 { stroke:var(--c4); } svg .s5 { stroke:var(--c5); }
svg .s6 { stroke:var(--c6); } svg .dot { stroke:var(--card); stroke-width:1.5; }
@media (max-width:600px) { main { padding:20px 12px; } section { padding:16px; } dl { grid-template-columns:1fr; }
  dd { margin-bottom:6px; } .tiles { grid-template-columns:repeat(auto-fit,minmax(140px,1fr)); gap:8px; }
  .tile { padding:12px 14px; } .tile strong { font-size:22px; }
  .grid dl { grid-template-columns:fit-content(40%) 1fr; } }
@media print { :root { --bg:#fff; --card:#fff; --ink:#000; --dim:#444; --line:#ccc; --accent:#3563e9; --soft:#8794a8;
  --good:#0f7b46; --good-bg:#dcf5e7; --bad:#b3261e; --bad-bg:#fde4e1; --warn:#8a5300; --warn-bg:#fdf0d5;
  --c2:#d0751f; --c3:#0b8f82; --c4:#8159cf; --c5:#c13b79; --c6:#6a8a1f; --c7:#64748b; }
  @page { margin:14mm; }
  body { font-size:12px; } main { max-width:none; padding:0; } .filter, th button::after { display:none; }
  .scroll, .scroll.long, figure { max-height:none; overflow:visible; } .long th { position:static; box-shadow:none;
    border-bottom:1px solid var(--line); } th button { display:contents; }
  table, th { font-size:11px; } th, td { padding:4px 12px 4px 0; } td small { font-size:10px; } dl { font-size:12px; }
  .tile, .grid > div, tr, figure, dl, .note { break-inside:avoid; } h2, .note { break-after:avoid; }
  details::details-content { content-visibility:visible; height:auto; }
  .badge, .warn, svg * { print-color-adjust:exact; -webkit-print-color-adjust:exact; } }
"""

# Sorts and filters tables; without it they are plain tables. Fewer than 3 kB, and nothing of a report is in it.
SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const key = (row, at) => {
    const cell = row.cells[at], given = cell?.dataset.key, text = given ?? cell?.textContent ?? "";
    const counts = given !== undefined || heads[at].classList.contains("r");
    return { text, number: counts ? parseFloat(text.replace(/,/g, "")) : NaN };
  };
  const sort = (at, sign) => {
    const keys = new Map(rows.map(row => [row, key(row, at)]));
    rows.sort((one, other) => {
      const a = keys.get(one), b = keys.get(other);
      if (isNaN(a.number) !== isNaN(b.number)) return isNaN(a.number) - isNaN(b.number);
      if (isNaN(a.number)) return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
      return sign * Math.sign(a.number - b.number) || 0;
    });
    body.append(...rows);
    heads.forEach(head => head.removeAttribute("aria-sort"));
    heads[at].setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  };
  heads.forEach((head, at) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"), falls = head.classList.contains("r");
      sort(at, now ? (now === "ascending" ? -1 : 1) : falls ? -1 : 1);
    });
  });
  const around = table.parentElement;
  if (!around.classList.contains("long")) continue;
  const line = document.createElement("div"), field = document.createElement("input");
  const shown = document.createElement("output");
  line.className = "filter";
  field.type = "search";
  field.placeholder = "Filter";
  field.setAttribute("aria-label", "Filter " + (table.caption?.textContent || "rows"));
  const count = () => {
    const left = rows.filter(row => !row.hidden).length;
    shown.textContent = left === rows.length ? left + " rows" : left + " of " + rows.length + " rows";
  };
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
    count();
  });
  count();
  line.append(field, shown);
  around.before(line);
}
"""
