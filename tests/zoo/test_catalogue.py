from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path

import pytest

from edgeattn import zoo
from edgeattn.cli import main
from edgeattn.errors import InputError, UsageError
from edgeattn.model import load_model
from edgeattn.zoo import MODELS, Entry
from edgeattn.zoo.catalogue import list_models, show_model
from edgeattn.zoo.data import DATASETS
from tests.test_house import HEAVY, loaded_after

entries = pytest.mark.parametrize("entry", MODELS.values(), ids=MODELS)


# The table


@entries
def test_an_entry_names_a_task_a_data_set_and_a_documented_factory(entry: Entry) -> None:
    assert entry.metric
    assert entry.data in DATASETS
    factory = zoo.factory(entry.name)
    assert factory.__name__ == entry.name
    assert factory.__doc__
    assert factory.example_inputs  # type: ignore[attr-defined]
    assert not entry.weights or MODELS[entry.weights].weights == ""


def test_the_table_is_read_without_torch() -> None:
    assert not loaded_after("import edgeattn.zoo.catalogue as c; c.list_models().to_json()") & (HEAVY - {"PIL"})


def test_a_model_is_an_attribute_of_the_zoo_and_an_unknown_one_is_none() -> None:
    assert set(MODELS) <= set(dir(zoo))
    assert zoo.__getattr__("cbam_resnet_digits") is zoo.factory("cbam_resnet_digits")
    with pytest.raises(AttributeError, match="resnet5000"):
        zoo.resnet5000  # noqa: B018
    with pytest.raises(UsageError, match="did you mean 'cbam_resnet_digits'"):
        zoo.find("cbam_resnet_digit")


@entries
def test_a_file_of_the_same_name_hides_no_model(entry: Entry) -> None:
    importlib.import_module(f"edgeattn.zoo.{entry.home}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.weights, "load_pretrained", lambda module, name: module)
        assert load_model(f"zoo:{entry.name}").source == f"zoo:{entry.name}"


def test_a_damaged_record_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    entry = MODELS["cbam_resnet_digits"]
    assert entry.record() == {}
    assert entry.size_bytes is None
    (tmp_path / "cbam_resnet_digits.json").write_text("{")
    with pytest.raises(InputError, match=r"cbam_resnet_digits\.json"):
        entry.record()


# Reports


def test_the_list_has_exactly_the_published_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["models"]
    assert [row["name"] for row in document["models"]] == list(MODELS)
    for row in document["models"]:
        assert list(row) == ["name", "task", "op", "metric", "value", "size_bytes"]
    digits = next(row for row in document["models"] if row["name"] == "cbam_resnet_digits")
    assert digits["op"] == "CBAM"
    assert digits["metric"] == "top1"
    assert digits["value"] == MODELS["cbam_resnet_digits"].record()["metrics"]["top1"]
    assert 0.98 < digits["value"] <= 1
    assert digits["size_bytes"] == (zoo.FOLDER / "cbam_resnet_digits.safetensors").stat().st_size


def test_the_list_says_what_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert list_models().to_json()["models"][0]["value"] is None
    assert "not trained" in str(list_models())


def test_a_page_shows_inputs_record_and_commands_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    page = show_model("cbam_resnet_digits")
    assert "x: float32 1x1x32x32" in str(page)
    assert str(page.record["weights_sha256"]) in str(page)
    plain = json.loads(json.dumps(page.to_json()))
    assert plain["inputs"][0]["shape"] == [1, 1, 32, 32]
    for command in page.commands:
        program, name, *words = shlex.split(command)
        assert program == "edgeattn"
        with pytest.raises(SystemExit) as left:
            main([name, *words, "--help"])
        assert left.value.code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show"], "needs a name"),
        (["data", "digits"], "add -o DIR"),
        (["show", "atention_unet"], "did you mean 'attention_unet'"),
        (["data", "cluterred", "-o", "x"], "did you mean 'cluttered'"),
        (["list", "unet"], "edgeattn zoo show unet"),
        (["show", "unet", "-o", "x"], "zoo show writes no samples"),
    ],
)
def test_a_call_that_cannot_be_meant_is_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["zoo", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_data_are_written_where_they_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["zoo", "data", "cluttered", "-o", str(tmp_path / "made"), "--split", "train", "--count", "7", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"name": "cluttered", "folder": str(tmp_path / "made"), "split": "train", "samples": 7}
    assert len(list((tmp_path / "made").rglob("*.png"))) == 7


def test_data_are_not_mixed_with_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["zoo", "data", "digits", "-o", str(tmp_path)]
    assert main([*words, "--count", "3"]) == 0
    assert main([*words, "--count", "2"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("*.png"))) == 3
