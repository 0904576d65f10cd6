"""What the tests of the plugin library share: requests, kernels without code, the builder's part, a driver's record."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeattn.backends.trt.plugin_library import NAME
from edgeattn.backends.trt.plugin_table import write_table
from edgeattn.backends.trt.plugins import Answer, Request, in_codes, launches
from edgeattn.kernels.launch import evaluate, jit_function

triton = pytest.importorskip("triton", reason="kernels need Triton")
from edgeattn.kernels.compile import Compiled, _source  # noqa: E402

HERE = Path(__file__).parent
PLUGINS = HERE.parents[1] / "plugins"
# A folder of TensorRT's headers, or one with a folder of them for each version; read before the tests hide it.
INCLUDE = os.environ.get("EDGEATTN_TENSORRT_INCLUDE", "")
TRITON = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "include"
CUDA = [
    folder
    for folder in (*Path("/usr/local").glob("cuda*/include"), TRITON)
    if (folder / "cuda_runtime_api.h").is_file()
]
BASE = 0x10000  # where the tensors of a launch begin
STEP = 0x1000


def includes() -> dict[str, Path]:
    """TensorRT's headers by version, the newest last."""
    folders = [Path(INCLUDE), *sorted(Path(INCLUDE).glob("*"))] if INCLUDE else [Path("/usr/include/x86_64-linux-gnu")]
    found = {folder.name: folder for folder in folders if (folder / "NvInferRuntime.h").is_file()}
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".") if part.isdecimal()]))


def require_tools() -> None:
    """Skip, in words, where the library cannot be compiled."""
    lacking = [tool for tool in ("cmake", "g++", "gcc") if shutil.which(tool) is None]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed")
    if not includes():
        pytest.skip("no TensorRT headers: set EDGEATTN_TENSORRT_INCLUDE to a folder that has them")
    if not CUDA:
        pytest.skip("no CUDA headers: install Triton or the CUDA toolkit")


def attention(
    q: Sequence[int | str], k: Sequence[int | str], v: Sequence[int | str], dtype: str = "float16", **more: object
) -> Request:
    """softmax(q k^T) v."""
    return Request("SoftmaxAttention", "", (dtype,) * 3, (tuple(q), tuple(k), tuple(v)), {"scale": 1.0, **more})  # type: ignore[dict-item]


MAPS = attention(("d0", 1, "d1", 8), ("d0", 1, "d1", 8), ("d0", 1, "d1", 64))
SQUARE = attention((1, 1, 64, 8), (1, 1, 64, 8), (1, 1, 64, 64))
MASKED = Request(
    "SoftmaxAttention",
    "bias-filled",
    ("float32",) * 4 + ("bool",),
    ((2, 3, 5, 16), (2, 3, 7, 16), (2, 3, 7, 24), (1, 3, 5, 7), (2, 1, 1, 7)),
    {"scale": 0.25, "fill": -1e9},
)
SCALED = Request(
    "SoftmaxAttention",
    "",
    ("bfloat16",) * 5,
    (("d0", 1, 8, "d1"), ("d0", 1, 8, "d1"), ("d0", 1, 64, "d1"), ("d0", 64, "d2", "d3"), (1,)),
    {"scale": 1.0, "layout": "bhdn,bhdn,bhdn,bhdn", "residual": 1},
)
MODULE = Request(
    "CBAM",
    "relu",
    ("float32",) * 7,
    (("d0", 64, "d1", "d2"), (4, 64), (4,), (64, 4), (64,), (1, 2, 7, 7), (1,)),
    {"kernel_shape": (7, 7), "pads": (3, 3, 3, 3)},
)

MIXTURE = Request(
    "SelectiveKernel",
    "2-relu",
    ("float16",) * 6,
    (("d0", 64, "d1", "d2"), ("d0", 64, "d1", "d2"), (8, 64), (8,), (128, 8), (128,)),
)
CODED = in_codes(MIXTURE)


def without_code(request: Request, archs: Sequence[int]) -> Answer:
    """A request's launches with all but their code, which only a GPU would look at."""
    builds = {
        arch: tuple(
            Compiled(
                launch,
                arch,
                f"{launch.kernel.partition('.')[2]}_{request.digest}_{number}",
                _source(jit_function(launch), launch)[1],
                f".version 8.5\n.target sm_{arch}{'a' if arch == 90 else ''}\n",
                b"\x7fELF" + bytes([arch]),
                1024 * (number + 1) + (49152 if arch == 80 else 0),
                32,
                0,
            )
            for number, launch in enumerate(launches(request, arch))
        )
        for arch in archs
    }
    return Answer(request, builds)


