"""The weights that ship with the zoo's models, and the decorator that gives a model its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgeattn.errors import InputError
from edgeattn.model import example_inputs
from edgeattn.weights import load_weights

if TYPE_CHECKING:
    from torch import nn

    M = TypeVar("M", bound=nn.Module)

FOLDER = Path(__file__).with_name("weights")


def ready(*inputs: str, weights: str | None = None) -> Callable[[Callable[[], M]], Callable[..., M]]:
    """Turn a function that makes a module into the zoo's factory of it: `factory(pretrained=True)`, in eval mode.

    Args:
        inputs: the inputs it was trained for, as `--input` takes them.
        weights: whose weights it has; its own without.
    """

    def decorate(make: Callable[[], M]) -> Callable[..., M]:
        def factory(pretrained: bool = True) -> M:
            module = make().eval()
            return load_pretrained(module, weights or make.__name__) if pretrained else module

        functools.update_wrapper(factory, make)
        del factory.__wrapped__  # type: ignore[attr-defined]  # else its signature would hide `pretrained`
        return example_inputs(*inputs)(factory)

    return decorate


def load_pretrained(module: M, name: str) -> M:
    """Fill a module with the weights of that name and return it.

    Raises:
        InputError: the weights are missing, damaged or of another module.
        MissingDependencyError: safetensors is not installed.
    """
    try:
        load_weights(module, FOLDER / f"{name}.safetensors")
    except InputError as err:
        raise InputError(f"{err}; scripts/train_zoo {name} makes it again") from err
    return module
