"""What a launch of a kernel is, as a value: arguments, grid and constants, before there is a tensor or a GPU.

Sizes that a launch depends on are expressions in the names of dimensions, such as `cdiv(n, 64) * heads`. They are
Python and C++ at once, given a function `cdiv`, so that code on either side can evaluate them when shapes are known.
"""

from __future__ import annotations

import ast
import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeattn.errors import UsageError
from edgeattn.tensors import MAX_ELEMENTS, Dim, format_shape

if TYPE_CHECKING:
    from torch import Tensor

Expression = str
ALIGNED = 16  # what Triton needs to know divides an address or a stride, to load vectors


class Cost(NamedTuple):
    """What an op costs.

    Attributes:
        flops: multiplications and additions.
        bytes: of the inputs, each once, and of the output: the fewest that anything can move.
        moved: bytes that the kernels read and write, pass by pass, if no cache holds any of them.
    """

    flops: int
    bytes: int
    moved: int


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel.

    Attributes:
        kernel: module and function, `softmax_attention.attend`.
        pointers: dtype of each tensor, by parameter; the parameter has the tensor's name. All are contiguous, of fewer
            than 2^31 elements, and aligned to 16 bytes.
        integers: int32 arguments, by parameter.
        constants: what is compiled in, by parameter.
        grid: how many programs, in one dimension.
        warps: of 32 threads, in each program.
        stages: how many blocks a loop has under way.
        scratch: float32 tensors that this launch writes and later ones read, by name, and how many elements each has.
    """

    kernel: str
    pointers: Mapping[str, str]
    integers: Mapping[str, Expression]
    constants: Mapping[str, int | float | str | bool | None]
    grid: Expression
    warps: int
    stages: int = 1
    scratch: Mapping[str, Expression] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """A kernel, compiled for one architecture: all that it takes to launch it.

    Attributes:
        launch: what it was compiled for; its expressions give the grid and the integers.
        arch: compute capability.
        name: the entry point.
        arguments: what it takes, in order, by name: `pointer` to a tensor of the launch, or `int32`, the value of
            an integer of the launch. Those that are not here are compiled in. There are no hidden ones.
        ptx: text, which drivers translate for their chip.
        cubin: the same as machine code, which all drivers of one CUDA generation load, whatever PTX they know.
        shared: bytes of dynamic shared memory to launch it with.
        registers: of one thread.
        spilled: bytes that a thread keeps in memory for want of registers.
    """

    launch: Launch
    arch: int
    name: str
    arguments: tuple[tuple[str, str], ...]
    ptx: str
    cubin: bytes
    shared: int
    registers: int
    spilled: int

    @property
    def threads(self) -> int:
        return 32 * self.launch.warps

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        return {**asdict(self), "cubin": base64.b64encode(self.cubin).decode("ascii")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Compiled:
        """What `to_json` gave."""
        arguments = tuple((str(kind), str(name)) for kind, name in data["arguments"])
        cubin = base64.b64decode(data["cubin"])
        return cls(**{**data, "launch": Launch(**data["launch"]), "arguments": arguments, "cubin": cubin})


# Expressions


def product(*factors: Dim) -> Expression:
    """The product of sizes and expressions, its numbers multiplied."""
    number = math.prod(factor if isinstance(factor, int) else 1 for factor in factors)
    words: list[str] = []
    for factor in factors:
        if isinstance(factor, str) and factor.isdecimal():
            number *= int(factor)
        elif isinstance(factor, str):
            words.append(factor if factor.isidentifier() or factor.startswith("cdiv(") else f"({factor})")
    return " * ".join([*([str(number)] if number != 1 or not words else []), *words]) if number else "0"


def cdiv(size: Dim, by: int) -> Expression:
    """How many blocks of `by` cover a size."""
    return str(-(-int(size) // by)) if str(size).isdecimal() else f"cdiv({size}, {by})"


def evaluate(expression: Expression, dims: Mapping[str, Any], cdiv: Callable[[Any, Any], Any] | None = None) -> Any:
    """The value of an expression.

    Args:
        expression: sums and products of numbers, names and `cdiv(a, b)`.
        dims: the value of each name: an int, or anything that adds and multiplies, such as TensorRT's symbolic ones.
        cdiv: how those divide, rounding up.

    Raises:
        UsageError: it is none, or a name has no value.
    """
    divide = cdiv or (lambda a, b: -(-a // b))

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in dims:
                return dims[name]
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.Call(func=ast.Name(id="cdiv"), args=[size, by]):
                return divide(value(size), value(by))
        raise UsageError(f"cannot evaluate {ast.unparse(node)!r} in {expression!r}; known: {', '.join(dims) or 'none'}")

    return value(_parse(expression))


def factor(expression: Expression) -> int:
    """A number that divides an expression whatever its dimensions are; 0 divides 0."""

    def divisor(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return divisor(left) * divisor(right)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return math.gcd(divisor(left), divisor(right))
        return 1

    return divisor(_parse(expression))


def too_large(shapes: Sequence[Sequence[Dim]]) -> list[str]:
    """Why int32 cannot count the elements of a tensor; only of sizes that are known."""
    known = [(shape, math.prod(size for size in shape if isinstance(size, int))) for shape in shapes]
    return [
        f"a tensor {format_shape(shape)}; at most {MAX_ELEMENTS} elements"
        for shape, count in known
        if count > MAX_ELEMENTS
    ]


def _parse(expression: Expression) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as err:
        raise UsageError(f"not an expression: {expression!r}") from err


# Running


def jit_function(launch: Launch) -> Any:
    """The kernel itself, as Triton holds it."""
    import importlib

    module, _, name = launch.kernel.partition(".")
    return getattr(importlib.import_module(f"edgeattn.kernels.{module}"), name)


def run(launches: Sequence[Launch], tensors: Mapping[str, Tensor], dims: Mapping[str, int] | None = None) -> None:
    """Run launches by Triton itself: compiled on the spot where the tensors are on a GPU, else by its interpreter.

    Args:
        launches: in order.
        tensors: inputs and outputs by name, contiguous.
        dims: the sizes that the launches leave open.
    """
    import torch

    dims, tensors = dims or {}, dict(tensors)
    device = next(iter(tensors.values())).device
    for launch in launches:
        for name, count in launch.scratch.items():
            tensors[name] = torch.full((evaluate(count, dims),), torch.nan, dtype=torch.float32, device=device)
        jit_function(launch)[(evaluate(launch.grid, dims),)](
            **{name: tensors[name] for name in launch.pointers},
            **{name: evaluate(size, dims) for name, size in launch.integers.items()},
            **launch.constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