@dataclass(frozen=True)
class Built:
    """The library, the program that plays TensorRT's part, and a driver without a GPU, in one folder."""

    folder: Path
    answers: tuple[Answer, ...]

    @property
    def library(self) -> Path:
        return self.folder / "library" / NAME

    def ask(self, *lines: str, driver: Mapping[str, str] | None = None, under: Sequence[str] = ()) -> list[str]:
        """The answers to some commands, one each, then stderr; `driver` has settings, an empty one is none at all."""
        self.log.unlink(missing_ok=True)
        arguments = {
            step.name: "".join("p" if kind == "pointer" else "i" for kind, _ in step.arguments)
            for answer in self.answers
            for steps in answer.builds.values()
            for step in steps
        }
        environment = {
            **os.environ,
            "FAKE_CUDA_LOG": str(self.log),
            "FAKE_CUDA_ARGUMENTS": ",".join(f"{name}={kinds}" for name, kinds in arguments.items()),
            "LD_LIBRARY_PATH": str(self.folder / ("broken" if driver == {} else "driver")),
            **(driver or {}),
        }
        command = [*under, str(self.folder / "builder"), str(self.library)]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, input="\n".join(lines) + "\n", env=environment
        )
        assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
        answers = done.stdout.splitlines()
        assert len(answers) == len(lines), done.stderr
        return [*answers, *done.stderr.splitlines()]

    @property
    def major(self) -> int:
        """The major version of the headers it was compiled with."""
        (found,) = re.findall(
            r"TENSORRT_INCLUDE_DIR:\w+=(.*)", (self.folder / "library" / "CMakeCache.txt").read_text()
        )
        text = Path(found, "NvInferVersion.h").read_text()
        return int(re.findall(r"#define (?:NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) (\d+)", text)[0])

    @property
    def log(self) -> Path:
        return self.folder / "driver" / "log"

    def calls(self, kind: str) -> list[str]:
        """What the driver was told, of one kind: load, launch, unload."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line.partition(" ")[2] for line in lines if line.split()[0] == kind]


def build(folder: Path, include: Path, answers: Sequence[Answer], *settings: str) -> Built:
    """Compile everything; a warning fails."""
    kernels = folder / "kernels"
    kernels.mkdir(parents=True)
    write_table(answers, kernels)
    headers = [f"-DTENSORRT_INCLUDE_DIR={include}", f"-DCUDA_INCLUDE_DIR={CUDA[0]}", f"-DEDGEATTN_KERNELS={kernels}"]
    flags = "-DCMAKE_CXX_FLAGS=-Werror -Wconversion -Wno-sign-conversion"
    library = ["-S", str(PLUGINS), "-B", str(folder / "library"), "-DCMAKE_BUILD_TYPE=Debug", flags]
    run("cmake", *library, *headers, *settings)
    run("cmake", "--build", str(folder / "library"))
    if not settings:
        seen = [word for path in (include, CUDA[0]) for word in ("-isystem", str(path))]
        program = folder / "builder"
        run(
            "g++",
            "-std=c++17",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            *seen,
            str(HERE / "builder.cpp"),
            "-o",
            str(program),
            "-ldl",
            "-rdynamic",
        )
        (folder / "driver").mkdir()
        driver = folder / "driver" / "libcuda.so.1"
        run("gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", str(HERE / "fake_cuda.c"), "-o", str(driver))
        (folder / "broken").mkdir()
        (folder / "broken" / "libcuda.so.1").write_bytes(b"no driver")
    return Built(folder, tuple(answers))


def run(*words: str) -> str:
    """A command's output."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def create(request: Request) -> str:
    """The command that makes a request's plugin, with attributes of the types that TensorRT's parser gives them."""

    kinds = {float: "f", str: "s", tuple: "v", int: "v"}
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in request.attributes.items()
    }
    words = [f"{name}={kinds[type(request.attributes[name])]}:{text}" for name, text in texts.items()]
    return " ".join(["create", request.op, f"variant=s:{request.variant}", *words])


def launched(answer: Answer, arch: int, dims: Mapping[str, int]) -> list[str]:
    """What the driver must be told: name, grid, threads, shared memory, arguments."""
    request = answer.request
    places = {name: BASE + STEP * number for number, name in enumerate((*request.inputs, "y"))}
    workspace = BASE + STEP * len(places)
    lines = []
    for step in answer.builds[arch]:
        for name, count in step.launch.scratch.items():
            places[name] = workspace
            workspace += -(-4 * evaluate(count, dims) // 256) * 256
        arguments = [
            hex(places[name]) if kind == "pointer" else str(evaluate(step.launch.integers[name], dims))
            for kind, name in step.arguments
        ]
        shape = f"{evaluate(step.launch.grid, dims)},1,1 {step.threads},1,1 {step.shared}"
        lines.append(" ".join([step.name, shape, *arguments]))
    return lines


def tensors(request: Request, dims: Mapping[str, int]) -> str:
    """The inputs at known sizes, as the commands have them."""
    names = {"float32": "float", "float16": "half", "bfloat16": "bf16", "bool": "bool"}
    sizes = ["x".join(str(dims.get(str(size), size)) for size in shape) for shape in request.shapes]
    return " ".join(f"{names[dtype]}:{shape}" for dtype, shape in zip(request.dtypes, sizes, strict=True))


def addresses(request: Request) -> str:
    """Those of inputs, output and workspace."""
    return " ".join(hex(BASE + STEP * number) for number in range(len(request.inputs) + 2))
