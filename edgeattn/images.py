"""One image to one array: the recipe in words, and the only code that follows it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn import files
from edgeattn.errors import InputError, UsageError, did_you_mean, one_line
from edgeattn.tensors import TensorSpec, format_shape

if TYPE_CHECKING:
    from PIL.Image import Image

    from edgeattn.tensors import Array

MAX_PIXELS = 64 * 10**6
_HUGE = float(np.finfo(np.float64).max)
# The decoders that may see foreign bytes; Pillow has others, and one of them starts Ghostscript.
_DECODERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_HUGE <= value <= _HUGE


def _is_size(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(side) is int for side in value):
        return False
    return min(value) >= 1 and math.prod(value) <= MAX_PIXELS


def _one_of(*words: str) -> tuple[str, Callable[[Any], bool]]:
    return " or ".join(f'"{word}"' for word in words), lambda value: value in words


_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "size": ("[H, W], whole pixels, at most 64 million", _is_size),
    "resize": _one_of("stretch", "crop", "letterbox"),
    "interpolation": _one_of("nearest", "bilinear", "bicubic"),
    "reducing_gap": ("a number of at least 1", lambda value: value is None or (_is_number(value) and value >= 1)),
    "color": _one_of("rgb", "bgr", "gray"),
    "scale": ("a positive number", lambda value: _is_number(value) and value > 0),
    "mean": ("a list of numbers", lambda value: isinstance(value, tuple) and all(map(_is_number, value))),
    "std": (
        "a list of positive numbers",
        lambda value: isinstance(value, tuple) and all(_is_number(item) and item > 0 for item in value),
    ),
    "layout": _one_of("nchw", "nhwc"),
    "fill": ("a whole number from 0 to 255", lambda value: type(value) is int and 0 <= value <= 255),
    "ignore": (
        "a whole number from 0 to 65535",
        lambda value: value is None or (type(value) is int and 0 <= value <= 65535),
    ),
}
_TABLES = {"preprocess": [name for name in _FORMS if name != "ignore"], "labels": ["ignore"]}
_OTHER_TABLES = ("calibration", "acceptance")  # edgeattn.calibrate reads them
_ORIENTATION = 0x0112  # EXIF's tag
IGNORED = -1  # the class of a pixel that counts nowhere


@dataclass(frozen=True)
class Recipe:
    """How an image becomes a model's input: `y = (resized * scale - mean) / std`, resized in 8 bits.

    `size` is (H, W). `resize` is "stretch" (sides apart), "crop" (cover, cut the middle out) or "letterbox" (fit
    inside, `fill` around). `interpolation` is Pillow's, which smooths when it shrinks. `mean` and `std` have one
    number per channel, in the order of `color`, or none. With `reducing_gap` g, Pillow's too, whole pixels are averaged
    first where a side shrinks 2g-fold or more, as many as leave it g-fold to shrink: half the time, for levels that
    differ a little. Masks and boxes take the same way as their image; `ignore` is the class that a mask has where it
    says nothing.

    Raises:
        InputError: a value is not of its form, or `mean` or `std` do not fit the channels.
    """

    size: tuple[int, int]
    resize: str = "stretch"
    interpolation: str = "bilinear"
    color: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "nchw"
    fill: int = 114
    ignore: int | None = None
    reducing_gap: float | None = None

    def __post_init__(self) -> None:
        for name, (form, holds) in _FORMS.items():
            if not holds(value := getattr(self, name)):
                raise InputError(f"recipe: {name} is {value!r}; expected {form}")
        if self.reducing_gap is not None and self.interpolation == "nearest":
            raise InputError(
                'recipe: "nearest" takes single pixels, so nothing is reduced first; leave reducing_gap out'
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.channels):
                raise InputError(
                    f"recipe: {name} has {len(getattr(self, name))} numbers, color {self.color!r} has {self.channels} "
                    f"channels; give one number per channel"
                )
        with np.errstate(over="ignore", invalid="ignore"):
            ends = _scaled(np.array([[0], [255]], np.float32), self)
        if not np.isfinite(ends).all():
            raise InputError("recipe: scale, mean and std lead out of float32; expected values that networks take")

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one prepared image."""
        return (self.channels, *self.size) if self.layout == "nchw" else (*self.size, self.channels)


