"""Weights from outside: read as data, never as code, and fitted to a module whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.errors import EdgeAttnError, InputError, MissingDependencyError, UnsupportedError, one_line
from edgeattn.tensors import format_shape

if TYPE_CHECKING:
    from torch import nn

PREFIXES = ("module.", "_orig_mod.", "model.")
WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill a module from safetensors or from a checkpoint, through the usual wrappers and prefixes, all of it.

    A checkpoint is read with `weights_only=True`, which is safe against hostile pickles from torch 2.10 on.

    Raises:
        InputError: the file is refused, or its tensors are not the module's; names the first few.
        UnsupportedError: torch is too old, or safetensors is not installed.
    """
    state = _read_weights(path)
    for key in WRAPPERS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
    own = module.state_dict()
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state) and not all(name in own for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    try:
        module.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError, AttributeError) as err:
        raise InputError(f"{path} does not fit {type(module).__name__}: {_misfit(own, state) or reason(err)}") from err


def reason(err: BaseException) -> str:
    """An exception of another library on one line: its type and the first line that says something."""
    text = next((line.strip() for line in str(err).splitlines() if line.strip()), "")
    text = re.sub(r"/onnxruntime_src/.*?\) ", "", text)  # where in ONNX Runtime's C++ it was raised
    return f"{type(err).__name__}: {one_line(text)}" if text else type(err).__name__


def _misfit(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    def shape(tensor: Any) -> str:
        return format_shape(getattr(tensor, "shape", None))

    lists = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} ({shape(state[name])}, expected {shape(own[name])})"
            for name in own
            if name in state and shape(own[name]) != shape(state[name])
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''}"
        for what, names in lists.items()
        if names
    )


def _read_weights(path: Path) -> Mapping[str, Any]:
    import torch

    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if torch.__version__ < "2.10":
            raise UnsupportedError(
                f"reading {path.name} safely needs torch 2.10 or newer, this is {torch.__version__}; use safetensors"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except EdgeAttnError:
        raise
    except Exception as err:
        raise InputError(f"{path} is refused as weights: {_why(err)}; save module.state_dict() as safetensors") from err
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a state dict; save module.state_dict()")
    return state


def _why(err: Exception) -> str:
    # PyTorch's own message recommends loading it unsafely.
    found = re.search(r"GLOBAL (\S+)", str(err))
    if found:
        return f"it holds {found[1]}, which is code and not data"
    return "it is no checkpoint of tensors" if "weights_only" in str(err) else reason(err)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as err:
        raise MissingDependencyError("safetensors is not installed; pip install 'edgeattn[torch]'") from err
    loaded: Mapping[str, Any] = load_file(path)
    return loaded
