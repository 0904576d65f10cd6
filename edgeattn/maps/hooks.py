"""What PyTorch itself computes inside a model, by module: the maps of anybody's modules, unchanged.

A dispatch mode sees every operation below the modules' code, so a gate is found however it is written: as a module,
a function, or a part of `scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.export.exporter import fast_path_off
from edgeattn.model import Model

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeattn.tensors import Array, Feeds

SOFTMAX = ("_softmax", "_safe_softmax")
GATES = ("sigmoid", "hardsigmoid", "tanh")
CHOICES = ("topk", "argmax", "max")
KINDS = {
    "SoftmaxAttention": SOFTMAX, "AttentionPool": SOFTMAX, "SelectiveKernel": SOFTMAX,
    "ChannelGate": (*GATES, *SOFTMAX), "SpatialGate": GATES, "CBAM": GATES, "AttentionGate": GATES,
    "SoftMask": GATES,
    "HardAttention": CHOICES, "SpatialTransformer": ("grid_sampler_2d",),
}  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """One operation in a run: the module it ran in, its name, what it made, the axis of a softmax."""

    module: str
    operation: str
    array: Array
    axis: int | None = None


def seen_in(model: Model, feeds: Feeds) -> list[Seen]:
    """Run a model once and return what its softmaxes, gates, choices and samplers made, in order.

    Raises:
        InputError: the model refuses the feeds.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: list[Seen] = []
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the others never make the weights
        stack.enter_context(fast_path_off())  # it never makes the weights either
        path = stack.enter_context(_module_paths(model.module))
        stack.enter_context(_recorder(path, found))
        model.run(feeds)
    return found


def _recorder(path: list[str], found: list[Seen]) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    wanted = {name for kinds in KINDS.values() for name in kinds}

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__.removesuffix("_")
            if name in wanted:
                made, axis = _made(name, args, result)
                if made is not None:
                    found.append(Seen(path[-1], name, made.detach().numpy().copy(), axis))
            return result

    return Recorder()  # type: ignore[no-untyped-call]


def _made(name: str, args: tuple[Any, ...], result: Any) -> tuple[Tensor | None, int | None]:
    """The tensor that is the map of an operation, and the axis of a softmax."""
    if name in SOFTMAX:
        return result, args[1] % result.ndim
    if name == "grid_sampler_2d":
        return args[1], None
    if isinstance(result, tuple):
        return result[1], None
    return (None if name == "max" else result), None


@contextmanager
def _module_paths(module: nn.Module) -> Iterator[list[str]]:
    """A stack that holds, while the module runs, the path of the innermost module that is running."""
    stack, handles = [""], []
    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(lambda part, args, name=name: stack.append(name)))
        handles.append(part.register_forward_hook(lambda part, args, result: _dropped(stack)))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _dropped(stack: list[str]) -> None:
    stack.pop()  # and returns nothing: what a hook returns takes the place of the result


def matching(seen: list[Seen], op: str, module: str, like: Array) -> Array | None:
    """Take from `seen` the map of an op in a module, in the layout of `like`; None where there is none.

    Of several that could be it, such as the gates of one module, it is the one nearest to `like`, then the first. It is
    removed, so that nothing is taken twice. `module` is a path, or what begins with one; empty is anywhere.
    """
    found = []
    for index, item in enumerate(seen):
        inside = item.module == module or item.module.startswith(f"{module}.") or module.startswith(f"{item.module}.")
        if item.operation not in KINDS[op] or not (inside or not module or not item.module):
            continue
        keys_last = op == "SoftmaxAttention" and item.axis is not None
        array = np.moveaxis(item.array, item.axis or 0, -1) if keys_last else item.array
        if _fits(array.shape, like.shape):
            array = array.reshape(like.shape)
            # What multiplies the map is the gate, or one more than it in residual attention.
            forms = (array, 1 + array) if item.operation in GATES else (array,)
            found += [(_gap(form, like), index, form) for form in forms]
    if not found:
        return None
    _, index, array = min(found, key=lambda one: one[:2])
    del seen[index]
    return array


def _gap(array: Array, like: Array) -> float:
    with np.errstate(invalid="ignore"):
        gap = float(np.abs(array.astype(np.float64) - like.astype(np.float64)).mean())
    return gap if np.isfinite(gap) else np.inf


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a reshape only merges or splits leading axes, or drops axes of size one."""
    if int(np.prod(shape)) != int(np.prod(wanted)):
        return False
    a, b = ([size for size in sizes if size != 1] for sizes in (shape, wanted))
    ends = min(len(a), len(b))
    return a == b or (ends >= 2 and a[-ends + 1 :] == b[-ends + 1 :])
