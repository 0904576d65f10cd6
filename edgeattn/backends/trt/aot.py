"""Attentions as TensorRT's ahead-of-time plugins (`tensorrt.plugin`): the kernels travel in the engine, as PTX.

Such a plugin is one launch, has no attributes at run time, and gets its arguments as inputs, int32 numbers, outputs,
in this order. So an attention becomes a chain of plugins, one for each launch, whose names stand for everything that is
compiled in, and the PTX is given that order of parameters.

Source: `tensorrt.plugin.register` and `aot_impl` in NVIDIA/TensorRT, python/packaging/bindings_wheel, 10.13 and 11.1.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgeattn.backends.trt.capabilities import NAMESPACE
from edgeattn.backends.trt.plugins import Answer, Request, compile_request, request_of
from edgeattn.errors import BuildError
from edgeattn.graph import Graph
from edgeattn.kernels.launch import Expression, evaluate
from edgeattn.ops.base import DOMAIN
from edgeattn.tensors import dtype_named

TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8"}  # what TensorRT calls them
ATTRIBUTES: Mapping[str, str | int] = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}


@dataclass(frozen=True)
class Output:
    """What a step writes: the name in its kernels, dtype and shape."""

    name: str
    dtype: str
    shape: tuple[Expression, ...]


@dataclass(frozen=True)
class Step:
    """One launch as a plugin.

    Attributes:
        name: the plugin's; the same for the same code.
        inputs: what it reads, by the names of its kernels, then inputs of the attention that only tell sizes.
        outputs: what it writes.
        sizes: for each open size, the input and the axis that have it.
        entry: the kernel's name in the PTX.
        ptx: the parameters in the order of inputs, integers, outputs.
        integers: between inputs and outputs.
        grid: how many programs.
        threads: in each.
        shared: bytes of shared memory for each.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[Output, ...]
    sizes: Mapping[str, tuple[int, int]]
    entry: str
    ptx: str
    integers: tuple[Expression, ...]
    grid: Expression
    threads: int
    shared: int


def steps_of(answer: Answer, arch: int) -> list[Step]:
    """The chain of plugins that computes what a request asks for."""
    request = answer.request
    y = tuple(str(request.shapes[source][axis]) for source, axis in request.output)
    steps = []
    for number, made in enumerate(answer.builds[arch]):
        launch = made.launch
        pointers = [name for kind, name in made.arguments if kind == "pointer"]
        outputs = tuple(
            Output("y", request.result, y) if name == "y" else Output(name, "float32", (launch.scratch[name],))
            for name in pointers
            if name == "y" or name in launch.scratch
        )
        written = [output.name for output in outputs]
        integers = [name for kind, name in made.arguments if kind == "int32"]
        expressions = [
            launch.grid,
            *(launch.integers[name] for name in integers),
            *(size for o in outputs for size in o.shape),
        ]
        inputs, sizes = _with_sizes(request, [name for name in pointers if name not in written], expressions)
        order = [name for _, name in made.arguments]
        places = [order.index(name) if name in order else None for name in (*inputs, *integers, *written)]
        steps.append(
            Step(
                f"{request.op}_{request.digest}_sm{arch}_{number}",
                inputs,
                outputs,
                sizes,
                made.name,
                with_parameters(made.ptx, places),
                tuple(launch.integers[name] for name in integers),
                launch.grid,
                made.threads,
                made.shared,
            )
        )
    return steps


def with_parameters(ptx: str, places: Sequence[int | None]) -> str:
    """PTX whose entry takes its parameters in another order: each by the place it had, None for one it has no use for.

    Raises:
        BuildError: the PTX has no entry point of the known form.
    """
    header = re.search(r"(\.visible \.entry \w+\(\n)(.*?)(\n\))", ptx, re.DOTALL)
    if header is None:
        raise BuildError("the PTX of a kernel has no entry point of the known form")
    own = header[2].split(",\n")
    lines = [own[place] if place is not None else f"\t.param .u64 unused_{count}" for count, place in enumerate(places)]
    return ptx[: header.start(2)] + ",\n".join(lines) + ptx[header.end(2) :]


def embed(graph: Graph, arch: int, register: Callable[[Step], None]) -> Graph:
    """Replace each plugin node by its chain; the given graph stays as it is.

    Args:
        graph: with nodes as `lowering` makes them for plugins, its types known.
        arch: of the GPU that the engine is for, 87 for sm_87.
        register: told of every step before the graph is handed out; see `registration`.

    Raises:
        UnsupportedError: a node has no kernel.
        BuildError: Triton or ptxas failed.
    """
    edited = graph.copy()
    for node in [node for node in edited.model.graph if node.domain == DOMAIN]:
        request = request_of(node)
        steps = steps_of(compile_request(request, [arch]), arch)
        for step in steps:
            register(step)
        _replace(edited.model.graph, node, request, steps)
    return edited


def registration(trt: Any, plugins: Any) -> Callable[[Step], None]:
    """A function that makes steps known to TensorRT, each once in a process.

    Args:
        trt: the module `tensorrt`.
        plugins: the module `tensorrt.plugin`.
    """

    def register(step: Step) -> None:
        plugin = f"{NAMESPACE}::{step.name}"
        if plugin not in _registered:
            plugins.register(plugin)(_description(step, trt, plugins))
            plugins.aot_impl(plugin)(_implementation(step, plugins))
            _registered.add(plugin)

    return register


