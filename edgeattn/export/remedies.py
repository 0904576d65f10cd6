"""Operators that PyTorch's exporters lack or spell badly, said in operators that they have.

Active while a module is traced; the module is never changed. Each rewrite computes the same numbers up to rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from edgeattn.errors import ExportError

POOLS: dict[Any, tuple[str, int, Callable[..., Tensor]]] = {
    F.adaptive_avg_pool1d: ("adaptive_avg_pool1d", 1, F.avg_pool1d),
    F.adaptive_avg_pool2d: ("adaptive_avg_pool2d", 2, F.avg_pool2d),
    F.adaptive_max_pool1d: ("adaptive_max_pool1d", 1, F.max_pool1d),
    F.adaptive_max_pool2d: ("adaptive_max_pool2d", 2, F.max_pool2d),
}
WHOLE = {F.avg_pool2d: "mean", F.max_pool2d: "amax"}
USUAL = {"dilation": 1, "return_indices": False, "divisor_override": None}
FREEZING = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.item)
TORCH = str(Path(torch.__file__).parent)


class Remedies(TorchFunctionMode):
    """Rewrites calls as they are traced; `notes` says which, and where the TorchScript tracer froze a value.

    That tracer shows every size as a number, so it has to be told where sizes are dynamic.
    """

    def __init__(self, exporter: str, dynamic_sizes: bool) -> None:
        super().__init__()
        self.torchscript = exporter == "torchscript"
        self.dynamic_sizes = dynamic_sizes
        self.notes: dict[str, None] = {}  # in order, each once: a module may be traced several times

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in POOLS:
            return self._pool(func, *args, **kwargs)
        if func in WHOLE and (pooled := self._whole(func, *args, **kwargs)) is not None:
            return pooled
        if func is F.affine_grid and len(args[1] if len(args) > 1 else kwargs["size"]) == 4:
            return self._affine_grid(*args, **kwargs)
        if func is F.scaled_dot_product_attention and args[0].ndim == 3:
            return _attention_of_matrices(*args, **kwargs)
        if func is F.scaled_dot_product_attention and args[0].ndim > 4:
            return _attention_of_blocks(*args, **kwargs)
        if func in FREEZING and self.torchscript and args[0].dtype != torch.int64:
            self._note_frozen(sys._getframe(1))
        return func(*args, **kwargs)

    def _note_frozen(self, frame: FrameType) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(TORCH):
            where = f"{Path(file).name}:{frame.f_lineno}"
            self.notes[f"the tracer froze a value at {where}: other data may take another path than the graph"] = None

    def _pool(self, func: Callable[..., Any], x: Tensor, output_size: Any, *rest: Any, **kwargs: Any) -> Any:
        name, rank, plain = POOLS[func]
        sizes = x.shape[-rank:]
        asked = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size,) * rank
        average = plain in (F.avg_pool1d, F.avg_pool2d)
        pooled = {axis: out for axis, out in enumerate(asked, start=-rank) if out is not None}
        if all(isinstance(out, int) and out == 1 for out in pooled.values()):
            if len(pooled) in (0, rank):
                return func(x, output_size, *rest, **kwargs) if pooled else x
            self.notes[f"{name} to {_by(asked)} as {'a mean' if average else 'a maximum'} over one axis"] = None
            return x.mean(list(pooled), True) if average else x.amax(list(pooled), True)
        outs = [size if out is None else out for size, out in zip(sizes, asked, strict=True)]
        moving = self.dynamic_sizes if self.torchscript else any(isinstance(size, torch.SymInt) for size in sizes)
        if moving:
            raise ExportError(
                f"{name} to {_by(asked)} of an image of dynamic size has no ONNX form; "
                "make height and width static, or pool to size 1"
            )
        numbers = [int(size) for size in sizes]
        if all(size % out == 0 for size, out in zip(numbers, outs, strict=True)):
            return func(x, output_size, *rest, **kwargs)
        change = f"{name} {_by(numbers)} to {_by(outs)}"
        grid = [_regular(size, out) for size, out in zip(numbers, outs, strict=True)]
        if all(step is not None for step in grid):
            kernel, stride = zip(*(step for step in grid if step), strict=True)
            self.notes[f"{change} as a pooling of {_by(kernel)}, stride {_by(stride)}"] = None
            return plain(x, kernel, stride)
        self.notes[f"{change} as {'matrix products' if average else 'maxima of slices'}"] = None
        for axis, (size, out) in enumerate(zip(numbers, outs, strict=True), start=-rank):
            x = _average(x, axis, size, out) if average else _maximum(x, axis, size, out)
        return x

    def _whole(
        self,
        func: Callable[..., Any],
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        """A pooling whose window is computed and as large as the image, as a mean or maximum; None for any other."""
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        window = tuple(kernel_size) if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * 2
        usual = padding in (0, (0, 0), [0, 0]) and all(
            kwargs.get(name, value) == value for name, value in USUAL.items()
        )
        if len(window) != 2 or all(isinstance(side, int) for side in window) or not usual or rest:
            return None
        pairs = list(zip(window, x.shape[-2:], strict=True))
        if self.torchscript:
            same = not self.dynamic_sizes and all(int(side) == int(size) for side, size in pairs)
        else:
            same = all(statically_known_true(side == size) for side, size in pairs)
        return getattr(x, WHOLE[func])((-2, -1), True) if same else None

    def _affine_grid(self, theta: Tensor, size: Any, align_corners: bool | None = None) -> Tensor:
        H, W = size[2], size[3]
        if self.torchscript and not self.dynamic_sizes:
            H, W = int(H), int(W)
        x, y = (_positions(steps, bool(align_corners), theta) for steps in (W, H))
        x, y = x.expand(H, W), y[:, None].expand(H, W)
        base = torch.stack([x, y, torch.ones_like(x)], -1).reshape(1, -1, 3)
        self.notes["affine_grid as a matrix product"] = None
        return (base @ theta.transpose(1, 2)).reshape(-1, H, W, 2)


def _attention_of_matrices(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **kwargs: Any
) -> Tensor:
    """Attention without a head axis, (B, N, d), with one: the exporters know only that form."""
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask[:, None]
    tensors = (query[:, None], key[:, None], value[:, None])
    return F.scaled_dot_product_attention(*tensors, attn_mask, *rest, **kwargs)[:, 0]


def _attention_of_blocks(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **kwargs: Any
) -> Tensor:
    """Attention with more axes than one before the heads, (B, blocks, heads, N, d), with one: as `..._of_matrices`."""
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = attn_mask.expand(*query.shape[:-2], *attn_mask.shape[-2:]).flatten(0, -4)
    tensors = (query.flatten(0, -4), key.flatten(0, -4), value.flatten(0, -4))
    flat = F.scaled_dot_product_attention(*tensors, attn_mask, *rest, **kwargs)
    return flat.reshape(*query.shape[:-1], value.shape[-1])


def _by(sizes: Sequence[Any]) -> str:
    return "x".join(str(size) for size in sizes)


def _windows(size: int, out: int) -> list[tuple[int, int]]:
    """PyTorch's adaptive windows: cell i of `out` covers floor(i size / out) up to ceil((i + 1) size / out)."""
    return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _regular(size: int, out: int) -> tuple[int, int] | None:
    """Kernel and stride, where the windows are all of one size and evenly spaced."""
    windows = _windows(size, out)
    kernels = {end - start for start, end in windows}
    strides = {later[0] - earlier[0] for earlier, later in pairwise(windows)} or {1}
    return (kernels.pop(), strides.pop()) if len(kernels) == len(strides) == 1 and 0 not in strides else None


def _average(x: Tensor, axis: int, size: int, out: int) -> Tensor:
    rows = [[1 / (end - start) if start <= i < end else 0.0 for i in range(size)] for start, end in _windows(size, out)]
    weights = torch.tensor(rows, dtype=x.dtype, device=x.device)  # (out, size)
    return x @ weights.T if axis == -1 else weights @ x


def _maximum(x: Tensor, axis: int, size: int, out: int) -> Tensor:
    return torch.cat([x.narrow(axis, start, end - start).amax(axis, True) for start, end in _windows(size, out)], axis)


def _positions(steps: int, align_corners: bool, like: Tensor) -> Tensor:
    """Pixel centres in [-1, 1], as `affine_grid` places them; `steps` may be symbolic."""
    index = torch.arange(steps, dtype=like.dtype, device=like.device)
    if not align_corners:
        return (2 * index + 1) / steps - 1
    return index if isinstance(steps, int) and steps == 1 else 2 * index / (steps - 1) - 1
