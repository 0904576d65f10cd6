"""The NVIDIA GPUs of this machine, asked of the driver itself: no CUDA toolkit and no Python package is needed."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

DRIVER = "libcuda.so.1"
_CC_MAJOR, _CC_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    """One GPU. `cuda` is the newest CUDA version that its driver runs."""

    index: int
    name: str
    compute_capability: str  # such as `sm_87`
    memory_bytes: int
    cuda: str  # such as `13.0`


def gpus() -> tuple[Gpu, ...]:
    """Every GPU that the driver lets this process see; empty without one. Never raises."""
    try:
        driver = ctypes.CDLL(DRIVER)
        _call(driver.cuInit, 0)
        count, version = ctypes.c_int(), ctypes.c_int()
        _call(driver.cuDeviceGetCount, ctypes.byref(count))
        _call(driver.cuDriverGetVersion, ctypes.byref(version))
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return tuple(_gpu(driver, index, cuda) for index in range(count.value))
    except (OSError, AttributeError):
        return ()


def _gpu(driver: ctypes.CDLL, index: int, cuda: str) -> Gpu:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _call(driver.cuDeviceGet, ctypes.byref(device), index)
    _call(driver.cuDeviceGetName, name, len(name), device)
    _call(driver.cuDeviceGetAttribute, ctypes.byref(major), _CC_MAJOR, device)
    _call(driver.cuDeviceGetAttribute, ctypes.byref(minor), _CC_MINOR, device)
    _call(driver.cuDeviceTotalMem_v2, ctypes.byref(memory), device)
    return Gpu(index, name.value.decode(errors="replace"), f"sm_{major.value}{minor.value}", memory.value, cuda)


def _call(function: ctypes._FuncPointer, *arguments: object) -> None:
    status = function(*arguments)
    if status != 0:
        raise OSError(f"the CUDA driver returned {status}")
