"""Compiled kernels on a GPU: launched by the driver API alone, through pycuda or ctypes, on PyTorch's memory."""

from __future__ import annotations

import atexit
import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from edgeattn.kernels.launch import Compiled, evaluate

SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
DEFAULT_SHARED = 48 * 1024  # what a kernel may have without asking
Bind = Callable[[Compiled, Sequence[int]], Callable[[int], None]]


@functools.cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_libcuda(), name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _libcuda().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")


@functools.cache
def _function(name: str, cubin: bytes, shared: int) -> ctypes.c_void_p:
    """The entry point of a module in PyTorch's context, which is the device's primary one."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuModuleLoadData", ctypes.byref(module), cubin)
    _call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    if shared > DEFAULT_SHARED:
        _call("cuFuncSetAttribute", function, SHARED_SIZE, shared)
    return function


def by_ctypes(made: Compiled, values: Sequence[int]) -> Callable[[int], None]:
    """A function that launches a kernel with these arguments, on as many programs as it is given."""
    function = _function(made.name, made.cubin, made.shared)
    kinds = {"pointer": ctypes.c_uint64, "int32": ctypes.c_int32}
    held = [kinds[kind](value) for (kind, _), value in zip(made.arguments, values, strict=True)]
    pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))

    def launch(programs: int) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = programs, 1, 1, made.threads, 1, 1, made.shared
        _call("cuLaunchKernel", function, *map(ctypes.c_uint, sizes), stream, pointers, None)

    launch.held = held  # type: ignore[attr-defined]  # what `pointers` point to lives as long as the function
    return launch


@functools.cache
def _pycuda() -> Any:
    """The driver in PyTorch's context, until the process ends: pycuda aborts one that leaves a context behind."""
    import pycuda.driver as cuda

    cuda.init()
    primary = cuda.Device(torch.cuda.current_device()).retain_primary_context()
    primary.push()
    atexit.register(primary.detach)
    atexit.register(cuda.Context.pop)  # before it is detached
    return cuda


@functools.cache
def _pycuda_function(name: str, cubin: bytes, shared: int) -> Any:
    cuda = _pycuda()
    function = cuda.module_from_buffer(cubin).get_function(name)
    if shared > DEFAULT_SHARED:
        function.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
    return function


def by_pycuda(made: Compiled, values: Sequence[int]) -> Callable[[int], None]:
    """The same through pycuda, on the default stream."""
    function = _pycuda_function(made.name, made.cubin, made.shared)
    function.prepare("".join("P" if kind == "pointer" else "i" for kind, _ in made.arguments))
    block = (made.threads, 1, 1)
    return lambda programs: function.prepared_call((programs, 1), block, *values, shared_size=made.shared)


def bound(
    kernels: Sequence[Compiled], tensors: Mapping[str, torch.Tensor], bind: Bind = by_ctypes
) -> Callable[[], None]:
    """A function that launches the kernels of one op, in order, on these tensors; their scratch is NaN before."""
    held = dict(tensors)
    steps: list[tuple[Callable[[int], None], int]] = []
    for made in kernels:
        for name, count in made.launch.scratch.items():
            held[name] = torch.full((evaluate(count, {}),), torch.nan, device="cuda")
        values = [
            held[name].data_ptr() if kind == "pointer" else evaluate(made.launch.integers[name], {})
            for kind, name in made.arguments
        ]
        steps.append((bind(made, values), evaluate(made.launch.grid, {})))

    def launch() -> None:
        for step, programs in steps:
            step(programs)

    launch.held = held  # type: ignore[attr-defined]  # the scratch lives as long as the function
    return launch
