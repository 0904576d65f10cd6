from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeattn.errors import InputError
from edgeattn.zoo import weights
from edgeattn.zoo.weights import ready


@ready("1x3")
def tiny() -> nn.Linear:
    """A line of three.

    Further words.
    """
    return nn.Linear(3, 2)


@ready("1x3", weights="tiny")
def same() -> nn.Sequential:
    """The same weights elsewhere."""
    return nn.Linear(3, 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return tmp_path


def test_a_factory_loads_its_own_weights_or_those_of_another(folder: Path) -> None:
    state = {"weight": torch.rand(2, 3).half(), "bias": torch.rand(2).half()}
    save_file(state, folder / "tiny.safetensors")
    for factory in (tiny, same):
        model = factory()
        assert torch.equal(model.weight, state["weight"].float())
        assert model.weight.dtype == torch.float32


def test_without_weights_a_factory_is_random_and_in_eval_mode(folder: Path) -> None:
    first, second = tiny(pretrained=False), tiny(pretrained=False)
    assert not first.training
    assert not torch.equal(first.weight, second.weight)


def test_a_factory_keeps_its_name_and_words_and_says_what_it_takes() -> None:
    assert tiny.__name__ == "tiny"
    assert tiny.__doc__.startswith("A line of three.")
    assert list(inspect.signature(tiny).parameters) == ["pretrained"]
    assert tiny.example_inputs == ("1x3",)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99], ids=["missing", "empty", "garbage"])
def test_bad_weights_are_refused_with_their_path(content: bytes | None, folder: Path) -> None:
    if content is not None:
        (folder / "tiny.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"tiny\.safetensors.*scripts/train_zoo tiny") as caught:
        tiny()
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, folder / "tiny.safetensors")
    with pytest.raises(InputError, match="does not fit Linear"):
        tiny()
