"""The plugin library on disk: built from `plugins/` with the kernels that some models need, and read back.

Beside `libedgeattn_plugins.so` stands `libedgeattn_plugins.so.json`, which says what is in it; nothing else about the
library can be known without loading it, and a library for a Jetson does not load where it is built.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn import files
from edgeattn.backends.base import Progress, silent
from edgeattn.backends.trt.plugin_table import FILES, LISTING, write_table
from edgeattn.backends.trt.plugins import Request, compile_request, request_from_json
from edgeattn.engine import this_platform
from edgeattn.errors import BuildError, EdgeAttnError, InputError, UnsupportedError, one_line
from edgeattn.reports.text import table
from edgeattn.tensors import Dim

NAME = "libedgeattn_plugins.so"
SOURCES = Path(__file__).parents[3] / "plugins"
FORMAT = 1
CROSS = {
    "linux-aarch64": (
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_ASM_COMPILER=aarch64-linux-gnu-gcc",
    )
}


def _common(sizes: Mapping[str, Dim], d_v: int, scale: float, layout: str) -> Request:
    """An attention of any batch and length."""
    operands: tuple[dict[str, Dim], ...] = ({"n": "d2"}, {"n": "d3"}, {"n": "d3", "d": d_v})
    shapes = tuple(
        tuple({**sizes, **own}[axis] for axis in axes)
        for axes, own in zip(layout.split(",")[:3], operands, strict=True)
    )
    return Request("SoftmaxAttention", "", ("float16",) * 3, shapes, {"scale": scale, "layout": layout})


# Self-attention on maps as SAGAN and non-local networks have it, and that of transformers, made of one product and of
# three. Kernels for a model's own sizes are faster; the gates have them only for known channels.
COMMON = (
    *(_common({"b": "d0", "h": 1, "d": d}, e, 1.0, "bhdn,bhdn,bhdn,bhdn") for d, e in ((8, 64), (16, 128), (32, 256))),
    *(
        _common({"b": "d0", "h": "d1", "d": d}, d, scale, layout)
        for d, scale in ((32, 32**-0.5), (64, 64**-0.5))
        for layout in ("bhnd,bhnd,bhnd,bnhd", "bnhd,bnhd,bnhd,bnhd")
    ),
)


@dataclass(frozen=True)
class PluginLibrary:
    """What is in a library: what it was compiled with, and the kernels it has, each for some architectures."""

    path: Path
    sha256: str
    platform: str
    tensorrt: str  # version of the headers
    kernels: tuple[tuple[Request, tuple[str, ...]], ...]

    def answers(self, request: Request) -> bool:
        """Whether it has kernels that run a request."""
        return any(known.covers(request) for known, _ in self.kernels)

    def __str__(self) -> str:
        rows = [(str(request), ", ".join(archs)) for request, archs in self.kernels]
        head = f"{self.path} ({self.platform}, TensorRT {self.tensorrt}, sha256 {self.sha256[:12]})"
        return f"{head}\n\n{table(rows, ('kernels', 'for'))}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they stand beside the library."""
        return {
            "format": FORMAT,
            "sha256": self.sha256,
            "platform": self.platform,
            "tensorrt": self.tensorrt,
            "kernels": [{**request.to_json(), "archs": list(archs)} for request, archs in self.kernels],
        }


def write_kernels(
    requests: Sequence[Request],
    archs: Sequence[int],
    folder: Path,
    progress: Progress = silent,
) -> None:
    """Compile kernels ahead of time and write them as C++ for CMake: see `plugin_table`.

    Raises:
        UnsupportedError: a request has no kernel on any of the architectures.
        BuildError: Triton or ptxas failed.
    """
    answers = [compile_request(request, archs, progress) for request in requests]
    folder.mkdir(parents=True, exist_ok=True)
    write_table(answers, folder)


