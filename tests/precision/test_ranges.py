"""The table of ranges and the parts it is merged from, as files that people edit and machines share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeattn.calibrate.observers import merge, nothing, observe
from edgeattn.calibrate.shards import Partial, finish, load_partial, merge_shards, save_partial
from edgeattn.errors import InputError, UsageError
from edgeattn.images import Recipe, plain_recipe
from edgeattn.precision.ranges import Range, Ranges, load_ranges, require_fresh, save_ranges
from tests.graphs import self_attention

RECIPE = Recipe((8, 6), mean=(0.1, 0.2, 0.3))
TABLE = Ranges(
    method="mse",
    samples=3,
    tensors={"a/b": Range(-1.5, 2.0, -1.0, 1.0), "x": Range(0.0, 0.0, 0.0, 0.0)},
    bad=("photo.png is damaged",),
    graph_sha256="0" * 64,
    data_sha256="1" * 64,
    recipe=plain_recipe(RECIPE),
    settings={"limit": None},
    version="0.1.0",
)
NUMBERS = st.floats(-1e30, 1e30, allow_nan=False)
RANGES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS).map(
    lambda four: Range(min(four[:2]), max(four[:2]), min(four[2:]), max(four[2:]))
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(st.characters(exclude_categories=()), min_size=1), RANGES))
def test_a_table_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Range]) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges.json"
    save_ranges(replace(TABLE, tensors=tensors), path)
    assert load_ranges(path) == replace(TABLE, tensors=tensors)


def test_a_table_has_a_line_for_each_tensor_in_order(tmp_path: Path) -> None:
    save_ranges(replace(TABLE, tensors=dict(reversed(TABLE.tensors.items()))), tmp_path / "r.json")
    lines = (tmp_path / "r.json").read_text().splitlines()
    assert lines[-5:-2] == [
        ' "tensors": {',
        '  "a/b": {"min": -1.5, "max": 2.0, "low": -1.0, "high": 1.0},',
        '  "x": {"min": 0.0, "max": 0.0, "low": 0.0, "high": 0.0}',
    ]


def edited(path: Path, **changes: Any) -> Path:
    save_ranges(TABLE, path)
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format '2'; this edgeattn reads format 1; calibrate again"),
        ({"method": ...}, "field 'method' is 'None'; expected str"),
        ({"samples": True}, "field 'samples' is 'True'; expected int"),
        ({"metod": "mse"}, "field 'metod' is unknown; did you mean 'method'"),
        ({"tensors": []}, "expected an object with tensors"),
        ({"tensors": {"x": {"min": 0, "max": 1, "low": 0}}}, "tensor 'x' is .* expected finite min, max, low, high"),
        ({"tensors": {"x": {"min": 0, "max": 1, "low": 0, "high": float("nan")}}}, "expected finite"),
        ({"tensors": {"x": {"min": 0, "max": 1, "low": 0, "high": "1"}}}, "expected finite"),
        ({"tensors": {"x": {"min": 0, "max": 1, "low": 0, "high": True}}}, "expected finite"),
        ({"tensors": {"x": {"min": 2, "max": 1, "low": 0, "high": 1}}}, "tensor 'x' has an empty range"),
        ({"tensors": {"x": 5}}, "tensor 'x' is '5'; expected finite"),
        ({"tensors": {"x": {"min": 0, "max": 10**400, "low": 0, "high": 1}}}, "expected finite"),
        ({"shard": [1, 2]}, "is one part of a calibration: put all together with edgeattn calibrate --merge"),
        ({"recipe": {**plain_recipe(RECIPE), "scale": 1.0}}, "the recipe was edited after calibration"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_edited_table_is_checked_in_every_field(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = edited(tmp_path / "r.json", **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_ranges(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\0", "[" * 100000], ids=["empty", "list", "cut", "zero", "deep"])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match="no table of ranges"):
        load_ranges(tmp_path / "r.json")
    with pytest.raises(InputError, match="no part of a calibration"):
        load_partial(tmp_path / "r.json")


def test_a_whole_table_is_no_part(tmp_path: Path) -> None:
    save_ranges(TABLE, tmp_path / "r.json")
    with pytest.raises(InputError, match="no part of a calibration but a whole table"):
        load_partial(tmp_path / "r.json")


def test_stale_ranges_are_refused_and_say_in_what() -> None:
    graph = self_attention().graph
    fresh = replace(TABLE, graph_sha256=graph.sha256)
    require_fresh(fresh, graph)
    require_fresh(fresh, graph, RECIPE)
    with pytest.raises(InputError, match=r"stale: .* observed on 000000000000, this model is .* calibrate again"):
        require_fresh(TABLE, graph)
    with pytest.raises(InputError, match=r"stale: another recipe was followed \(fill 114, now 0\)"):
        require_fresh(fresh, graph, replace(RECIPE, fill=0))


# Parts


def part(values: Any, number: int, count: int, method: str = "entropy", bad: tuple[str, ...] = ()) -> Partial:
    about = {
        **{name: getattr(TABLE, name) for name in ("graph_sha256", "data_sha256", "recipe", "settings", "version")},
        "method": method,
        "files": 10,
        "derived": {
            "half": ["x", 0.5, 0.0, 0.0, False],
            "turned": ["x", -2.0, -1.0, 3.0, False],
            "gated": ["x", 1.0, 0.0, 0.0, True],
        },
    }
    seen = nothing(1, method != "minmax")
    for sample in values:
        seen = merge(seen, observe({"x": np.asarray(sample, np.float32)}, {"x": None}, 0, seen))
    return Partial(about, ("x",), seen, (number, count), len(values), len(values), bad)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9), min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from(["minmax", "entropy", "percentile", "mse"]),
)
def test_shards_give_what_one_run_gives(
    tmp_path_factory: pytest.TempPathFactory, samples: list[list[float]], count: int, method: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    paths = [folder / f"{number}.json" for number in range(1, count + 1)]
    for number, path in enumerate(paths, 1):
        save_partial(part(samples[number - 1 :: count], number, count, method), path)
    whole = finish(part(samples, 1, 1, method))
    assert merge_shards(paths) == whole
    assert merge_shards(paths[::-1]) == whole


def test_a_derived_tensor_follows_the_one_it_is_of() -> None:
    table = finish(part([[-1.0, 4.0]], 1, 1, "minmax")).tensors
    assert table["half"] == Range(-0.5, 2.0, -0.5, 2.0)
    assert table["turned"] == Range(-9.0, 5.0, -9.0, 5.0)
    assert table["gated"] == Range(-1.0, 4.0, -1.0, 4.0)
    assert finish(part([[1.0, 4.0]], 1, 1, "minmax")).tensors["gated"] == Range(0.0, 4.0, 0.0, 4.0)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first, second, other = part([[1.0]], 1, 2), part([[2.0]], 2, 2), part([[2.0]], 2, 2, "mse")
    for name, item in (("first", first), ("second", second), ("other", other)):
        save_partial(item, tmp_path / name)
    with pytest.raises(InputError, match=r"other is of another calibration than .*first: method differ"):
        merge_shards([tmp_path / "first", tmp_path / "other"])
    with pytest.raises(UsageError, match="shards 2 of 2 are here; expected each of 1 to 2 once"):
        merge_shards([tmp_path / "second"])
    with pytest.raises(UsageError, match="shards 1, 1, 2 of 2"):
        merge_shards([tmp_path / "first", tmp_path / "second", tmp_path / "first"])


def test_too_many_bad_files_are_refused_where_all_are_counted() -> None:
    assert finish(part([[1.0]], 1, 1, bad=("one",))).bad == ("one",)
    with pytest.raises(InputError, match="2 of 10 files in the calibration data cannot be used"):
        finish(part([[1.0]], 1, 1, bad=("one", "two")))


@pytest.mark.parametrize("change", [{}, {"part_format": 1}, {"part_format": 3}], ids=str)
def test_a_part_of_another_format_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    save_partial(part([[1.0]], 1, 1), tmp_path / "p")
    document = json.loads((tmp_path / "p").read_text())
    del document["part_format"]
    (tmp_path / "p").write_text(json.dumps({**document, **change}))
    with pytest.raises(InputError, match=r"is a part of format '[13]'; this edgeattn reads 2; make it again"):
        merge_shards([tmp_path / "p"])


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    save_partial(part([[1.0]], 1, 1), tmp_path / "p")
    document = json.loads((tmp_path / "p").read_text())
    for change in ({"tensors": {"x": [0, 1]}}, {"done": "x"}, {"shard": 3}, {"about": None}, {"tensors": {}}):
        (tmp_path / "p").write_text(json.dumps({**document, **change}))
        with pytest.raises(InputError, match="no part of a calibration"):
            load_partial(tmp_path / "p")
