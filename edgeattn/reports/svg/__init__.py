"""Small charts as inline SVG: drawn here, coloured by the page's style, said in words for who does not see them.

`bars`, `stack` and `intervals` are as wide as their place; the others are scaled like pictures. Classes of shapes are
colours of the style: `bar` (what matters), `soft` (the rest), `over` (wrong), and `c1` to `c8` for kinds of things.
"""

from __future__ import annotations

from edgeattn.reports.svg.heat import matrix
from edgeattn.reports.svg.plots import curves, histogram, roofline
from edgeattn.reports.svg.rows import Row, bars, intervals, stack

__all__ = ["Row", "bars", "curves", "histogram", "intervals", "matrix", "roofline", "stack"]
