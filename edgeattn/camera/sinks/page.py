"""The preview's page: the sources' moving pictures, and numbers that it asks for twice a second."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from edgeattn.camera.timing import STAGES
from edgeattn.reports.html import Markup, element, table

TITLE = "edgeattn camera"
MOST_STREAMS = 4  # a browser opens six connections to a server, and one is for the numbers
_TILES = (("rate", "results a second"), ("p50", "age p50, ms"), ("p95", "age p95, ms"), ("p99", "age p99, ms"),
          ("results", "results"), ("frames", "frames"), ("dropped", "dropped"))  # fmt: skip
_CURVES = (("ages", "age of the newest result, ms"), ("rates", "results a second"))

STYLE = """
:root { --bg:#f6f7f9; --card:#fff; --ink:#1a1d23; --dim:#626b7a; --line:#e3e6eb; --accent:#3563e9; --good:#0f7b46;
  --bad:#b3261e; }
@media (prefers-color-scheme: dark) { :root { --bg:#111418; --card:#191d23; --ink:#e7eaef; --dim:#97a1b1;
  --line:#2a3038; --accent:#7d9dff; --good:#5fd896; --bad:#ff8a80; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; }
main { max-width:1400px; margin:0 auto; padding:16px; display:grid; gap:12px; }
h1 { margin:0; font-size:18px; } h1 small { color:var(--dim); font-weight:400; font-size:13px; margin-left:12px; }
.bad { color:var(--bad) !important; } .good { color:var(--good); }
.views { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr)); gap:12px; }
figure, .tile, section { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px; }
figure { overflow:hidden; } img { display:block; width:100%; height:auto; max-height:80vh; object-fit:contain;
  background:#000; }
figcaption { padding:6px 12px; font-size:13px; color:var(--dim); overflow-wrap:anywhere; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(110px,1fr)); gap:12px; }
.tile { padding:8px 12px; } .tile small { display:block; color:var(--dim); font-size:12px; }
.tile strong { font-size:22px; font-variant-numeric:tabular-nums; }
section { padding:10px 14px; overflow-x:auto; } section > small { color:var(--dim); }
svg { display:block; width:100%; height:56px; } polyline { fill:none; stroke:var(--accent); stroke-width:1.5;
  vector-effect:non-scaling-stroke; }
table { border-collapse:collapse; width:100%; font-size:13px; } th { color:var(--dim); font-weight:500; }
th, td { text-align:right; padding:3px 0 3px 12px; font-variant-numeric:tabular-nums; }
th:first-child, td:first-child { text-align:left; padding-left:0; }
"""

SCRIPT = """
"use strict";
const at = id => document.getElementById(id);
const text = (id, value) => { if (at(id)) at(id).textContent = value; };
const number = (value, digits) => value === null ? "-" : value.toFixed(digits);
const past = { ages: [], rates: [] };
function curve(id, value) {
  const values = past[id];
  values.push(value === null ? NaN : value);
  if (values.length > 120) values.shift();
  const known = values.filter(Number.isFinite), top = Math.max(1e-9, ...known);
  const points = values.map((v, i) => [i * 600 / 119, 54 - 52 * v / top]).filter(p => Number.isFinite(p[1]));
  at(id).setAttribute("points", points.map(p => p[0].toFixed(1) + "," + p[1].toFixed(1)).join(" "));
  text(id + "-top", known.length ? "up to " + number(top, 1) : "");
}
function show(stats) {
  const age = stats.stages.age, dropped = Object.entries(stats.dropped);
  text("rate", number(stats.rate, 1));
  for (const name of ["p50", "p95", "p99"]) text(name, number(age[name + "_ms"], 1));
  text("results", stats.results);
  text("frames", stats.frames);
  text("dropped", dropped.reduce((sum, [, count]) => sum + count, 0));
  text("reasons", dropped.map(([reason, count]) => reason + " " + count).join(", ") || "none");
  for (const [name, stage] of Object.entries(stats.stages))
    for (const key of ["p50", "p95", "p99", "max"]) text(name + "-" + key, number(stage[key + "_ms"], 2));
  stats.sources.forEach((source, index) => {
    const why = source.reason ? " (" + source.reason + ")" : "";
    const again = source.reconnects ? ", opened anew " + source.reconnects + " times" : "";
    text("state-" + index, source.state + why + again);
    const place = at("state-" + index);
    if (place) place.className = ["live", "ended"].includes(source.state.toLowerCase()) ? "good" : "bad";
  });
  const newest = stats.sources.map(source => source.age_ms).filter(value => value !== null);
  curve("ages", newest.length ? Math.max(...newest) : null);
  curve("rates", stats.rate);
}
async function poll() {
  try {
    const answer = await fetch("/stats.json");
    if (!answer.ok) throw new Error(answer.statusText);
    show(await answer.json());
    text("link", "");
  } catch (error) {
    text("link", "no connection to the camera");
  }
  setTimeout(poll, 500);
}
document.querySelectorAll("img").forEach(view => {
  const again = wait => setTimeout(() => { view.src = view.dataset.from + "?again=" + Date.now(); }, wait);
  const still = view.dataset.from.endsWith(".jpg");
  view.addEventListener("error", () => again(2000));
  if (still) view.addEventListener("load", () => again(200));
  if (view.complete && (still || !view.naturalWidth)) again(200);  // that was before anybody listened
});
poll();
"""


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


CONTENT_POLICY = (
    f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src {_hash(STYLE)}; "
    f"script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(uris: Sequence[str]) -> str:
    """The page of sources; their pictures come from `/stream/0` and so on, or one by one where there are many."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", TITLE),
        Markup('<link rel="icon" href="data:,">'),  # there is none, and nobody need ask for it
        element("style", Markup(STYLE)),
    )
    title = element("h1", TITLE, element("small", "", id="link", class_="bad", role="status"))
    path = "/stream/{}" if len(uris) <= MOST_STREAMS else "/frame/{}.jpg"
    views = (_view(index, uri, path.format(index)) for index, uri in enumerate(uris))
    tiles = (element("div", element("small", label), element("strong", "-", id=name), class_="tile")
             for name, label in _TILES)  # fmt: skip
    main = element(
        "main",
        title,
        element("div", *views, class_="views"),
        element("div", *tiles, class_="tiles"),
        element("div", *(_curve(name, label) for name, label in _CURVES), class_="views"),
        element("section", element("small", "dropped: ", element("span", "", id="reasons")), _stages()),
    )
    body = element("body", main, element("script", Markup(SCRIPT)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _view(index: int, uri: str, path: str) -> Markup:
    view = element("img", src=path, data_from=path, alt=f"what {uri} shows, with what the model says of it")
    return element("figure", view, element("figcaption", f"{uri}: ", element("span", "", id=f"state-{index}")))


def _curve(name: str, label: str) -> Markup:
    line = element("svg", element("polyline", id=name), viewBox="0 0 600 56", preserveAspectRatio="none", role="img")
    return element("section", element("small", f"{label}, ", element("span", "", id=f"{name}-top")), line)


def _stages() -> Markup:
    keys = ("p50", "p95", "p99", "max")
    rows = [[stage, *(element("span", "-", id=f"{stage}-{key}") for key in keys)] for stage in STAGES]
    return table(["stage, ms", *keys], rows, "lrrrr")
