"""Measuring time, so that two numbers can be compared: interleaved in one process, with the machine beside them."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from edgeattn import __version__
from edgeattn.reports.latency import LatencyReport, latency_report

__all__ = ["LatencyReport", "environment", "measure"]

TURN_S = 0.05
PACKAGES = ("numpy", "onnx", "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx-cu13", "polygraphy")
SOURCES = {
    "board": ("/proc/device-tree/model",),
    "gpu": ("/proc/driver/nvidia/gpus/*/information", r"Model:\s*(.+)"),
    "cpu": ("/proc/cpuinfo", r"(?m)^(?:model name|Model)\s*:\s*(.+)$"),
    "governor": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",),
    "power_mode": ("/var/lib/nvpmodel/status", r"pmode:(\d+)"),
}


def measure(
    callables: Mapping[str, Callable[[], object]],
    *,
    batch: int = 1,
    warmup_s: float = 0.2,
    duration_s: float = 1.0,
    min_runs: int = 10,
) -> dict[str, LatencyReport]:
    """Time callables against each other in turns of 50 ms, so that a disturbance hits them all.

    The first run of a turn is not counted: the threads of whoever ran before may still spin on the cores.

    Args:
        callables: what to run, by name; each must have finished its work when it returns.
        batch: samples that one run handles, for the throughput.
        warmup_s: how long each is run before its first measured run, at least once.
        duration_s: how long to measure, times the number of callables.
        min_runs: how often each is measured even if that takes longer.
    """
    for run in callables.values():
        end = time.perf_counter() + warmup_s
        run()
        while time.perf_counter() < end:
            run()
    times: dict[str, list[int]] = {name: [] for name in callables}
    end = time.perf_counter() + duration_s * len(callables)
    while time.perf_counter() < end or min(map(len, times.values()), default=min_runs) < min_runs:
        for name, run in callables.items():
            times[name] += _turn(run)
    return {name: latency_report(spent, batch) for name, spent in times.items()}


def _turn(run: Callable[[], object]) -> list[int]:
    run()
    times: list[int] = []
    end = time.perf_counter() + TURN_S
    while not times or time.perf_counter() < end:
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return times


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
