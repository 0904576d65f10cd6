from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from edgeattn.errors import InputError
from edgeattn.images import (
    Recipe,
    place_boxes,
    preprocess,
    read_image,
    read_mask,
    upright_size,
)

sides = st.sampled_from([1, 2, 3, 5, 13])


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def plain(size: tuple[int, int], **words: object) -> Recipe:
    return Recipe(size, scale=1.0, **words)  # type: ignore[arg-type]


# What a recipe computes


@settings(max_examples=50, deadline=None)
@given(pixels=arrays(np.uint8, st.tuples(sides, sides, st.just(3))), bgr=st.booleans(), nhwc=st.booleans())
def test_image_of_the_right_size_is_scaled_and_normalised_per_channel(
    pixels: np.ndarray, bgr: bool, nhwc: bool
) -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.4, 0.7)
    recipe = Recipe(
        pixels.shape[:2],
        color="bgr" if bgr else "rgb",
        mean=mean,
        std=std,
        layout="nhwc" if nhwc else "nchw",
    )
    ours = preprocess(Image.fromarray(pixels), recipe)
    channels = pixels[..., ::-1] if bgr else pixels
    expected = (channels.astype(np.float64) / 255 - mean) / std
    expected = expected if nhwc else expected.transpose(2, 0, 1)
    assert ours.dtype == np.float32
    assert ours.shape == recipe.shape
    assert ours.flags.c_contiguous
    assert np.abs(ours - expected).max() <= 4 * np.finfo(np.float32).eps * 5


