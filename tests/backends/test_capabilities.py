from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from edgeattn.backends import tensorrt_rtx
from edgeattn.backends.trt import device
from edgeattn.backends.trt import library as lib
from edgeattn.backends.trt.capabilities import capabilities, probe
from edgeattn.errors import UnsupportedError

EVERYTHING = {"attention", "plugin_override", "quick_plugins", "aot_plugins", "same_compute_capability"}


@pytest.mark.parametrize(
    ("version", "offers"),
    [
        ("10.0.1", set()),
        ("10.3.0", set()),  # JetPack 6.1 and 6.2
        ("10.6.0", {"quick_plugins"}),
        ("10.9.0.34", {"quick_plugins", "aot_plugins", "same_compute_capability"}),
        ("10.13.3.9.post1", {"quick_plugins", "aot_plugins", "same_compute_capability"}),  # JetPack 7.0 and 7.1
        ("10.14.1.48", {"attention", "same_compute_capability"}),  # its Python plugins do not work
        ("10.15.1.29", EVERYTHING),
        ("10.16.2.10", EVERYTHING),  # JetPack 7.2
        ("11.4.1", EVERYTHING),
        ("12.0", EVERYTHING),
    ],
)
def test_tensorrt_offers_what_its_bindings_have(version: str, offers: set[str]) -> None:
    row = capabilities(version, "tensorrt")
    varying = ("attention", "plugin_override", "quick_plugins", "aot_plugins")
    assert {name for name in varying if getattr(row, name)} == offers - {"same_compute_capability"}
    assert ("same_compute_capability" in row.hardware_compatibility) == ("same_compute_capability" in offers)
    assert "ampere_plus" in row.hardware_compatibility
    assert row.plugins
    assert row.timing_cache
    assert row.version_compatible
    assert not row.targets
    assert not row.cuda_graphs


@pytest.mark.parametrize("version", ["1.4.0.76", "1.7.1.116", "2.0"])
def test_tensorrt_rtx_chooses_targets_and_has_no_plugins(version: str) -> None:
    row = capabilities(version, "tensorrt-rtx")
    assert row.targets
    assert row.attention
    assert row.cuda_graphs
    assert not row.plugins
    assert not row.timing_cache
    assert not row.version_compatible
    assert row.hardware_compatibility == ()


@pytest.mark.parametrize(
    ("version", "flavour", "oldest"),
    [("8.6.2", "tensorrt", "10.0"), ("9.3", "tensorrt", "10.0"), ("1.3", "tensorrt-rtx", "1.4")],
)
def test_an_older_version_is_refused_with_the_oldest_that_works(version: str, flavour: str, oldest: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{flavour} {version} is too old: edgeattn needs {oldest} or newer"):
        capabilities(version, flavour)


def test_the_installed_tensorrt_rtx_is_what_the_table_says() -> None:
    if reasons := tensorrt_rtx.missing(running=False):
        pytest.skip("; ".join(reasons))
    library = lib.library(lib.RTX)
    assert library.can == capabilities(library.version, "tensorrt-rtx")


def test_a_module_that_lacks_a_feature_of_its_version_is_believed() -> None:
    stripped = SimpleNamespace(
        __version__="10.16.2",
        OnnxParserFlag=SimpleNamespace(),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS=1),
        BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE=1),
    )
    row = probe(stripped, "tensorrt")
    assert not row.attention
    assert not row.plugin_override
    assert row.hardware_compatibility == ("ampere_plus",)
    assert row.version_compatible


class Driver:
    """Two GPUs as the CUDA driver describes them, through the pointers it is given."""

    gpus = (("Orin", 8, 7, 8 << 30), ("NVIDIA RTX PRO 6000", 12, 0, 96 << 30))

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        if name == self.broken:
            return lambda *arguments: 999
        return getattr(self, f"_{name}")

    def _cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return 0

    def _cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13020
        return 0

    def _cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = self.gpus[device.value][0].encode()
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = self.gpus[device.value][{75: 1, 76: 2}[attribute]]
        return 0

    def _cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = self.gpus[device.value][3]
        return 0


def test_gpus_are_described_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert device.gpus() == (
        device.Gpu(0, "Orin", "sm_87", 8 << 30, "13.2"),
        device.Gpu(1, "NVIDIA RTX PRO 6000", "sm_120", 96 << 30, "13.2"),
    )


@pytest.mark.parametrize("broken", ["cuInit", "cuDeviceGetCount", "cuDeviceTotalMem_v2"])
def test_a_driver_that_fails_means_no_gpu(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(broken))
    assert device.gpus() == ()


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER", "libno-such-driver.so.1")
    assert device.gpus() == ()
