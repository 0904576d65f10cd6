from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeattn.errors import InputError
from edgeattn.weights import load_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(2, 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_a_checkpoint_is_loaded_through_its_wrappers(tmp_path: Path, wrap) -> None:
    given, module = network(), network()
    torch.save(wrap(given.state_dict()), tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt")
    assert all(
        torch.equal(a, b) for a, b in zip(given.state_dict().values(), module.state_dict().values(), strict=True)
    )


def test_safetensors_are_loaded(tmp_path: Path) -> None:
    given, module = network(), network()
    save_file(given.state_dict(), tmp_path / "w.safetensors")
    load_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(given[0].weight, module[0].weight)


def test_a_module_whose_names_begin_with_a_prefix_keeps_them(tmp_path: Path) -> None:
    def wrapped() -> nn.Module:
        return nn.ModuleDict({"model": nn.Linear(2, 2)})

    given, module = wrapped(), wrapped()
    torch.save(given.state_dict(), tmp_path / "w.pt")
    load_weights(module, tmp_path / "w.pt")
    assert torch.equal(given["model"].weight, module["model"].weight)


def test_every_misfit_is_named_on_one_line(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.running_mean"], state["1.running_var"]
    state["0.weight"] = torch.zeros(4, 5, 1, 1)
    state.update({f"extra{index}": torch.zeros(1) for index in range(9)})
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_weights(network(), tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "2 missing: 1.running_mean, 1.running_var" in text
    assert "9 unexpected: extra0, extra1, extra2, ..." in text
    assert "0.weight (4x5x1x1, expected 4x3x1x1)" in text
    assert "\n" not in text


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"refused as weights: it holds posix.mkdir") as caught:
        load_weights(network(), tmp_path / "w.pt")
    assert not (tmp_path / "exploded").exists()
    assert "\n" not in str(caught.value)


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"holds torch.nn.modules.container.Sequential, .*save module.state_dict\(\)"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"garbage" * 9, b"\x80\x02}q\x00"], ids=["empty", "garbage", "cut pickle"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match="is refused as weights") as caught:
        load_weights(network(), path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_there_or_no_dict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_weights(network(), tmp_path / "w.pt")
    torch.save([torch.zeros(1)], tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds a list, expected a state dict"):
        load_weights(network(), tmp_path / "w.pt")