def plain_recipe(recipe: Recipe | None) -> dict[str, Any]:
    """A recipe as JSON has it; empty for none.

    Without a `reducing_gap` it has no such key, as in files that were written before there was one.
    """
    values: dict[str, Any] = json.loads(json.dumps(asdict(recipe))) if recipe else {}
    return {name: value for name, value in values.items() if (name, value) != ("reducing_gap", None)}


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from the tables `[preprocess]` and `[labels]` (`ignore`) of a TOML file: the fields of `Recipe`.

    The tables `[calibration]` and `[acceptance]` may stand beside them; see `edgeattn.calibrate.load_calibration`.

    Raises:
        InputError: the file cannot be read, or a table, key or value is not one of a recipe.
    """
    document = files.read_toml(Path(path))
    refuse_unknown(document, [*_TABLES, *_OTHER_TABLES], f"{path}: table")
    if "size" not in table_of(document, "preprocess", path):
        raise InputError(f"{path} has no [preprocess] table with a size; expected at least: size = [H, W]")
    values: dict[str, Any] = {}
    for name, keys in _TABLES.items():
        table = table_of(document, name, path)
        refuse_unknown(table, keys, f"{path}: key")
        values |= {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    try:
        return Recipe(**values)
    except InputError as err:
        raise InputError(f"{path}: {err}") from err


def table_of(document: dict[str, Any], name: str, path: str | Path) -> dict[str, Any]:
    """A table of a TOML document, empty where there is none.

    Raises:
        InputError: a value stands in its place.
    """
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{path} has no [{name}] table, but a value of that name; expected [{name}] on its own line")
    return table


def refuse_unknown(found: Iterable[str], known: list[str], what: str) -> None:
    """Refuse a name that is not known.

    Raises:
        InputError: names the nearest one that is.
    """
    for name in found:
        if name not in known:
            raise InputError(f"{what} {name!r} is unknown; {did_you_mean(name, known)}")


def default_recipe(spec: TensorSpec) -> Recipe:
    """The recipe that an input's spec alone gives: its size, channels and layout; [0, 1] for floats, else 0 .. 255.

    Raises:
        UsageError: the spec is not one of an image (B, 1 or 3, H, W) or (B, H, W, 1 or 3) with fixed H and W.
    """
    dims = spec.shape if spec.shape is not None and len(spec.shape) == 4 else (0, 0, 0, 0)
    layout = "nchw" if dims[1] in (1, 3) else "nhwc"
    channels, height, width = dims[1:] if layout == "nchw" else (dims[3], *dims[1:3])
    if channels not in (1, 3) or not isinstance(height, int) or not isinstance(width, int):
        raise UsageError(
            f"input {spec.name!r} of shape {format_shape(spec.shape)} does not say how an image becomes it "
            f"(1 or 3 channels, fixed height and width); give a recipe with --recipe"
        )
    floating = "float" in spec.dtype
    return Recipe(
        (height, width), color="rgb" if channels == 3 else "gray", scale=1 / 255 if floating else 1.0, layout=layout
    )


def read_image(path: str | Path) -> Image:
    """Decode an image file (BMP, GIF's first frame, JPEG, PNG, PPM, TIFF, WebP).

    Raises:
        InputError: there is no such file, it is no image, it is damaged, or its header announces more than 64 MPix.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the lower one
            image = Image.open(path, formats=_DECODERS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: {image.width}x{image.height} pixels, more than 64 million; shrink it")
            image.load()
            return image
    except InputError:
        raise
    except FileNotFoundError as err:
        raise InputError(f"no such image: {path}") from err
    except Exception as err:  # a decoder raises whatever the bytes lead it to
        raise InputError(f"cannot read {path} as an image: {one_line(err)}") from err


def preprocess(image: Image, recipe: Recipe) -> Array:
    """Follow a recipe; returns float32, (C, H, W) or (H, W, C) as the recipe's layout says.

    EXIF's rotation is applied and alpha dropped; palettes and CMYK become RGB, 16 bits become 8 by rounding, gray is
    ITU-R 601 luma.

    Raises:
        InputError: the image's mode has no defined conversion, or its EXIF data is damaged.
    """
    pixels = upright(image, "L" if recipe.color == "gray" else "RGB")
    prepared: Array = of_pixels(resize(pixels, recipe)[None], recipe)[0]
    return prepared


def upright(image: Image, mode: str) -> Image:
    """A picture turned as its EXIF data say, in 8 bits, as `L` or `RGB`; see `preprocess`.

    Raises:
        InputError: its mode has no defined conversion, or its EXIF data is damaged.
    """
    from PIL import ImageOps

    try:
        turned = ImageOps.exif_transpose(image)
    except Exception as err:  # as in read_image: the bytes are foreign
        raise InputError(f"cannot read the EXIF data of {_name(image)}: {one_line(err)}") from err
    return _eight_bit(turned, mode, _name(image))


def resize(image: Image, recipe: Recipe) -> Array:
    """A picture in 8 bits, gray or RGB, resized the recipe's way: uint8 (H, W, C), which is what `of_pixels` takes."""
    resized = _resize(image, recipe, recipe.interpolation, recipe.fill)
    return np.asarray(resized).reshape(*recipe.size, recipe.channels)


def of_pixels(pixels: Array, recipe: Recipe) -> Array:
    """What a recipe makes of resized images in 8 bits, (B, H, W, C) in RGB or gray: all of it but the resize."""
    x = pixels.astype(np.float32)
    x = _scaled(x[..., ::-1] if recipe.color == "bgr" else x, recipe)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if recipe.layout == "nchw" else x)


def leftover(recipe: Recipe) -> Recipe:
    """The resize alone, which gives the pixels that `of_pixels` takes."""
    color = "gray" if recipe.color == "gray" else "rgb"
    return replace(recipe, scale=1.0, mean=(), std=(), layout="nhwc", color=color)


def _scaled(x: Array, recipe: Recipe) -> Array:
    """Channels last: scale, then mean and std."""
    x = x * np.float32(recipe.scale)
    if recipe.mean:
        x = x - np.asarray(recipe.mean, np.float32)
    if recipe.std:
        x = x / np.asarray(recipe.std, np.float32)
    return x


def _eight_bit(image: Image, mode: str, name: str) -> Image:
    import PIL.Image

    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise InputError(f"{name} has values beyond 16 bits; convert it to 8 or 16 bits")
        image = PIL.Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point pixels, whose range is not known; convert it to 8 bits")
    try:
        return image.convert(mode)
    except ValueError as err:
        raise InputError(f"{name}: no conversion from {image.mode} to {mode}; convert it to RGB") from err


@dataclass(frozen=True)
class Placement:
    """Where a picture goes: its region `box` (left, top, right, bottom) fills `size` (W, H) at `corner` (X, Y)."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    corner: tuple[int, int]


def placement(width: int, height: int, recipe: Recipe) -> Placement:
    """Where a picture of this size goes; "crop" cuts as Pillow's `ImageOps.fit` does."""
    bottom, right = recipe.size
    whole = (0.0, 0.0, float(width), float(height))
    if recipe.resize == "letterbox":
        ratio = min(bottom / height, right / width)
        inner = max(1, round(width * ratio)), max(1, round(height * ratio))
        return Placement(whole, inner, ((right - inner[0]) // 2, (bottom - inner[1]) // 2))
    if recipe.resize == "crop":
        ratio = right / bottom
        across, down = min(width, ratio * height), min(height, width / ratio)
        left, top = (width - across) * 0.5, (height - down) * 0.5
        whole = (left, top, left + across, top + down)
    return Placement(whole, (right, bottom), (0, 0))


def _resize(image: Image, recipe: Recipe, interpolation: str, fill: int) -> Image:
    import PIL.Image

    place = placement(image.width, image.height, recipe)
    resized = image.resize(place.size, PIL.Image.Resampling[interpolation.upper()], place.box, recipe.reducing_gap)
    if place.size == recipe.size[::-1]:
        return resized
    canvas = PIL.Image.new(image.mode, recipe.size[::-1], (fill,) * len(image.getbands()))
    canvas.paste(resized, place.corner)
    return canvas


def read_mask(path: str | Path, size: tuple[int, int], recipe: Recipe) -> Array:
    """Read the mask (h, w) of an image of `size` (w, h), and take it the recipe's way to (H, W), by nearest neighbours.

    Returns:
        int32: the class of each pixel, -1 where it is `recipe.ignore` and beside the picture in a letterbox.

    Raises:
        InputError: it cannot be read, has colours instead of classes, or another size than its image.
    """
    import PIL.Image

    mask = read_image(path)
    if mask.mode not in ("1", "L", "P") and not mask.mode.startswith("I"):
        raise InputError(f"{path} is a mask with pixels of kind {mask.mode}; expected one whole number, the class")
    if mask.size != size:
        raise InputError(f"{path} is a mask of {mask.size[0]}x{mask.size[1]} pixels, its image has {size[0]}x{size[1]}")
    classes = np.asarray(mask).astype(np.int32)
    if recipe.ignore is not None:
        classes[classes == recipe.ignore] = IGNORED
    placed = _resize(PIL.Image.fromarray(classes), recipe, "nearest", IGNORED)
    return np.array(placed, np.int32)


def place_boxes(boxes: Array, size: tuple[int, int], recipe: Recipe) -> Array:
    """Take boxes (K, 5: x1, y1, x2, y2, class) on an image of `size` (w, h) the recipe's way; float32.

    They are cut at the edge of what a crop leaves, and those of which nothing is left are gone.
    """
    place = placement(*size, recipe)
    left, top, right, bottom = place.box
    scale = np.array([place.size[0] / (right - left), place.size[1] / (bottom - top)])
    corner = np.array(place.corner)
    moved = np.array(boxes, np.float64).reshape(-1, 5)
    for pair in (slice(0, 2), slice(2, 4)):
        moved[:, pair] = np.clip((moved[:, pair] - (left, top)) * scale, 0, place.size) + corner
    kept: Array = moved[(moved[:, 2:4] > moved[:, :2]).all(1)].astype(np.float32)
    return kept


def upright_size(image: Image) -> tuple[int, int]:
    """(w, h) of an image as `preprocess` sees it, turned as its EXIF data say."""
    turned = image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def _name(image: Image) -> str:
    return str(getattr(image, "filename", "") or "the image")
