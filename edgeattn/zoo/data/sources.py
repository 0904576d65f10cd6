"""What the data sets are made of: scans, photographs, silhouettes, and how they are cut, turned and laid on a picture.

Training and test share no scan, photograph or coin. A picture is a function of its set, split and index: it does not
depend on how many are written, and its arithmetic is in whole numbers wherever one processor could round otherwise
than another.
"""

from __future__ import annotations

import math
import zlib
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeattn.errors import MissingDependencyError

if TYPE_CHECKING:
    from edgeattn.tensors import Array

Split = Literal["train", "test"]

HELD_OUT = 5  # every fifth scan of a class is for the test
PHOTOGRAPHS = {
    "train": ("china.jpg", "astronaut", "coffee", "stereo_motorcycle", "immunohistochemistry", "brick", "grass"),
    "test": ("flower.jpg", "chelsea", "rocket", "camera", "gravel"),
}
SHAPES = ("disc", "square", "triangle", "star", "ring")
_FINE = 4  # outlines are drawn this many times larger
_GLYPH = 32  # pixels of an enlarged scan


def generator(name: str, split: Split, index: int) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.default_rng([zlib.crc32(name.encode()), split == "test", index])


@cache
def scans(split: Split) -> tuple[Array, Array, Array]:
    """scikit-learn's handwritten digits: which of the 1,797 they are, scans (N, 8, 8) in 8 bits, and labels (N,).

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise MissingDependencyError("the digits come with scikit-learn: pip install scikit-learn") from err
    digits = load_digits()
    held_out = np.zeros(len(digits.target), bool)
    for label in range(10):
        held_out[np.flatnonzero(digits.target == label)[HELD_OUT - 1 :: HELD_OUT]] = True
    chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
    gray = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # the scans count 0 .. 16
    return chosen, gray, digits.target[chosen]


@cache
def glyphs(split: Split) -> Array:
    """The scans of a split, enlarged smoothly: (N, 32, 32)."""
    from PIL import Image

    size, bicubic = (_GLYPH, _GLYPH), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(scan).resize(size, bicubic)) for scan in scans(split)[1]])


@cache
def photographs(split: Split) -> tuple[Array, ...]:
    """Photographs (H, W, 3) that come with scikit-learn and scikit-image.

    Raises:
        MissingDependencyError: one of the two is not installed.
    """
    try:
        import skimage.data
        from sklearn.datasets import load_sample_image
    except ImportError as err:
        raise MissingDependencyError("photographs come with: pip install scikit-learn scikit-image") from err
    found = []
    for name in PHOTOGRAPHS[split]:
        image = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
        image = np.asarray(image[0] if isinstance(image, tuple) else image)  # the left of a stereo pair
        found.append(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))
    return tuple(found)


@cache
def coins(split: Split) -> tuple[tuple[Array, Array], ...]:
    """Coins, each a gray picture and its silhouette: 18 for training, the lowest row of six for the test."""
    import skimage.data
    from skimage.filters import sobel
    from skimage.measure import label, regionprops
    from skimage.segmentation import watershed

    picture = skimage.data.coins()
    markers = np.where(picture < 30, 1, np.where(picture > 150, 2, 0))
    regions = regionprops(label(watershed(sobel(picture), markers) == 2))
    found = []
    for region in (region for region in regions if region.area > 700):
        top, left, bottom, right = region.bbox
        lowest = (top + bottom) / 2 > 0.75 * picture.shape[0]
        if lowest == (split == "test"):
            found.append((picture[top:bottom, left:right], np.uint8(255) * region.image_filled.astype(np.uint8)))
    return tuple(found)


@cache
def horse() -> Array:
    """The silhouette of a horse, 255 inside."""
    import skimage.data

    inside = ~skimage.data.horse()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    silhouette: Array = np.uint8(255) * inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8)
    return silhouette


def crop(photograph: Array, size: int, rng: np.random.Generator, smallest: int = 64) -> Array:
    """A random square of a photograph, maybe mirrored, as (size, size, 3)."""
    from PIL import Image

    height, width = photograph.shape[:2]
    side = int(rng.integers(smallest, min(height, width) + 1))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    square = photograph[top : top + side, left : left + side]
    if rng.integers(2):
        square = square[:, ::-1]
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))


def laid(
    picture: Array, canvas: int, centre: tuple[int, int], size: float, degrees: int = 0, *, shear: float = 0.0
) -> Array:
    """A gray picture on an empty square canvas, its longer side `size` pixels, turned about `centre` (x, y)."""
    from PIL import Image

    height, width = picture.shape
    scale = max(height, width) / size
    cos, sin = math.cos(math.radians(degrees)) * scale, math.sin(math.radians(degrees)) * scale
    a, b, c, d = cos, sin + shear * cos, -sin, cos - shear * sin
    # Rounded, so that the last bit of a machine's sine changes no pixel.
    a, b, c, d = (round(value * 4096) / 4096 for value in (a, b, c, d))
    x, y = centre
    placing = (a, b, width / 2 - a * x - b * y, c, d, height / 2 - c * x - d * y)
    return np.asarray(
        Image.fromarray(picture).transform((canvas, canvas), Image.Transform.AFFINE, placing, Image.Resampling.BILINEAR)
    )


def outline(kind: str, canvas: int, centre: tuple[int, int], radius: float, degrees: int) -> Array:
    """One of `SHAPES`, 255 inside and smooth at its edge, on an empty square canvas; `radius` of its round hull."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", (canvas * _FINE, canvas * _FINE))
    draw = ImageDraw.Draw(picture)

    def polygon(corners: int, radii: tuple[float, ...], fill: int = 255) -> None:
        points = []
        for corner in range(corners):
            angle = math.radians(degrees + 360 * corner / corners)
            reach = radius * radii[corner % len(radii)] * _FINE
            points.append(
                (
                    round(centre[0] * _FINE + reach * math.cos(angle)),
                    round(centre[1] * _FINE + reach * math.sin(angle)),
                )
            )
        draw.polygon(points, fill=fill)

    if kind in ("disc", "ring"):
        polygon(60, (1.0,))
        if kind == "ring":
            polygon(60, (0.55,), fill=0)
    elif kind == "star":
        polygon(10, (1.0, 0.42))
    else:
        polygon({"square": 4, "triangle": 3}[kind], (1.0,))
    return np.asarray(picture.reduce(_FINE))


def blended(picture: Array, over: Array, alpha: Array) -> Array:
    """`over` on `picture`, both (H, W, 3), where `alpha` (H, W) says, in whole numbers."""
    weight = alpha.astype(np.int32)[..., None]
    mixed = picture.astype(np.int32) * (255 - weight) + over.astype(np.int32) * weight
    rounded: Array = ((mixed + 127) // 255).astype(np.uint8)
    return rounded


def grained(picture: Array, rng: np.random.Generator, grain: int) -> Array:
    """The picture with noise of up to `grain` steps of gray."""
    noise = rng.integers(-grain, grain + 1, picture.shape)
    noisy: Array = np.clip(picture.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    return noisy


def contrast(picture: Array, centre: tuple[int, int], rng: np.random.Generator) -> Array:
    """A colour unlike what is around `centre` (x, y): the most distant of six random ones."""
    x, y = centre
    around = picture[max(y - 10, 0) : y + 11, max(x - 10, 0) : x + 11].reshape(-1, 3)
    mean = around.astype(np.int64).sum(0) // len(around)
    colours = rng.integers(0, 256, (6, 3))
    farthest: Array = colours[np.abs(colours - mean).sum(1).argmax()].astype(np.uint8)
    return farthest
