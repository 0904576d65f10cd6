"""The TensorRT library of this process: TensorRT or TensorRT-RTX, through polygraphy, with its messages kept.

polygraphy decides between the two when it is imported, so a process serves one of them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeattn.backends.trt.capabilities import Capabilities, probe
from edgeattn.backends.trt.device import gpus
from edgeattn.errors import MissingDependencyError, UnsupportedError, one_line

_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
_MOST_NOTES = 8
_SILENT = 1000  # above polygraphy's most severe level


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries: the backend's name, the package's, the one people say, and how to get it."""

    name: str
    package: str
    title: str
    install: str
    needs_gpu_to_build: bool


TENSORRT = Flavour(
    name="tensorrt",
    package="tensorrt",
    title="TensorRT",
    install="on a Jetson sudo apt install python3-libnvinfer, elsewhere pip install 'edgeattn[tensorrt]'",
    needs_gpu_to_build=True,
)
RTX = Flavour(
    name="tensorrt-rtx",
    package="tensorrt_rtx",
    title="TensorRT-RTX",
    install="pip install 'edgeattn[rtx]'",
    needs_gpu_to_build=False,
)


@dataclass(frozen=True)
class Library:
    """An imported library: its module, which of the two it is, and what its version can do."""

    trt: Any
    flavour: Flavour
    can: Capabilities

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    def __str__(self) -> str:
        return f"{self.flavour.title} {self.version}"


# TensorRT knows one logger a process: it writes into every list that listens.
_listeners: list[list[tuple[bool, str]]] = []


def missing(flavour: Flavour, running: bool) -> list[str]:
    """Why engines of a flavour cannot be run here (or only built, where not `running`), with the remedy for each."""
    reasons = []
    if (running or flavour.needs_gpu_to_build) and not gpus():
        reasons.append("no NVIDIA GPU: the driver (libcuda.so.1) is not installed or sees no device")
    if importlib.util.find_spec(flavour.package) is None:
        reasons.append(f"the package {flavour.package} is not installed: {flavour.install}")
    if importlib.util.find_spec("polygraphy") is None:
        reasons.append("the package polygraphy is not installed: pip install polygraphy")
    if running and importlib.util.find_spec("pycuda") is None:
        reasons.append("the package pycuda is not installed: pip install pycuda (it compiles, with nvcc on the PATH)")
    return reasons


def library(flavour: Flavour) -> Library:
    """Import the library, and have polygraphy use it.

    Raises:
        MissingDependencyError: it or polygraphy is not installed, or does not import.
        UnsupportedError: this process already uses the other flavour, or the version is too old.
    """
    if importlib.util.find_spec(flavour.package) is None:
        raise MissingDependencyError(f"the package {flavour.package} is not installed: {flavour.install}")
    if _polygraphy_uses_rtx(flavour) != (flavour is RTX):
        other = RTX if flavour is TENSORRT else TENSORRT
        raise UnsupportedError(f"this process already uses {other.title}: use {flavour.title} in a new process")
    try:
        trt = importlib.import_module(flavour.package)
        util: Any = importlib.import_module("polygraphy.backend.trt.util")
    except (ImportError, OSError, RuntimeError) as err:
        raise MissingDependencyError(f"{flavour.title} does not import ({one_line(err)}): {flavour.install}") from err
    if not hasattr(util.TRT_LOGGER, "of_edgeattn"):
        util.TRT_LOGGER = _logger(trt)
    return Library(trt, flavour, probe(trt, flavour.name))


def _polygraphy_uses_rtx(flavour: Flavour) -> bool:
    """Import polygraphy, switched to a flavour if this is the first import, and say which one it serves."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1" if flavour is RTX else "0"
    try:
        config = importlib.import_module("polygraphy.config")
    except ImportError as err:
        raise MissingDependencyError("polygraphy does not import: pip install polygraphy") from err
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before
    if not hasattr(config, "USE_TENSORRT_RTX"):
        raise MissingDependencyError("polygraphy is older than 0.50.3: pip install --upgrade polygraphy")
    return bool(config.USE_TENSORRT_RTX)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        of_edgeattn = True

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            failed = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if failed or severity == trt.ILogger.WARNING:
                for listener in _listeners:
                    listener.append((failed, text))

    return Logger()


@contextlib.contextmanager
def messages() -> Iterator[list[tuple[bool, str]]]:
    """Keep TensorRT's errors and warnings, as (is an error, text), and print none of them."""
    heard: list[tuple[bool, str]] = []
    _listeners.append(heard)
    try:
        yield heard
    finally:
        _listeners[:] = [listener for listener in _listeners if listener is not heard]


@contextlib.contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Keep polygraphy from printing, and from warning that TensorRT-RTX ignores the timing cache it always sets."""
    with sys.modules["polygraphy.logger"].G_LOGGER.verbosity(_SILENT), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def errors_in(heard: list[tuple[bool, str]], otherwise: object = "it gave no reason") -> str:
    """TensorRT's errors on one line; where it has none but that there is no GPU, that one, or else `otherwise`."""
    texts = [text for failed, text in heard if failed]
    cleaned = [text for text in dict.fromkeys(map(clean, texts)) if text]
    return "; ".join(cleaned) or " ".join("; ".join(texts or [str(otherwise)]).split())


def warnings_in(heard: list[tuple[bool, str]]) -> list[str]:
    """TensorRT's warnings, each once, the first few."""
    texts = [text for text in dict.fromkeys(clean(text) for failed, text in heard if not failed) if text]
    more = [f"and {len(texts) - _MOST_NOTES} more warnings"] if len(texts) > _MOST_NOTES else []
    return texts[:_MOST_NOTES] + more


def clean(text: str) -> str:
    """One of TensorRT's messages on one line, without its source locations; empty where it says nothing.

    "Make sure input x has Int64 binding" is said of every integer input and output, whatever its binding; CUDA error
    35 is the absence of a driver, which building does without.
    """
    lines = [line for line in text.splitlines() if "cudaError 35" not in line and "Make sure " not in line]
    text = " ".join(" ".join(lines).split())
    text = re.sub(r"^(\S+\.(cpp|hpp|h):\d+: )?", "", text)
    return re.sub(r"\s*\bIn \w+ at /[^\s)]+", "", text)