@settings(max_examples=50, deadline=None)
@given(
    source=st.tuples(sides, sides),
    size=st.tuples(sides, sides),
    resize=st.sampled_from(["stretch", "crop", "letterbox"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
    color=st.sampled_from(["rgb", "gray"]),
)
def test_flat_image_stays_flat_whatever_the_recipe(
    source: tuple[int, int], size: tuple[int, int], resize: str, interpolation: str, color: str
) -> None:
    image = Image.new("RGB", source[::-1], (77, 77, 77))
    recipe = plain(size, resize=resize, interpolation=interpolation, color=color, fill=77)
    ours = preprocess(image, recipe)
    assert ours.shape == (1 if color == "gray" else 3, *size)
    assert np.all(ours == 77)


def test_bilinear_enlarging_agrees_with_torch() -> None:
    pixels = picture(8, 8, 1)
    ours = preprocess(Image.fromarray(pixels), plain((32, 32), color="gray"))
    x = torch.from_numpy(pixels).double()[None, None]
    theirs = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)[0].numpy()
    assert np.abs(ours - theirs).max() <= 1  # Pillow rounds to whole gray levels after each axis


def test_with_a_reducing_gap_whole_pixels_are_averaged_first() -> None:
    pixels = picture(48, 48, 1)
    blocks = torch.from_numpy(pixels).double().reshape(1, 1, 24, 2, 24, 2).mean((3, 5))  # of 4-fold, 2-fold is left
    theirs = torch.nn.functional.interpolate(blocks, (12, 12), mode="bilinear", antialias=True)[0].numpy()
    reduced = preprocess(Image.fromarray(pixels), plain((12, 12), color="gray", reducing_gap=2))
    assert np.abs(reduced - theirs).max() <= 1.5  # of three roundings
    whole = preprocess(Image.fromarray(pixels), plain((12, 12), color="gray"))
    assert np.abs(whole - theirs).max() > 3
    assert np.array_equal(whole, preprocess(Image.fromarray(pixels), plain((12, 12), color="gray", reducing_gap=3)))


def test_crop_keeps_the_middle_and_letterbox_keeps_all() -> None:
    pixels = np.zeros((2, 6), np.uint8)
    pixels[:, 2:4] = 200  # dark, bright, dark thirds
    image = Image.fromarray(pixels)
    cropped = preprocess(image, plain((2, 2), resize="crop", color="gray", interpolation="nearest"))
    assert np.all(cropped == 200)
    boxed = preprocess(image, plain((6, 6), resize="letterbox", color="gray", interpolation="nearest", fill=9))[0]
    assert np.array_equal(boxed[2:4], pixels)
    assert np.all(boxed[[0, 1, 4, 5]] == 9)


def test_letterbox_of_a_sliver_is_still_there() -> None:
    image = Image.new("L", (1, 1000), 255)
    assert preprocess(image, plain((8, 8), resize="letterbox", color="gray", fill=0)).sum() == 8 * 255


# What becomes of masks and boxes


def placed(mask: np.ndarray, recipe: Recipe, folder: Path) -> np.ndarray:
    Image.fromarray(mask).save(folder / "mask.png")
    return read_mask(folder / "mask.png", mask.shape[::-1], recipe)


@settings(max_examples=100, deadline=None)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_crop_cuts_as_pillow_does(source: tuple[int, int], size: tuple[int, int], interpolation: str) -> None:
    image = Image.fromarray(picture(*source))
    ours = preprocess(image, plain(size, resize="crop", interpolation=interpolation, layout="nhwc"))
    theirs = ImageOps.fit(image, size[::-1], Image.Resampling[interpolation.upper()])
    assert np.array_equal(ours, np.asarray(theirs))


@settings(max_examples=100, deadline=None)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.sampled_from(["stretch", "crop", "letterbox"]),
)
def test_a_mask_takes_the_way_of_its_image(
    source: tuple[int, int], size: tuple[int, int], resize: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pixels = np.random.default_rng(0).integers(0, 12, source, np.uint8)
    recipe = plain(size, resize=resize, color="gray", interpolation="nearest", fill=200, ignore=11)
    image = preprocess(Image.fromarray(pixels), recipe)[0]
    mask = placed(pixels, recipe, tmp_path_factory.getbasetemp())
    assert mask.dtype == np.int32
    assert np.array_equal(mask, np.where(np.isin(image, (11, 200)), -1, image))


@settings(max_examples=100, deadline=None)
@given(
    source=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    resize=st.sampled_from(["stretch", "crop", "letterbox"]),
    corners=st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7)),
)
def test_a_box_stays_around_what_it_was_around(
    source: tuple[int, int],
    size: tuple[int, int],
    resize: str,
    corners: tuple[int, int, int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    mask = np.zeros(source, np.uint8)
    mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    recipe = plain(size, resize=resize)
    rows, columns = np.nonzero(placed(mask, recipe, tmp_path_factory.getbasetemp()) == 1)
    found = place_boxes(np.array([[x1, y1, x2 + 1, y2 + 1, 3]]), source[::-1], recipe)
    if not rows.size:  # between the sampled points, or cut off: then the box is gone or thin
        assert not len(found) or min(found[0, 2:4] - found[0, :2]) <= 1
        return
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(found[0, :4] - drawn).max() <= 1  # the mask is whole pixels
    assert found[0, 4] == 3


def test_boxes_worked_by_hand() -> None:
    boxes = np.array([[0, 0, 40, 20, 1], [0, 0, 5, 20, 2], [8, 4, 12, 8, -3], [5, 5, 5, 9, 0]])

    def moved(resize: str, size: tuple[int, int]) -> list[list[float]]:
        found: list[list[float]] = place_boxes(boxes, (40, 20), plain(size, resize=resize)).tolist()
        return found

    assert moved("stretch", (40, 20)) == [[0, 0, 20, 40, 1], [0, 0, 2.5, 40, 2], [4, 8, 6, 16, -3]]
    assert moved("letterbox", (20, 20)) == [[0, 5, 20, 15, 1], [0, 5, 2.5, 15, 2], [4, 7, 6, 9, -3]]
    assert moved("crop", (10, 10)) == [[0, 0, 10, 10, 1], [0, 2, 1, 4, -3]]


@pytest.mark.parametrize(("mask", "expected"), [
    (Image.fromarray(np.array([[0, 65535, 300]], np.uint16)), [0, 65535, 300]),
    (Image.fromarray(np.array([[False, True, True]])), [0, 1, 1]),
], ids=["16 bits", "1 bit"])  # fmt: skip
def test_a_mask_of_any_depth_keeps_its_numbers(mask: Image.Image, expected: list[int], tmp_path: Path) -> None:
    mask.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (3, 1), plain((1, 3))).tolist() == [expected]


def test_a_mask_with_a_palette_holds_its_indices(tmp_path: Path) -> None:
    mask = Image.new("P", (2, 1))
    mask.putpalette([90, 20, 30, 40, 50, 60])
    mask.putpixel((1, 0), 1)
    mask.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", (2, 1), plain((1, 2))).tolist() == [[0, 1]]


def test_a_mask_of_colours_or_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "c.png")
    with pytest.raises(InputError, match=r"c\.png is a mask with pixels of kind RGB; expected one whole number"):
        read_mask(tmp_path / "c.png", (3, 2), plain((2, 3)))
    Image.new("L", (3, 2)).save(tmp_path / "s.png")
    with pytest.raises(InputError, match=r"s\.png is a mask of 3x2 pixels, its image has 2x3"):
        read_mask(tmp_path / "s.png", (2, 3), plain((2, 3)))


