"""One image to one array: the recipe in words, and the only code that follows it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
# The decoders that may see foreign bytes; Pillow has others, and one of them starts Ghostscript.
_DECODERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
    "color": _one_of("rgb", "bgr", "gray"),
    "scale": ("a positive number", lambda value: _is_number(value) and value > 0),
    "mean": ("a list of numbers", lambda value: isinstance(value, tuple) and all(map(_is_number, value))),
    "std": (
        "a list of positive numbers",
        lambda value: isinstance(value, tuple) and all(_is_number(item) and item > 0 for item in value),
    ),
    "layout": _one_of("nchw", "nhwc"),
    "fill": ("a whole number from 0 to 255", lambda value: type(value) is int and 0 <= value <= 255),
}


@dataclass(frozen=True)
class Recipe:
    """How an image becomes a model's input: `y = (resized * scale - mean) / std`, resized in 8 bits.

    `size` is (H, W). `resize` is "stretch" (sides apart), "crop" (cover, cut the middle out) or "letterbox" (fit
    inside, `fill` around). `interpolation` is Pillow's, which smooths when it shrinks. `mean` and `std` have one
    number per channel, in the order of `color`, or none.

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

    def __post_init__(self) -> None:
        for name, (form, holds) in _FORMS.items():
            if not holds(value := getattr(self, name)):
                raise InputError(f"recipe: {name} is {value!r}; expected {form}")
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


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from the table `[preprocess]` of a TOML file; the keys are the fields of `Recipe`.

    Raises:
        InputError: the file cannot be read, or a table, key or value is not one of a recipe.
    """
    document = files.read_toml(Path(path))
    _refuse_unknown(document, ["preprocess"], f"{path}: table")
    table = document.get("preprocess")
    if not isinstance(table, dict) or "size" not in table:
        raise InputError(f"{path} has no [preprocess] table with a size; expected at least: size = [H, W]")
    _refuse_unknown(table, list(_FORMS), f"{path}: key")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    try:
        return Recipe(**values)
    except InputError as err:
        raise InputError(f"{path}: {err}") from err


def _refuse_unknown(found: dict[str, Any], known: list[str], what: str) -> None:
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
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(image)
    except Exception as err:  # as in read_image: the bytes are foreign
        raise InputError(f"cannot read the EXIF data of {_name(image)}: {one_line(err)}") from err
    resized = _resize(_eight_bit(upright, "L" if recipe.color == "gray" else "RGB", _name(image)), recipe)
    x: Array = np.asarray(resized, np.float32).reshape(*recipe.size, recipe.channels)
    if recipe.color == "bgr":
        x = x[..., ::-1]
    x = _scaled(x, recipe)
    return np.ascontiguousarray(x.transpose(2, 0, 1) if recipe.layout == "nchw" else x)


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


def _resize(image: Image, recipe: Recipe) -> Image:
    import PIL.Image
    from PIL import ImageOps

    method = PIL.Image.Resampling[recipe.interpolation.upper()]
    height, width = recipe.size
    if recipe.resize == "stretch":
        return image.resize((width, height), method)
    if recipe.resize == "crop":
        return ImageOps.fit(image, (width, height), method)
    ratio = min(height / image.height, width / image.width)
    inner = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    canvas = PIL.Image.new(image.mode, (width, height), (recipe.fill,) * len(image.getbands()))
    canvas.paste(image.resize(inner, method), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _name(image: Image) -> str:
    return str(getattr(image, "filename", "") or "the image")