_registered: set[str] = set()


def _with_sizes(
    request: Request, reads: Sequence[str], expressions: Sequence[Expression]
) -> tuple[tuple[str, ...], dict[str, tuple[int, int]]]:
    """Inputs that tell every size in some expressions, and where each of these is found."""
    shapes = dict(zip(request.inputs, request.shapes, strict=True))
    wanted = {name for text in expressions for name in re.findall(r"\bd\d+\b", text)}
    inputs = list(reads)
    for name, shape in shapes.items():
        told = {size for read in inputs for size in shapes.get(read, ())}
        if (wanted - told) & set(shape) and name not in inputs:
            inputs.append(name)
    sizes: dict[str, tuple[int, int]] = {}
    for place, name in enumerate(inputs):
        for axis, size in enumerate(shapes.get(name, ())):
            if size in wanted:
                sizes.setdefault(str(size), (place, axis))
    return tuple(inputs), sizes


def _replace(graph: ir.Graph, node: ir.Node, request: Request, steps: Sequence[Step]) -> None:
    """Put a chain in a node's place; its last output takes the node's name."""
    given = [value for value in node.inputs if value is not None]
    tensors = dict(zip(request.inputs, given, strict=True))
    old = node.outputs[0]
    for step in steps:
        attributes = ir.convenience.convert_attributes(ATTRIBUTES)
        made = ir.Node(
            DOMAIN, step.name, [tensors[name] for name in step.inputs], attributes, num_outputs=len(step.outputs)
        )
        made.name = f"{node.name}/{step.name}"
        for output, value in zip(step.outputs, made.outputs, strict=True):
            value.name = f"{made.name}/{output.name}"
            value.type = ir.TensorType(ir.DataType(dtype_named(output.dtype).onnx))
            value.shape = ir.Shape([None] * len(output.shape))
            tensors[output.name] = value
        graph.insert_before(node, made)
    result = tensors["y"]
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    name, old.name = old.name, None
    graph.remove(node, safe=True)
    result.name = name


class _Size:
    """TensorRT's symbolic size, which multiplies with numbers on its right only."""

    def __init__(self, symbol: Any) -> None:
        self.symbol = symbol

    def __mul__(self, other: Any) -> _Size:
        return _Size(self.symbol * _bare(other))

    def __add__(self, other: Any) -> _Size:
        return _Size(self.symbol + _bare(other))

    __rmul__, __radd__ = __mul__, __add__


def _bare(value: Any) -> Any:
    return value.symbol if isinstance(value, _Size) else value


def _evaluator(step: Step, inputs: Sequence[Any], plugins: Any) -> Callable[[Expression], Any]:
    """Evaluates a step's expressions, given TensorRT's descriptions of its inputs."""
    dims = {name: _Size(inputs[place].shape_expr[axis]) for name, (place, axis) in step.sizes.items()}

    def cdiv(size: Any, by: Any) -> Any:
        if isinstance(size, int) and isinstance(by, int):
            return -(-size // by)
        return _Size(plugins.cdiv(_bare(size), _bare(by)))

    return lambda expression: _bare(evaluate(expression, dims, cdiv))


def _description(step: Step, trt: Any, plugins: Any) -> Callable[..., Any]:
    """What `tensorrt.plugin.register` decorates: outputs from inputs, with one annotated argument for each input."""

    def describe(*inputs: Any) -> Any:
        value = _evaluator(step, inputs, plugins)
        return tuple(
            plugins.from_shape_expr(tuple(map(value, output.shape)), getattr(trt.DataType, TYPES[output.dtype]))
            for output in step.outputs
        )

    returned = types.GenericAlias(tuple, (plugins.TensorDesc,) * len(step.outputs))
    return _signed(describe, step.inputs, plugins, (), returned)


def _implementation(step: Step, plugins: Any) -> Callable[..., Any]:
    """What `tensorrt.plugin.aot_impl` decorates: the kernel and its launch."""

    def implement(*arguments: Any) -> Any:
        value = _evaluator(step, arguments[: len(step.inputs)], plugins)
        launch = plugins.KernelLaunchParams()
        launch.grid_x, launch.block_x, launch.shared_mem = value(step.grid), step.threads, step.shared
        integers = plugins.SymIntExprs(len(step.integers))
        for place, expression in enumerate(step.integers):
            integers[place] = plugins.SymInt32(value(expression))
        return step.entry, step.ptx, launch, integers

    returned = tuple[str, str, plugins.KernelLaunchParams, plugins.SymIntExprs]
    return _signed(implement, step.inputs, plugins, ("outputs", "tactic"), returned)


def _signed(
    function: Callable[..., Any], inputs: Sequence[str], plugins: Any, more: Sequence[str], returned: object
) -> Callable[..., Any]:
    """A function with the signature by which TensorRT gets to know its arguments."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=plugins.TensorDesc) for name in inputs]
    parameters += [inspect.Parameter(name, kind) for name in more]
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    return function
