from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.errors import InputError, UsageError
from edgeattn.images import Recipe, default_recipe, load_recipe, plain_recipe
from edgeattn.tensors import TensorSpec


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text)
    return path


def test_recipe_file_gives_every_field(tmp_path: Path) -> None:
    text = """
        [preprocess]
        size = [480, 640]
        resize = "letterbox"
        interpolation = "bicubic"
        color = "bgr"
        scale = 1
        mean = [103.5, 116, 123]
        std = [57, 57.1, 58]
        layout = "nhwc"
        fill = 0
        reducing_gap = 1.5
        [labels]
        ignore = 11
    """
    expected = Recipe(
        (480, 640), "letterbox", "bicubic", "bgr", 1, (103.5, 116, 123), (57, 57.1, 58), "nhwc", 0, 11, 1.5
    )
    assert load_recipe(write(tmp_path, text)) == expected


def test_files_that_hold_older_recipes_stay_fresh() -> None:
    """Calibration tables and folded graphs keep recipes; a field that came later changes none that does without it."""
    older = {
        "size": [8, 6], "resize": "stretch", "interpolation": "bilinear", "color": "rgb", "scale": 1 / 255,
        "mean": [], "std": [], "layout": "nchw", "fill": 114, "ignore": None,
    }  # fmt: skip
    assert plain_recipe(Recipe((8, 6))) == older
    assert plain_recipe(Recipe((8, 6), reducing_gap=2.0)) == {**older, "reducing_gap": 2.0}
    assert plain_recipe(None) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[preprocess]\nsise = [2, 2]\nsize = [2, 2]", "key 'sise' is unknown; did you mean 'size'"),
        ("[preproces]\nsize = [2, 2]", "table 'preproces' is unknown; did you mean 'preprocess'"),
        ("[preprocess]\nsize = [2, 2]\nqqq = 1", "known: size, resize"),
        ("[preprocess]\ncolor = 'rgb'", r"size = \[H, W\]"),
        ("", r"no \[preprocess\] table"),
        ("preprocess = 3", r"no \[preprocess\] table"),
        ("[preprocess]\nsize = 224", r"size is 224; expected \[H, W\]"),
        ("[preprocess]\nsize = [2.0, 2]", "expected .H, W."),
        ("[preprocess]\nsize = [true, 2]", "expected .H, W."),
        ("[preprocess]\nsize = [0, 2]", "expected .H, W."),
        ("[preprocess]\nsize = [99999999, 99999999]", "at most 64 million"),
        ("[preprocess]\nsize = [2, 2]\nresize = 'squash'", '"stretch" or "crop" or "letterbox"'),
        ("[preprocess]\nsize = [2, 2]\ncolor = ['rgb']", 'color is .*expected "rgb"'),
        ("[preprocess]\nsize = [2, 2]\nscale = '1/255'", "scale is '1/255'; expected a positive number"),
        ("[preprocess]\nsize = [2, 2]\nscale = nan", "positive number"),
        (f"[preprocess]\nsize = [2, 2]\nscale = 1{400 * '0'}", "positive number"),
        ("[preprocess]\nsize = [2, 2]\nscale = 1e39", "lead out of float32"),
        ("[preprocess]\nsize = [2, 2]\nscale = 1e30\nstd = [1, 1, 1e-30]", "lead out of float32"),
        ("[preprocess]\nsize = [2, 2]\nmean = 0.5", "mean is 0.5; expected a list"),
        ("[preprocess]\nsize = [2, 2]\nmean = [0.5]", "mean has 1 numbers, color 'rgb' has 3"),
        ("[preprocess]\nsize = [2, 2]\nstd = [1, 0, 1]", "list of positive numbers"),
        ("[preprocess]\nsize = [2, 2]\nfill = 256", "0 to 255"),
        ("[preprocess]\nsize = [2, 2]\nreducing_gap = 0.5", "reducing_gap is 0.5; expected a number of at least 1"),
        ("[preprocess]\nsize = [2, 2]\nreducing_gap = 2\ninterpolation = 'nearest'", "leave reducing_gap out"),
        ("[preprocess]\nsize = [2, 2]\nignore = 11", "key 'ignore' is unknown"),
        ("[preprocess]\nsize = [2, 2]\n[labels]\nignored = 11", "key 'ignored' is unknown; did you mean 'ignore'"),
        ("[preprocess]\nsize = [2, 2]\n[labels]\nignore = -1", "ignore is -1; expected a whole number"),
        ("labels = 11\n[preprocess]\nsize = [2, 2]", r"no \[labels\] table, but a value of that name"),
        ("[preprocess\n", "is not TOML"),
        ("\x00", "is not TOML"),
    ],
)
def test_recipe_file_with_a_mistake_is_refused_in_words(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "r.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_or_binary_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not TOML"):
        load_recipe(tmp_path / "b.toml")


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (("batch", 3, 7, 5), "float32", Recipe((7, 5))),
        ((1, 1, 7, 5), "float16", Recipe((7, 5), color="gray")),
        (("n", 7, 5, 3), "uint8", Recipe((7, 5), scale=1.0, layout="nhwc")),
        ((1, 7, 5, 1), "float32", Recipe((7, 5), color="gray", layout="nhwc")),
        ((1, 3, 5, 3), "float32", Recipe((5, 3))),
    ],
)
def test_default_recipe_follows_the_input(shape: tuple[int | str, ...], dtype: str, expected: Recipe) -> None:
    assert default_recipe(TensorSpec("x", dtype, shape)) == expected


@pytest.mark.parametrize("shape", [None, (1, 3), (1, 3, "h", 5), (1, 7, 5, 4), (1, "c", 5, 5), (1, 3, 2, 5, 5)])
def test_default_recipe_of_what_is_no_image_is_refused(shape: tuple[int | str, ...] | None) -> None:
    with pytest.raises(UsageError, match="--recipe"):
        default_recipe(TensorSpec("x", "float32", shape))
