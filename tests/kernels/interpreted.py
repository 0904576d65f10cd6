"""Kernels run by Triton's interpreter, in a process of its own: Triton reads how to run when it is imported."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch

from edgeattn.kernels.launch import Launch, run
from edgeattn.tolerance import tolerance_for
from tests.graphs import Array

POISON = -101  # a code that the tests' results hardly have


@functools.cache
def _process() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare)
    atexit.register(pool.shutdown)
    return pool


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def _bits(tensor: torch.Tensor) -> tuple[str, Array]:
    """A tensor as numpy can hold it."""
    name = str(tensor.dtype).removeprefix("torch.")
    return name, (tensor.view(torch.int16) if name == "bfloat16" else tensor).contiguous().numpy()


def _tensor(bits: tuple[str, Array]) -> torch.Tensor:
    tensor = torch.from_numpy(bits[1])
    return tensor.view(torch.bfloat16) if bits[0] == "bfloat16" else tensor


def _run(
    launches: Sequence[Launch], tensors: dict[str, tuple[str, Array]], dims: Mapping[str, int], output: str
) -> tuple[str, Array]:
    held = {name: _tensor(bits).clone() for name, bits in tensors.items()}
    run(launches, held, dims)
    return _bits(held[output])


def interpret(
    launches: Sequence[Launch],
    inputs: Mapping[str, torch.Tensor],
    shape: Sequence[int],
    dims: Mapping[str, int] | None = None,
) -> torch.Tensor:
    """What the launches write to y, of this shape and q's or x's type, which holds NaN before; INT8 has none."""
    dtype = next(iter(inputs.values())).dtype
    coded = "y_scale" in inputs
    poison = torch.full(tuple(shape), POISON if coded else torch.nan, dtype=torch.int8 if coded else dtype)
    tensors = {**inputs, "y": poison}
    bits = {name: _bits(tensor) for name, tensor in tensors.items()}
    return _tensor(_process().submit(_run, launches, bits, dims or {}, "y").result())


def operands(sizes: Sequence[Sequence[int]], dtype: str) -> list[torch.Tensor]:
    """A random map, and weights such that what they make of it is about as large."""
    x, *weights = (torch.randn(tuple(size)).to(getattr(torch, dtype)) for size in sizes)
    return [x, *(weight / max(1, weight[0].numel()) ** 0.5 for weight in weights)]


def assert_as_good_as(found: torch.Tensor, formula: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """A kernel's error is at most twice PyTorch's own in that dtype, and a rounding unit, of the largest value."""
    truth = formula(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs))
    torch.backends.mkldnn.enabled = False  # some virtual machines stop programs for its AMX instructions
    try:
        own = formula(*inputs).double()
    finally:
        torch.backends.mkldnn.enabled = True
    largest = truth.abs().max().clamp(min=1e-30)
    error = (found.double() - truth).abs().max() / largest
    unit = tolerance_for(str(found.dtype).removeprefix("torch.")).unit
    bound = 2 * ((own - truth).abs().max() / largest + unit)
    assert found.isfinite().all()
    assert error <= bound, f"error {error:.2e}, at most {bound:.2e}"


def assert_codes(
    found: torch.Tensor, scale: float, formula: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> None:
    """Each code is the nearest to y / scale, as far as twice the error of PyTorch's own float32, and a unit, tell."""
    exact = formula(*(tensor.double() for tensor in inputs))
    own = formula(*(tensor.float() for tensor in inputs)).double()
    unit = tolerance_for("float32").unit * exact.abs().max()
    slack = 2 * float((own - exact).abs().max() + unit) / scale
    assert slack < 0.01, "the scale is too small for the codes to be told"
    error = (found.double() - (exact / scale).clamp(-128, 127)).abs().max()
    assert found.dtype == torch.int8
    assert error <= 0.5 + slack, f"a code is off by {error:.4f}"
