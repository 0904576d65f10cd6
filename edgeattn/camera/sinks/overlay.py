"""A result as a picture: what the model said, drawn over a copy of its frame."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.camera.geometry import smooth, spread
from edgeattn.camera.outlets import Result
from edgeattn.camera.results import Boxes, Classes, Mask, Saliency, name_of
from edgeattn.camera.timing import Stats
from edgeattn.errors import UsageError, did_you_mean
from edgeattn.images import Recipe
from edgeattn.reports.heat import coloured
from edgeattn.reports.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgeattn.maps import Watch
    from edgeattn.tensors import Array

OPACITY = 0.5  # of a mask; heat is as opaque as it is hot, up to 0.7
_HOTTEST = 0.7
_LEAST = 256  # pixels of a picture's longer side
_LIST = 6  # classes that are named in a corner
_UNSEEN = 255  # in a picture of colour indices: what the model did not see is black


@dataclass(frozen=True)
class Overlay:
    """Draws results: `overlay(result)` is a picture of the frame, no wider or higher than `largest` pixels.

    A tiny frame is enlarged, so that there is room for words.

    `recipe` is the engine's; `stats` gives the numbers in the line at the top; `watch` is the attention map that is
    laid over the frame instead of what the model says of its pixels, see `attention_of`.
    """

    recipe: Recipe
    stats: Callable[[], Stats] | None = None
    watch: Watch | None = None
    largest: int | None = None

    def __call__(self, result: Result) -> Image:
        """Draw one result; the frame stays as it is."""
        from PIL import Image as Pictures

        picture = Pictures.fromarray(result.frame.image)  # which copies: Pillow's pixels have four bytes
        size, plane = picture.size, self._attention(result.outputs)
        if max(size) < _LEAST:
            factor = -(-_LEAST // max(size))
            picture = picture.resize((factor * size[0], factor * size[1]), Pictures.Resampling.NEAREST)
        if self.largest is not None:
            picture.thumbnail((self.largest, self.largest), Pictures.Resampling.BILINEAR)
        if plane is not None:
            picture = _heated(picture, smooth(plane, size, self.recipe, picture.size))
        picture = _drawn(picture, result.value, pixels=plane is None)
        if self.stats is not None:
            _write(picture, (6, 4), hud(self.stats(), result))
        return picture

    def _attention(self, outputs: Mapping[str, Array]) -> Array | None:
        """The watched map, from 0 to 1."""
        if self.watch is None:
            return None
        from edgeattn.maps import AttentionMap
        from edgeattn.maps.picture import places

        watch, array = self.watch, outputs[self.watch.output]
        plane = places(AttentionMap(watch.op, watch.name, watch.kind, array, items=watch.items), array)
        return None if plane is None else (plane - plane.min()) / max(float(np.ptp(plane)), 1e-12)


def attention_of(about: Mapping[str, Any], name: str = "") -> Watch:
    """The attention map of an engine to lay over frames, by what its sidecar says of its graph.

    Args:
        about: `Sidecar.graph`.
        name: of the attention; by default the last one whose map has places.

    Raises:
        UsageError: the engine was built without its maps; says how to build it with them. Or that attention has none.
    """
    from edgeattn.maps.picture import CHANNELS
    from edgeattn.maps.watch import watches_in

    watches = [
        watch
        for watch in watches_in(about)
        if watch.op not in (*CHANNELS, "SpatialTransformer") and watch.kind != "channel"
    ]
    if not watches:
        raise UsageError(
            "the engine has no attention map of places among its outputs: edgeattn attention MODEL.onnx --expose "
            "MAPS.onnx writes the graph with its maps as outputs; build the engine from that"
        )
    chosen = [watch for watch in watches if name in ("", watch.name)]
    if not chosen:
        raise UsageError(f"no attention {name!r} has a map; {did_you_mean(name, [watch.name for watch in watches])}")
    return chosen[-1]


def hud(stats: Stats, result: Result) -> str:
    """The line at the top: results a second, the result's age, frames dropped."""
    return f"{stats.rate:.1f} fps   age {1000 * result.age:.0f} ms   dropped {sum(stats.dropped.values())}"


