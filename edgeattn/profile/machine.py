"""The machine that a number was measured on: versions, processor, board, clocks, power mode."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import statistics
import subprocess
from importlib import metadata
from pathlib import Path

from edgeattn import __version__

__all__ = ["conditions", "environment"]

PACKAGES = ("numpy", "onnx", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13", "polygraphy")
SOURCES = {
    "board": ("/proc/device-tree/model",),
    "gpu": ("/proc/driver/nvidia/gpus/*/information", r"Model:\s*(.+)"),
    "cpu": ("/proc/cpuinfo", r"(?m)^(?:model name|Model)\s*:\s*(.+)$"),
    "governor": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",),
    "power_mode": ("/var/lib/nvpmodel/status", r"pmode:(\d+)"),
}


def environment() -> dict[str, str]:
    """What a number depends on: versions of what is installed, the processor, the board, clocks and power mode.

    What this machine does not tell is left out.
    """
    found = {
        "edgeattn": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system().lower()}-{platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0))),
    }
    for name, source in SOURCES.items():
        if text := _first(*source):
            found[name] = text
    installed = {package: _version(package) for package in PACKAGES}
    return {**found, **{package: version for package, version in installed.items() if version}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _first(pattern: str, expression: str = r"(?s)(.+)") -> str:
    """What the expression finds in the first file of that name that can be read; empty where there is none."""
    for path in Path("/").glob(pattern.lstrip("/")):
        try:
            match = re.search(expression, path.read_text(errors="replace"))
        except OSError:
            continue
        if match:
            return match[1].strip().strip("\0")
    return ""


def conditions(backend: str = "", root: Path = Path("/")) -> dict[str, str]:
    """What changes while something is measured: clocks, the highest temperature, load, and of an NVIDIA GPU its power.

    What this machine does not tell is left out.
    """
    clocks = [int(text) / 1e3 for text in _texts(root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")]
    if not clocks:
        listed = "".join(_texts(root, "proc/cpuinfo"))
        clocks = [float(mhz) for mhz in re.findall(r"(?m)^cpu MHz\s*:\s*([\d.]+)$", listed)]
    heat = [int(text) / 1e3 for text in _texts(root, "sys/class/thermal/thermal_zone*/temp")]
    load = "".join(_texts(root, "proc/loadavg")).split()
    found = {
        "cpu_mhz": f"{statistics.mean(clocks):.0f}" if clocks else "",
        "temperature_c": f"{max(heat):.0f}" if heat else "",
        "load": load[0] if load else "",
        **(_gpu_conditions() if backend.startswith("tensorrt") else {}),
    }
    return {name: text for name, text in found.items() if text}


def _gpu_conditions() -> dict[str, str]:
    """What `nvidia-smi` says of the first GPU; on a Jetson, which has none of it, what `tegrastats` says in a line."""
    fields = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "pstate")
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    if shutil.which(query[0]):
        values = _said(query).strip().split(", ")
        if len(values) == len(fields):
            return {f"gpu_{name.replace('.', '_')}": value for name, value in zip(fields, values, strict=True)}
    if shutil.which("tegrastats"):
        return {"tegrastats": _said(["tegrastats", "--interval", "100"], 0.5).partition("\n")[0].strip()}
    return {}


def _said(command: list[str], seconds: float = 10.0) -> str:
    """What a program prints until it ends or its time is over; nothing where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True).stdout
    except subprocess.TimeoutExpired as err:
        return (err.stdout or b"").decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""


def _texts(root: Path, pattern: str) -> list[str]:
    found = []
    for path in sorted(root.glob(pattern)):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace").strip())
    return found
