from __future__ import annotations

import itertools
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeattn import data
from edgeattn.data import Recipe, Sample, batches, open_data, read_npz, spread
from edgeattn.errors import InputError, UsageError
from edgeattn.tensors import TensorSpec, random_feeds

GRAY = TensorSpec("x", "float32", ("batch", 1, 2, 2))
PAIR = [TensorSpec("a", "float32", ("n", 3)), TensorSpec("b", "int64", (1, "k"))]


def draw(path: Path, level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2), level).save(path)


def level(sample: Sample) -> int:
    return round(float(sample.feeds["x"].mean()) * 255)


def save(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


# What a folder may look like


def test_loose_images_come_sorted_and_without_labels(tmp_path: Path) -> None:
    for number, name in enumerate(["b.png", "a.jpg", "c.PNG", ".hidden.png"]):
        draw(tmp_path / name, 40 * number)
    (tmp_path / "notes.txt").write_text("not an image")
    samples = list(open_data(tmp_path, [GRAY]))
    assert [(sample.name, sample.label, level(sample)) for sample in samples] == [
        ("a.jpg", None, 40),
        ("b.png", None, 0),
        ("c.PNG", None, 80),
    ]
    assert samples[0].feeds["x"].shape == (1, 1, 2, 2)


def test_class_folders_are_numbered_by_sorted_name(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/deep/9.png", "cat/2.png"):
        draw(tmp_path / name)
    samples = [(sample.name, sample.label) for sample in open_data(tmp_path, [GRAY])]
    assert samples == [("cat/2.png", 0), ("cat/deep/9.png", 0), ("dog/1.png", 1)]


def test_class_folders_named_by_numbers_are_those_classes(tmp_path: Path) -> None:
    for name in ("7/a.png", "10/a.png", "03/a.png"):
        draw(tmp_path / name)
    assert {sample.name: sample.label for sample in open_data(tmp_path, [GRAY])} == {
        "03/a.png": 3,
        "10/a.png": 10,
        "7/a.png": 7,
    }


@pytest.mark.parametrize(("rows", "expected"), [
    ("file,label\nz.png,5\nsub/y.png,0\n", {"sub/y.png": 0, "z.png": 5}),
    ("label,file\nowl,z.png\nape,sub/y.png\n", {"sub/y.png": 0, "z.png": 1}),
    ("\ufefffile,label\r\nz.png, 5\r\n", {"z.png": 5}),
], ids=["numbers", "names", "spreadsheet"])  # fmt: skip
def test_table_names_files_and_labels(rows: str, expected: dict[str, int], tmp_path: Path) -> None:
    draw(tmp_path / "z.png")
    draw(tmp_path / "sub/y.png")
    (tmp_path / "labels.csv").write_text(rows, newline="")
    assert {sample.name: sample.label for sample in open_data(tmp_path, [GRAY])} == expected


def test_arrays_feed_several_inputs_by_name(tmp_path: Path) -> None:
    a, b = np.ones((1, 3), np.float32), np.arange(4)[None]
    save(tmp_path / "s.npz", b=b, a=a, label=np.array(6))
    (sample,) = open_data(tmp_path, PAIR)
    assert sample.label == 6
    assert np.array_equal(sample.feeds["a"], a)
    assert np.array_equal(sample.feeds["b"], b)


@pytest.mark.parametrize(("label", "expected"), [
    (np.array([[7]]), 7),
    (np.array(True), 1),
    (np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3)),
    (np.arange(6, dtype=np.uint8).reshape(1, 2, 3), np.arange(6).reshape(2, 3)),
    (np.eye(3, dtype=bool), np.eye(3)),
    (np.arange(4), np.arange(4)),
    (np.ones((3, 5), np.float32), np.ones((3, 5))),
    (np.ones((1, 3, 5), np.float16), np.ones((3, 5))),
    (np.zeros((0, 5)), np.zeros((0, 5))),
])  # fmt: skip
def test_arrays_bring_labels_of_any_task(label: np.ndarray, expected: int | np.ndarray, tmp_path: Path) -> None:
    save(tmp_path / "s.npz", x=np.zeros((1, 1, 2, 2), np.float32), label=label)
    (sample,) = open_data(tmp_path, [GRAY])
    if isinstance(expected, int):
        assert sample.label == expected
        assert type(sample.label) is int
    else:
        assert isinstance(sample.label, np.ndarray)
        assert sample.label.dtype.kind == ("f" if label.dtype.kind == "f" else "i")
        assert np.array_equal(sample.label, expected)


def test_some_of_many_samples_are_from_all_over_the_folder(tmp_path: Path) -> None:
    for name in ("cat", "dog", "eel"):
        (tmp_path / name).mkdir()
        for number in range(10):
            np.savez(tmp_path / name / f"{number}.npz", x=np.zeros((1, 2), np.float32))
    data = open_data(tmp_path, [TensorSpec("x", "float32", (1, 2))])
    for _ in range(2):
        assert [sample.label for sample in spread(data, 6)] == [0, 0, 1, 1, 2, 2]
    assert len(list(spread(data, 99))) == 30
    assert len(list(spread(iter(data), 6))) == 6


def test_a_single_file_is_a_folder_of_one(tmp_path: Path) -> None:
    draw(tmp_path / "one.png", 51)
    draw(tmp_path / "two.png")
    (sample,) = open_data(tmp_path / "one.png", [GRAY])
    assert (sample.name, level(sample)) == ("one.png", 51)


def test_samples_are_read_when_asked_for_and_again_on_the_next_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        draw(tmp_path / f"{number}.png")
    seen: list[str] = []
    read = data.read_image
    monkeypatch.setattr(data, "read_image", lambda path: seen.append(path.name) or read(path))
    dataset = open_data(tmp_path, [GRAY])
    assert len(dataset) == 5
    assert not seen
    next(iter(dataset))
    assert seen == ["0.png"]
    assert len(list(dataset)) == 5


# What a sample's input becomes


def test_recipe_and_input_type_shape_the_feed(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (300 % 256, 100, 200)).save(tmp_path / "x.png")
    spec = TensorSpec("im", "uint8", (1, 2, 2, 3))
    (sample,) = open_data(tmp_path, [spec], Recipe((2, 2), color="bgr", scale=2.0, layout="nhwc"))
    assert sample.feeds["im"].dtype == np.uint8
    assert sample.feeds["im"][0, 0, 0].tolist() == [255, 200, 88]  # 400 is clipped, not wrapped


def test_half_precision_input_gets_half_precision(tmp_path: Path) -> None:
    draw(tmp_path / "x.png", 255)
    (sample,) = open_data(tmp_path, [TensorSpec("x", "float16", (1, 1, 2, 2))])
    assert sample.feeds["x"].dtype == np.float16
    assert np.all(sample.feeds["x"] == 1)


# Refused before any work


def folder_of(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            draw(folder / name) if name.endswith(".png") else (folder / name).mkdir(parents=True, exist_ok=True)

    return make


def table(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        draw(folder / "a.png")
        (folder / "labels.csv").write_text(text)

    return make


def mixed(folder: Path) -> None:
    draw(folder / "a.png")
    save(folder / "b.npz", x=np.zeros(1))


@pytest.mark.parametrize(("make", "reason"), [
    (folder_of(), "holds no images"),
    (folder_of("sub"), "holds no images"),
    (folder_of("a.png", "sub/b.png"), "beside subfolders"),
    (folder_of("cat/b.png", "dog"), "dog holds no samples"),
    (mixed, "both images and .npz"),
    (table("file,label\n"), "holds no images"),
    (table("name,class\na.png,1\n"), "line 2: expected the columns file,label"),
    (table("file,label\na.png\n"), "line 2: expected the columns file,label"),
    (table("file,label\na.png,1\n../a.png,1\n"), "line 3: .* not an image or .npz file inside"),
    (table("file,label\n/etc/a.png,1\n"), "line 2: .* inside"),
    (table("file,label\nlabels.csv,1\n"), "line 2: .* not an image"),
    (table("file,label\na\0.png,1\n"), r"line 2: 'a\\x00.png' is not an image|line contains NUL"),  # csv's before 3.11
    (table("file,label\na.png,1\na.png,2\n"), "line 3: a.png has a second label, 2"),
])  # fmt: skip
def test_unusable_folder_is_refused_at_once(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=reason):
        open_data(tmp_path, [GRAY])


def test_table_cannot_lead_out_of_the_folder_by_a_link(tmp_path: Path) -> None:
    draw(tmp_path / "secret" / "a.png")
    inside = tmp_path / "data"
    inside.mkdir()
    os.symlink(tmp_path / "secret", inside / "link")
    (inside / "labels.csv").write_text("file,label\nlink/a.png,1\n")
    with pytest.raises(InputError, match="inside"):
        open_data(inside, [GRAY])


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the data in .*none"):
        open_data(tmp_path / "none", [GRAY])


def test_recipe_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"recipe does not fit the model.*expected shape 1x1x2x2, got 1x3x4x4"):
        open_data(tmp_path, [GRAY], Recipe((4, 4)))


def test_images_cannot_feed_two_inputs_and_arrays_take_no_recipe(tmp_path: Path) -> None:
    draw(tmp_path / "i" / "a.png")
    with pytest.raises(UsageError, match=r"2 inputs \(a, b\)"):
        open_data(tmp_path / "i", PAIR)
    save(tmp_path / "a.npz", x=np.zeros((1, 1, 2, 2), np.float32))
    with pytest.raises(UsageError, match="leave the recipe out"):
        open_data(tmp_path / "a.npz", [GRAY], Recipe((2, 2)))
    with pytest.raises(UsageError, match="no batch axis"):
        open_data(tmp_path / "a.npz", [TensorSpec("x", "float32", ())])


# Bad samples


def test_one_bad_image_is_skipped_and_named(tmp_path: Path) -> None:
    for number in range(9):
        draw(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"broken")
    dataset = open_data(tmp_path, [GRAY])
    for _ in range(2):  # a second pass counts anew
        assert [sample.name for sample in dataset] == [f"{n}.png" for n in range(9) if n != 4]
        assert len(dataset.bad) == 1
        assert "4.png" in dataset.bad[0]


@pytest.mark.parametrize(("good", "bad"), [(8, 2), (0, 2), (299, 4)])
def test_too_many_bad_images_are_an_error_at_the_end(good: int, bad: int, tmp_path: Path) -> None:
    for number in range(good):
        draw(tmp_path / f"good{number}.png")
    for number in range(bad):
        (tmp_path / f"zbad{number}.png").write_bytes(b"")
    seen = []
    with pytest.raises(InputError, match=rf"{bad} of {good + bad} files.*zbad0\.png"):
        seen.extend(open_data(tmp_path, [GRAY]))
    assert len(seen) == good


def test_a_single_bad_file_is_refused_for_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"^cannot read .*x\.png as an image"):
        list(open_data(tmp_path / "x.png", [GRAY]))


@pytest.mark.parametrize(("arrays", "reason"), [
    ({"x": np.full((1, 1, 2, 2), np.nan, np.float32)}, "input 'x' has values that are not finite"),
    ({"x": np.zeros((4, 1, 2, 2), np.float32)}, "expected shape 1x1x2x2, got 4x1x2x2"),
    ({"x": np.zeros((1, 1, 2, 2))}, "expected float32, got float64"),
    ({"y": np.zeros((1, 1, 2, 2), np.float32)}, "unknown input 'y'"),
    ({"x": np.zeros((1, 1, 2, 2), np.float32), "label": np.zeros((4, 4))}, r"label is float64 of shape \(4, 4\)"),
    ({"x": np.zeros((1, 1, 2, 2), np.float32), "label": np.array(0.5)}, "label is float64"),
    ({"x": np.zeros((1, 1, 2, 2), np.float32), "label": np.full((1, 5), np.inf)}, r"expected .* finite boxes"),
    ({"x": np.zeros((1, 1, 2, 2), np.float32), "label": np.array("cat")}, "expected whole numbers"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_bad_with_the_reason(
    arrays: dict[str, np.ndarray], reason: str, tmp_path: Path
) -> None:
    save(tmp_path / "s.npz", **arrays)
    with pytest.raises(InputError, match=rf"s\.npz: .*{reason}"):
        list(open_data(tmp_path, [GRAY]))


# .npz files


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_pickles_in_npz_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("p.npz", x=np.array([Bomb()], dtype=object))
    Path("raw.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("p.npz", "raw.npz"):
        with pytest.raises(InputError, match=name):
            read_npz(name)
    assert not Path("unpickled").exists()


def test_damaged_or_missing_npz_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "s.npz", x=np.zeros(100))
    whole = (tmp_path / "s.npz").read_bytes()
    for name, content in {"empty": b"", "cut": whole[:200], "npy": b"\x93NUMPY", "text": b"hello"}.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.npz"):
            read_npz(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="no such file"):
        read_npz(tmp_path / "none.npz")


def test_npz_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_NPZ_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2 << 20))
    with pytest.raises(InputError, match=r"unpacks to 2\.0 MiB"):
        read_npz(tmp_path / "b.npz")


def test_npz_that_claims_an_absurd_array_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1048576), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "h.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match=r"h\.npz"):
        read_npz(tmp_path / "h.npz")


# Batches


@settings(max_examples=50, deadline=None)
@given(
    widths=st.lists(st.sampled_from([1, 2]), max_size=12),
    size=st.integers(1, 5),
    unlabelled=st.sets(st.integers(0, 11)),
)
def test_batches_keep_every_sample_in_order(widths: list[int], size: int, unlabelled: set[int]) -> None:
    samples = [
        Sample(f"s{i}", {"x": np.full((1, width), i)}, None if i in unlabelled else i) for i, width in enumerate(widths)
    ]
    joined = list(batches(samples, size))
    assert [name for names, _, _ in joined for name in names] == [sample.name for sample in samples]
    for names, feeds, labels in joined:
        assert 1 <= len(names) == len(feeds["x"]) <= size
        numbers = [int(name[1:]) for name in names]
        assert feeds["x"][:, 0].tolist() == numbers
        assert labels == (None if unlabelled & set(numbers) else tuple(numbers))
    for (_, before, _), (_, after, _) in itertools.pairwise(joined):
        assert len(before["x"]) == size or before["x"].shape[1] != after["x"].shape[1]


def test_random_feeds_are_seeded_and_of_their_type() -> None:
    specs = [TensorSpec(f"i_{d}", d, ("n", 50)) for d in ("float32", "float16", "bfloat16", "int64", "uint8", "bool")]
    shapes = {spec.name: (2, 50) for spec in specs}
    first, again, other = (random_feeds(specs, shapes, seed) for seed in (1, 1, 2))
    for spec in specs:
        x = first[spec.name]
        assert x.shape == (2, 50)
        assert str(x.dtype) == spec.dtype
        assert np.array_equal(x, again[spec.name])
        assert not np.array_equal(x, other[spec.name])
        if "float" in spec.dtype:
            assert x.min() < -1
            assert x.max() > 1
        else:
            assert set(x.ravel().tolist()) == {0, 1}
