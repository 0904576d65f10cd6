"""What each TensorRT can do: a table by version, read off the bindings of every release, then checked on the real one.

A version alone is not enough, since builds for one platform leave things out, and `hasattr` alone is not either, since
10.14 has the classes of quickly deployable plugins and they do not work.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeattn.errors import UnsupportedError

OLDEST = {"tensorrt": (10, 0), "tensorrt-rtx": (1, 4)}
RELEASES = {"tensorrt": ("10.0", "10.6", "10.9", "10.14", "10.15"), "tensorrt-rtx": ("1.4",)}  # that differ, in order
NAMESPACE = "edgeattn"


@dataclass(frozen=True)
class Capabilities:
    """What one version of one flavour offers.

    Attributes:
        attention: the ONNX `Attention` operator is read, into layers that can be marked decomposable.
        pads_heads: fused attention pads head sizes that are no multiple of 8.
        plugins: `IPluginV3` plugins can be part of a network.
        plugin_override: a plugin can be preferred to a model-local function of the same name.
        quick_plugins: plugins written in Python (`tensorrt.plugin`).
        aot_plugins: plugins whose PTX is embedded in the engine.
        hardware_compatibility: the levels there are, besides `none`.
        version_compatible: a plan can be built for later versions too.
        timing_cache: kernel timings can be kept from one build to the next.
        targets: the compute capabilities to build for can be chosen, with no GPU present.
        cuda_graphs: the runtime captures CUDA graphs itself.
    """

    attention: bool
    pads_heads: bool
    plugins: bool
    plugin_override: bool
    quick_plugins: bool
    aot_plugins: bool
    hardware_compatibility: tuple[str, ...]
    version_compatible: bool
    timing_cache: bool
    targets: bool
    cuda_graphs: bool


def capabilities(version: str, flavour: str) -> Capabilities:
    """Look up a version, such as `10.13.3.9`, of `tensorrt` or `tensorrt-rtx`.

    Raises:
        UnsupportedError: it is older than the oldest one known.
    """
    release = _release(version)
    if release < OLDEST[flavour]:
        oldest = ".".join(map(str, OLDEST[flavour]))
        raise UnsupportedError(f"{flavour} {version} is too old: edgeattn needs {oldest} or newer")
    if flavour == "tensorrt-rtx":
        return Capabilities(
            attention=True,
            pads_heads=True,
            plugins=False,
            plugin_override=True,
            quick_plugins=False,
            aot_plugins=False,
            hardware_compatibility=(),
            version_compatible=False,
            timing_cache=False,
            targets=True,
            cuda_graphs=True,
        )
    broken_quick_plugins = release == (10, 14)
    levels = ("ampere_plus", "same_compute_capability") if release >= (10, 9) else ("ampere_plus",)
    return Capabilities(
        attention=release >= (10, 14),
        pads_heads=release >= (10, 14),
        plugins=True,
        plugin_override=release >= (10, 15),
        quick_plugins=release >= (10, 6) and not broken_quick_plugins,
        aot_plugins=release >= (10, 9) and not broken_quick_plugins,
        hardware_compatibility=levels,
        version_compatible=True,
        timing_cache=True,
        targets=False,
        cuda_graphs=False,
    )


@dataclass(frozen=True)
class PluginRoute:
    """How a node becomes a plugin.

    Attributes:
        kind: `embedded` where the kernel's PTX is in the engine, which then runs anywhere; `library` where the plugin
            comes from a shared library that has to be loaded with the engine.
        attributes: what the node has to carry for the parser to find the plugin.
        keeps_function: the model may keep the node's function body, since the parser prefers a plugin whose namespace
            the node names; otherwise a body that is there wins, and has to be removed. The parser's flag
            `ENABLE_PLUGIN_OVERRIDE` is then not needed: it is for nodes that name none.
    """

    kind: str
    attributes: Mapping[str, str | int]
    keeps_function: bool


def plugin_route(can: Capabilities) -> PluginRoute | None:
    """The best way that a version has to run a plugin, None where it has none."""
    if not can.plugins:
        return None
    found = {"plugin_namespace": NAMESPACE, "plugin_version": "1"}
    if can.aot_plugins:
        return PluginRoute("embedded", {**found, "aot": 1}, can.plugin_override)
    return PluginRoute("library", found, can.plugin_override)


def probe(trt: Any, flavour: str) -> Capabilities:
    """The table's row for an imported module, less what that module turns out to lack.

    Raises:
        UnsupportedError: its version is older than the oldest one known.
    """
    known = capabilities(trt.__version__, flavour)
    levels = known.hardware_compatibility
    return dataclasses.replace(
        known,
        attention=known.attention and hasattr(trt, "IAttentionInputLayer"),
        plugin_override=known.plugin_override and hasattr(trt.OnnxParserFlag, "ENABLE_PLUGIN_OVERRIDE"),
        hardware_compatibility=tuple(
            level for level in levels if hasattr(trt.HardwareCompatibilityLevel, level.upper())
        ),
        version_compatible=known.version_compatible and hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"),
        targets=known.targets and hasattr(trt, "ComputeCapability"),
        cuda_graphs=known.cuda_graphs and hasattr(trt, "CudaGraphStrategy"),
    )


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise UnsupportedError(f"not a TensorRT version: {version!r}")
    return int(match[1]), int(match[2])