def build_library(
    requests: Sequence[Request],
    archs: Sequence[int],
    output: Path,
    *,
    tensorrt_include: Path | None = None,
    platform: str = "",
    progress: Progress = silent,
) -> PluginLibrary:
    """Compile kernels and the library around them.

    Args:
        requests: what it shall answer.
        archs: compute capabilities, 87 for sm_87.
        output: the folder for the library.
        tensorrt_include: TensorRT's headers; None for those that are installed.
        platform: such as `linux-aarch64`; empty for this machine's.
        progress: told of each step.

    Raises:
        UnsupportedError: CMake, the sources, headers or a compiler are missing; or see `write_kernels`.
        BuildError: the compiler failed.
    """
    platform = platform or this_platform()
    settings = _settings(platform)
    if tensorrt_include is not None:
        if not (tensorrt_include / "NvInferRuntime.h").is_file():
            raise InputError(f"{tensorrt_include} has no NvInferRuntime.h: name the folder of TensorRT's headers")
        settings.append(f"-DTENSORRT_INCLUDE_DIR={tensorrt_include.resolve()}")
    with tempfile.TemporaryDirectory() as temporary:
        kernels, build = Path(temporary, "kernels"), Path(temporary, "build")
        kernels.mkdir()
        for name in FILES:  # so that what CMake lacks is known before the kernels are compiled
            (kernels / name).touch()
        _cmake(UnsupportedError, "-S", str(SOURCES), "-B", str(build), f"-DEDGEATTN_KERNELS={kernels}", *settings)
        write_kernels(requests, archs, kernels, progress)
        progress("compiling the library", None)
        _cmake(BuildError, "--build", str(build))
        output.mkdir(parents=True, exist_ok=True)
        files.write_atomic(output / NAME, files.read_bytes(build / NAME))
        made = PluginLibrary(
            output / NAME,
            files.sha256_file(output / NAME),
            platform,
            _version(build),
            _kernels(json.loads(files.read_bytes(kernels / LISTING))),
        )
    files.write_json(_listing(made.path), made.to_json())
    return made


def read_library(path: str | Path) -> PluginLibrary:
    """What is in a library, without loading it.

    Raises:
        InputError: there is no such file, or what stands beside it does not describe it.
    """
    path = Path(path)
    digest, listing = files.sha256_file(path), _listing(path)
    try:
        record = json.loads(files.read_bytes(listing))
        if record["format"] != FORMAT or record["sha256"] != digest:
            raise ValueError("it describes another library")
        return PluginLibrary(path, digest, record["platform"], record["tensorrt"], _kernels(record["kernels"]))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise InputError(f"{listing} does not say what is in {path}: {one_line(err)}; build the library again") from err


def _settings(platform: str) -> list[str]:
    """What CMake has to be told for a platform."""
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise UnsupportedError(f"the library's sources are not at {SOURCES}: build it from a clone of edgeattn")
    if shutil.which("cmake") is None:
        raise UnsupportedError("CMake is not installed: apt install cmake, or pip install cmake")
    settings = ["-DCMAKE_BUILD_TYPE=Release"]
    if triton := importlib.util.find_spec("triton"):
        headers = Path(str(triton.origin)).parent / "backends" / "nvidia" / "include"
        settings.append(f"-DEDGEATTN_CUDA_FALLBACK={headers}")
    if platform == this_platform():
        return settings
    if platform not in CROSS:
        raise UnsupportedError(f"no compiler for {platform} from here; known: {', '.join((this_platform(), *CROSS))}")
    if shutil.which("aarch64-linux-gnu-g++") is None:
        raise UnsupportedError(f"the compiler for {platform} is not installed: apt install g++-aarch64-linux-gnu")
    return [*settings, *CROSS[platform]]


def _cmake(failure: type[EdgeAttnError], *words: str) -> None:
    done = subprocess.run(["cmake", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        errors = "\n".join(line for line in done.stdout.splitlines() if "error" in line)
        raise failure(f"cannot build the plugin library: {one_line(errors or done.stderr)}")


def _version(build: Path) -> str:
    """Of the headers that CMake found."""
    found = re.search(r"^TENSORRT_INCLUDE_DIR:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    text = Path(found[1] if found else "", "NvInferVersion.h").read_text()
    numbers = dict(re.findall(r"#define (?:NV_TENSORRT|TRT)_(M\w+?)(?:_ENTERPRISE)? (\d+)", text))
    return f"{numbers['MAJOR']}.{numbers['MINOR']}"


def _kernels(records: Any) -> tuple[tuple[Request, tuple[str, ...]], ...]:
    return tuple((request_from_json(record), tuple(record["archs"])) for record in records)


def _listing(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