def _drawn(picture: Image, value: Any, *, pixels: bool) -> Image:
    """Draw a value; those of pixels only where nothing else lies there."""
    if isinstance(value, Mask):
        picture = _masked(picture, value) if pixels else picture
        _list(picture, [(n, f"{name_of(n, value.names)} {share:.0%}") for n, share in value.shares.items()])
    elif isinstance(value, Saliency) and pixels:
        picture = _heated(picture, smooth(value.plane, value.size, value.recipe, picture.size))
    elif isinstance(value, Boxes):
        _boxed(picture, value)
    elif isinstance(value, Classes):
        _list(picture, [(number, f"{name_of(number, value.names)} {p:.1%}") for number, p in value.best])
    return picture


def _masked(picture: Image, value: Mask) -> Image:
    from PIL import Image as Pictures

    indices = (value.plane % _UNSEEN).astype(np.uint8)
    colours = Pictures.fromarray(spread(indices, value.size, value.recipe, picture.size, fill=_UNSEEN))
    colours.putpalette(_palette())
    return Pictures.blend(picture, colours.convert("RGB"), OPACITY)


def _heated(picture: Image, plane: Array) -> Image:
    from PIL import Image as Pictures

    heat = Pictures.fromarray((255 * plane).astype(np.uint8))
    colours = heat.copy()
    colours.putpalette(_heat_palette())
    return Pictures.composite(colours.convert("RGB"), picture, heat.point([int(_HOTTEST * n) for n in range(256)]))


def _boxed(picture: Image, value: Boxes) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    scale = np.tile(np.array(picture.size) / value.size, 2)
    for *box, score, kind in reversed(value.rows.tolist()):  # the best on top
        left, top, right, bottom = (int(side) for side in np.array(box) * scale)
        colour = colour_of(int(kind))
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
        _write(
            picture, (left, top - 17 if top >= 17 else top), f"{name_of(int(kind), value.names)} {score:.2f}", colour
        )


def _list(picture: Image, lines: Sequence[tuple[int, str]]) -> None:
    """Name classes in the lower left corner, the first one at the top."""
    height = 18
    top = picture.height - height * min(len(lines), _LIST) - 4
    for row, (number, text) in enumerate(lines[:_LIST]):
        _write(picture, (6, top + row * height), text, colour_of(number))


def _write(picture: Image, place: tuple[int, int], text: str, colour: tuple[int, int, int] = (20, 22, 28)) -> None:
    picture.paste(_sign(printable(text), colour), place)


@functools.lru_cache(512)
def _sign(text: str, colour: tuple[int, int, int]) -> Image:
    """Text on a ground of a colour."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    font = _font()
    sign = Pictures.new("RGB", (int(font.getlength(text)) + 8, 17), colour)
    light = 299 * colour[0] + 587 * colour[1] + 114 * colour[2] > 150_000
    ImageDraw.Draw(sign).text((4, 0), text, fill=(0, 0, 0) if light else (255, 255, 255), font=font)
    return sign


@functools.cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(13)


@functools.cache
def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a class: hues a golden angle apart, so that neighbours differ; class 0 is gray."""
    if number == 0:
        return 96, 104, 120
    red, green, blue = colorsys.hls_to_rgb((0.57 + number * 0.618034) % 1, (0.52, 0.4, 0.64)[number % 3], 0.75)
    return int(255 * red), int(255 * green), int(255 * blue)


@functools.cache
def _palette() -> bytes:
    return bytes(part for number in range(_UNSEEN) for part in colour_of(number)) + bytes(3)


@functools.cache
def _heat_palette() -> bytes:
    return coloured(np.linspace(0, 1, 256)).tobytes()