def test_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    for orientation, expected in ((1, (3, 2)), (3, (3, 2)), (6, (2, 3)), (8, (2, 3))):
        exif[0x0112] = orientation
        Image.fromarray(picture(2, 3)).save(tmp_path / "t.png", exif=exif)
        assert upright_size(read_image(tmp_path / "t.png")) == expected


# Modes


def test_sixteen_bits_are_rounded_to_eight_and_not_clipped() -> None:
    wide = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    ours = preprocess(Image.fromarray(wide), plain((1, 6), color="gray"))
    assert ours[0, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_sixteen_bit_png_is_read_as_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3), 65535, np.uint16)).save(tmp_path / "wide.png")
    assert np.all(preprocess(read_image(tmp_path / "wide.png"), plain((3, 3))) == 255)


def test_alpha_is_dropped_and_the_colour_under_it_kept() -> None:
    pixels = picture(3, 5, 4)
    ours = preprocess(Image.fromarray(pixels, "RGBA"), plain((3, 5), layout="nhwc"))
    assert np.array_equal(ours, pixels[..., :3])


def test_palette_with_transparency_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=bytes([0, 255]))
    ours = preprocess(read_image(tmp_path / "p.png"), plain((1, 2), layout="nhwc"))
    assert ours.tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert preprocess(image, plain((1, 1))).ravel().tolist() == [0, 255, 255]


def test_one_bit_becomes_black_and_white() -> None:
    assert preprocess(Image.new("1", (1, 1), 1), plain((1, 1))).ravel().tolist() == [255, 255, 255]


def test_gray_is_luma() -> None:
    ours = preprocess(Image.new("RGB", (1, 1), (255, 0, 0)), plain((1, 1), color="gray"))
    assert ours.item() == round(0.299 * 255)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    pixels = picture(2, 3)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    ours = preprocess(read_image(tmp_path / "turned.png"), plain((3, 2), layout="nhwc"))
    assert np.array_equal(ours, np.rot90(pixels, -1))


@pytest.mark.parametrize(("image", "reason"), [
    (Image.new("F", (2, 2)), "floating-point"),
    (Image.fromarray(np.full((2, 2), 70000, np.int32)), "beyond 16 bits"),
    (Image.fromarray(np.full((2, 2), -1, np.int32)), "beyond 16 bits"),
    (Image.new("LAB", (2, 2)), "no conversion from LAB"),
])  # fmt: skip
def test_mode_without_a_defined_range_is_refused(image: Image.Image, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        preprocess(image, plain((2, 2), color="gray"))


# Files


def png(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (9500, 9500), (60000, 60000)])
def test_bomb_is_refused_by_its_header(width: int, height: int, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(width, height, zlib.compress(b"")))
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def valid_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(16, 16)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("content", [
    b"", b"garbage", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", valid_png()[:100],
    png(4, 4, b"not deflated"), b"\xff\xd8\xff\xe0" + bytes(50),
], ids=["empty", "garbage", "postscript", "truncated", "bad-stream", "jpeg-header"])  # fmt: skip
def test_damaged_image_is_refused_on_one_line_with_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png") as caught:
        read_image(tmp_path / "bad.png")
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_flipped_bytes_give_an_image_or_a_refusal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(valid_png())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.png"
    path.write_bytes(content)
    try:
        x = preprocess(read_image(path), plain((4, 4)))
    except InputError:
        return
    assert x.shape == (3, 4, 4)


def test_missing_image_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such image"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot read"):
        read_image(tmp_path)
