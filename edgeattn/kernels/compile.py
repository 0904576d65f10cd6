"""Kernels, compiled ahead of time to PTX and a cubin for an architecture: no GPU needed, and no Triton after."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from edgeattn.errors import BuildError, UnsupportedError, UsageError, one_line
from edgeattn.kernels.launch import ALIGNED, Compiled, Launch, factor, jit_function

__all__ = ["PTX_ISA", "Compiled", "compile_launch"]

# The ISA of the PTX, by architecture: the oldest that Triton's code for it can be written in and that the oldest
# supported driver takes. 8.5 is JetPack 6 (CUDA 12.6); 110 came with CUDA 13.0, 120 with 12.8, 121 with 12.9.
PTX_ISA = {75: 85, 80: 85, 86: 85, 87: 85, 89: 85, 90: 85, 110: 90, 120: 87, 121: 88}
TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "bool": "i1", "int8": "i8"}


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile what a launch needs.

    Integers that are 1 whatever the shapes are compiled in; of the others the compiler knows which power of two up to
    16 divides them, so that it can load vectors.

    Raises:
        UnsupportedError: there is no such architecture.
        UsageError: the kernels were imported for Triton's interpreter.
        BuildError: Triton or ptxas failed.
    """
    if arch not in PTX_ISA:
        raise UnsupportedError(f"no kernels for sm_{arch}; known: {', '.join(f'sm_{known}' for known in PTX_ISA)}")
    kernel = jit_function(launch)
    if not isinstance(kernel, triton.JITFunction):
        raise UsageError(f"{launch.kernel} was imported for the interpreter; unset TRITON_INTERPRET to compile")
    source, arguments = _source(kernel, launch)
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "ptx_version": PTX_ISA[arch],
        "enable_fp_fusion": True,
    }
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # paths of this machine
        try:
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        except Exception as err:  # whatever MLIR, LLVM and ptxas raise
            raise BuildError(f"{launch.kernel} does not compile for sm_{arch}: {one_line(err)}") from err
    if made.metadata.global_scratch_size or made.metadata.num_warps != launch.warps:
        raise BuildError(f"{launch.kernel} for sm_{arch} needs more than its launch says: {made.metadata}")
    ptx = _without_hidden_arguments(made.asm["ptx"], len(arguments), launch.kernel)
    cubin, log = _assemble(ptx, arch)
    numbers = {word: int(count) for count, word in re.findall(r"(\d+) (registers|bytes spill stores)", log)}
    return Compiled(
        launch,
        arch,
        made.metadata.name,
        arguments,
        ptx,
        cubin,
        made.metadata.shared,
        numbers["registers"],
        numbers["bytes spill stores"],
    )


def _source(kernel: Any, launch: Launch) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """What Triton compiles, and the arguments that are left."""
    ones = {name: 1 for name, size in launch.integers.items() if size == "1"}
    constants: Mapping[str, Any] = {**launch.constants, **ones}
    signature, hints, arguments = {}, {}, []
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name in launch.pointers:
            signature[name], kind, known = f"*{TYPES[launch.pointers[name]]}", "pointer", ALIGNED
        else:
            signature[name], kind, known = "i32", "int32", factor(launch.integers[name])
        arguments.append((kind, name))
        if (divisor := math.gcd(known, ALIGNED)) > 1:
            hints[(place,)] = [["tt.divisibility", divisor]]
    return ASTSource(kernel, signature, dict(constants), hints), tuple(arguments)


def _without_hidden_arguments(ptx: str, count: int, kernel: str) -> str:
    """PTX whose entry takes the kernel's own arguments only: Triton appends two pointers that nothing here uses."""
    header = re.search(r"(\.visible \.entry \w+\(\n)(.*?)(\n\))", ptx, re.DOTALL)
    if header is None:
        raise BuildError(f"{kernel}: Triton's PTX has no entry point of the known form")
    own, hidden = (header[2].split(",\n")[part] for part in (slice(count), slice(count, None)))
    text = ptx[: header.start()] + header[1] + ",\n".join(own) + header[3] + ptx[header.end() :]
    for parameter in hidden:
        if parameter.split()[-1] in text:
            raise BuildError(f"{kernel}: Triton's PTX uses its hidden argument {parameter.split()[-1]}")
    return text


def _assemble(ptx: str, arch: int) -> tuple[bytes, str]:
    """The cubin, and what ptxas says of it."""
    # The older of Triton's two assemblers, where it knows the chip: drivers of CUDA 12 take what it makes.
    tool = triton.knobs.nvidia.ptxas_blackwell if arch == 110 else triton.knobs.nvidia.ptxas
    suffix = "a" if arch >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="ascii")
        command = [tool.path, "-v", f"--gpu-name=sm_{arch}{suffix}", str(source), "-o", str(target)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"ptxas cannot assemble a kernel for sm_{arch}: {one_line(done.stderr)}")
        return target.read_bytes(), done.stderr
