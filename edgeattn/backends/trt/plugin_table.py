"""The C++ table of kernels that the plugin library is compiled with: `kernels.cpp`, and `kernels.bin` with their code.

See `plugins/src/table.h` for what each part means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn import files
from edgeattn.backends.trt.plugins import Answer, Request
from edgeattn.kernels.launch import Expression
from edgeattn.tensors import Dim

if TYPE_CHECKING:
    from edgeattn.kernels.compile import Compiled

FILES = ("kernels.bin", "kernels.cpp")
LISTING = "kernels.json"
DTYPES = {"float32": "kFLOAT", "float16": "kHALF", "bfloat16": "kBF16", "bool": "kBOOL", "int8": "kINT8"}
ALIGNED = 64  # where code begins in the blob


class _Table:
    """Collects the blob and the C++ of a table; arrays and functions are named by number."""

    def __init__(self) -> None:
        self.blob = bytearray()
        self.places: dict[bytes, int] = {}
        self.expressions: dict[Expression, str] = {}
        self.arrays: list[str] = []

    def code(self, data: bytes) -> int:
        """Where some code begins in the blob: once for all that share it."""
        if data not in self.places:
            self.blob.extend(bytes(-len(self.blob) % ALIGNED))
            self.places[data] = len(self.blob)
            self.blob.extend(data)
        return self.places[data]

    def expression(self, text: Expression) -> str:
        """The C++ function of an expression in d0, d1, ..."""
        return self.expressions.setdefault(text, f"size{len(self.expressions)}")

    def array(self, kind: str, items: Sequence[str]) -> str:
        """A constant array, as the initialiser of a span."""
        if not items:
            return "{nullptr, 0}"
        name = f"array{len(self.arrays)}"
        self.arrays.append(f"constexpr {kind} {name}[] = {{{', '.join(items)}}};")
        return f"{{{name}, {len(items)}}}"


def write_table(answers: Sequence[Answer], folder: Path) -> None:
    """Write `kernels.cpp`, `kernels.bin`, and `kernels.json`, which says what is in them, into a folder.

    Raises:
        EdgeAttnError: there is no such folder, or the files cannot be written.
    """
    table = _Table()
    kernels = [_kernel(table, answer) for answer in answers]
    listing = [
        {**answer.request.to_json(), "archs": [f"sm_{arch}" for arch in sorted(answer.builds)]} for answer in answers
    ]
    for name, data in zip(FILES, (bytes(table.blob), _source(table, kernels).encode()), strict=True):
        files.write_atomic(folder / name, data)
    files.write_json(folder / LISTING, listing)


def _source(table: _Table, kernels: Sequence[str]) -> str:
    functions = [
        f"std::int64_t {name}([[maybe_unused]] std::int64_t const* dims)\n{{\n    return {_body(text)};\n}}\n"
        for text, name in table.expressions.items()
    ]
    parts = [
        '#include "table.h"\n',
        "namespace edgeattn\n{\n\nnamespace\n{\n\nusing nvinfer1::DataType;\n",
        *functions,
        *table.arrays,
        "",
        f"Kernel const table[] = {{{', '.join(kernels)}}};",
        "\n}  // namespace\n",
        f"extern Span<Kernel> const kernels{{table, {len(kernels)}}};",
        "\n}  // namespace edgeattn\n",
    ]
    return "\n".join(parts)


def _body(text: Expression) -> str:
    return re.sub(r"\bd(\d+)\b", r"dims[\1]", text)


def _kernel(table: _Table, answer: Answer) -> str:
    request = answer.request
    attributes = [_attribute(name, value) for name, value in sorted(request.fields.items())]
    numbers = {name: number for number, name in enumerate(request.open)}
    inputs = [
        f"{{{_text(name)}, DataType::{DTYPES[dtype]}, {table.array('std::int64_t', _sizes(shape, numbers))}}}"
        for name, dtype, shape in zip(request.inputs, request.dtypes, request.shapes, strict=True)
    ]
    parts = (
        _text(request.op),
        table.array("Attribute", attributes),
        table.array("Input", inputs),
        f"DataType::{DTYPES[request.result]}",
        table.array("Axis", [f"{{{source}, {axis}}}" for source, axis in request.output]),
        str(len(numbers)),
        table.array("Build", [_build(table, request, arch, made) for arch, made in sorted(answer.builds.items())]),
    )
    return f"{{{', '.join(parts)}}}"


def _sizes(shape: Sequence[Dim], numbers: dict[str, int]) -> list[str]:
    return [str(size if isinstance(size, int) else -1 - numbers[size]) for size in shape]


def _attribute(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return f"{{{_text(name)}, {_text(value)}, 0}}"
    return f"{{{_text(name)}, nullptr, {float(value)!r}}}"


def _build(table: _Table, request: Request, arch: int, steps: Sequence[Compiled]) -> str:
    tensors = {name: number for number, name in enumerate((*request.inputs, "y"))}
    scratch: list[str] = []
    launches: list[str] = []
    for step in steps:
        for name, count in step.launch.scratch.items():
            tensors[name] = len(request.inputs) + 1 + len(scratch)
            scratch.append(table.expression(count))
        arguments = [
            f"{{{tensors[name]}, nullptr}}"
            if kind == "pointer"
            else f"{{-1, {table.expression(step.launch.integers[name])}}}"
            for kind, name in step.arguments
        ]
        parts = (
            _text(step.name),
            str(step.threads),
            str(step.shared),
            table.expression(step.launch.grid),
            table.array("Argument", arguments),
            str(table.code(step.cubin)),
            str(table.code(step.ptx.encode() + b"\0")),
        )
        launches.append(f"{{{', '.join(parts)}}}")
    forward = all(re.search(r"^\.target sm_\d+$", step.ptx, re.MULTILINE) for step in steps)
    spans = table.array("Expression", scratch), table.array("Launch", launches)
    return f"{{{arch}, {str(forward).lower()}, {', '.join(spans)}}}"


def _text(text: str) -> str:
    return json.dumps(text)
