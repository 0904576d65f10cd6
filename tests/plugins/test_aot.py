from __future__ import annotations

import dataclasses
import inspect
import re
import types
from pathlib import Path
from typing import Any

import pytest

from edgeattn.backends.trt import aot
from edgeattn.backends.trt.plugins import Answer, Request, compile_request, request_of, requests_in
from edgeattn.errors import BuildError
from edgeattn.fuse import fuse
from edgeattn.kernels.compile import _assemble
from edgeattn.kernels.launch import evaluate
from edgeattn.lowering import to_backend
from edgeattn.lowering.tensorrt import choose
from edgeattn.ops.base import DOMAIN
from tests.graphs import self_attention
from tests.plugins.library import CODED, MAPS, MASKED, MODULE, SCALED, SQUARE, without_code
from tests.plugins.offers import offer

DIMS = {"d0": 3, "d1": 31, "d2": 17, "d3": 2}


def with_entries(request: Request, arch: int = 87) -> Answer:
    """A request's launches with PTX that has nothing but its entry point."""
    answer = without_code(request, [arch])

    def entry(name: str, arguments: tuple[tuple[str, str], ...]) -> str:
        widths = {"pointer": "u64", "int32": "u32"}
        lines = ",\n".join(f"\t.param .{widths[kind]} {name}_{place}" for place, (kind, _) in enumerate(arguments))
        return f".visible .entry {name}(\n{lines}\n)\n{{\n}}\n"

    made = [dataclasses.replace(step, ptx=entry(step.name, step.arguments)) for step in answer.builds[arch]]
    return Answer(request, {arch: tuple(made)})


class Symbol:
    """A size as `tensorrt.plugin` has it: it multiplies and adds, with numbers on its right only."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __mul__(self, other: Symbol | int) -> Symbol:
        return Symbol(self.value * (other.value if isinstance(other, Symbol) else other))

    def __add__(self, other: Symbol | int) -> Symbol:
        return Symbol(self.value + (other.value if isinstance(other, Symbol) else other))

    @staticmethod
    def cdiv(first: Symbol | int, second: Symbol | int) -> Symbol:
        assert not (isinstance(first, int) and isinstance(second, int))  # as there
        sizes = [size.value if isinstance(size, Symbol) else size for size in (first, second)]
        return Symbol(-(-sizes[0] // sizes[1]))


def number(size: Any) -> int:
    return size.value if isinstance(size, Symbol) else int(size)


class TensorDesc:
    def __init__(self, shape_expr: tuple[Any, ...], dtype: str) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype


class KernelLaunchParams:
    grid_x: Any
    block_x: Any
    shared_mem: Any


class SymIntExprs(list):  # type: ignore[type-arg]
    def __init__(self, count: int) -> None:
        super().__init__([None] * count)


class Recorder:
    """`tensorrt.plugin`, as far as its signatures go: those of 10.13 and of 11.1 are the same."""

    TensorDesc, KernelLaunchParams, SymIntExprs = TensorDesc, KernelLaunchParams, SymIntExprs
    SymInt32 = staticmethod(lambda size: size)
    cdiv = staticmethod(Symbol.cdiv)
    from_shape_expr = TensorDesc

    def __init__(self) -> None:
        self.described: dict[str, Any] = {}
        self.implemented: dict[str, Any] = {}

    def register(self, plugin: str) -> Any:
        def keep(function: Any) -> None:
            assert plugin not in self.described
            signature = inspect.signature(function)
            assert all(item.annotation is TensorDesc for item in signature.parameters.values())
            assert set(signature.return_annotation.__args__) == {TensorDesc}
            self.described[plugin] = function

        return keep

    def aot_impl(self, plugin: str) -> Any:
        def keep(function: Any) -> None:
            names = [*inspect.signature(self.described[plugin]).parameters, "outputs", "tactic"]
            assert list(inspect.signature(function).parameters) == names
            self.implemented[plugin] = function

        return keep


@pytest.mark.parametrize("request_", [MAPS, SQUARE, MASKED, MODULE, SCALED, CODED], ids=str)
def test_what_tensorrt_is_told_launches_what_python_computes(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "_registered", set())
    answer = with_entries(request_)
    names = types.SimpleNamespace(FLOAT="float32", HALF="float16", BF16="bfloat16", INT8="int8")
    trt = types.SimpleNamespace(DataType=names)
    plugins = Recorder()
    register = aot.registration(trt, plugins)
    tensors: dict[str, TensorDesc] = {
        name: TensorDesc(tuple(Symbol(DIMS.get(str(size), size)) for size in shape), dtype)  # type: ignore[arg-type]
        for name, shape, dtype in zip(request_.inputs, request_.shapes, request_.dtypes, strict=True)
    }
    for step, made in zip(aot.steps_of(answer, 87), answer.builds[87], strict=True):
        register(step)
        register(step)  # a second time it is known
        inputs = [tensors[name] for name in step.inputs]
        outputs = plugins.described[f"edgeattn::{step.name}"](*inputs)
        for output, desc in zip(step.outputs, outputs, strict=True):
            tensors[output.name] = desc
            assert desc.dtype == output.dtype
        entry, ptx, launch, integers = plugins.implemented[f"edgeattn::{step.name}"](*inputs, outputs, 0)
        assert (entry, launch.block_x, launch.shared_mem) == (made.name, made.threads, made.shared)
        assert number(launch.grid_x) == evaluate(made.launch.grid, DIMS)
        given = {name: ("tensor", name) for name in (*step.inputs, *(output.name for output in step.outputs))}
        names = [name for kind, name in made.arguments if kind == "int32"]
        values = {name: evaluate(made.launch.integers[name], DIMS) for name in names}
        assert list(map(number, integers)) == list(values.values())
        # As TensorRT calls it: inputs, integers, outputs. Each must reach the parameter that was its own.
        calls = [*(given[name] for name in step.inputs), *values.values(), *(given[o.name] for o in step.outputs)]
        assert arriving(ptx, made.name, calls) == {
            place: given[name] if kind == "pointer" else values[name]
            for place, (kind, name) in enumerate(made.arguments)
        }
    y = tensors["y"]
    assert y.dtype == ("int8" if request_ is CODED else request_.dtype)
    assert [number(size) for size in y.shape_expr] == [
        DIMS.get(str(request_.shapes[source][axis]), request_.shapes[source][axis]) for source, axis in request_.output
    ]


def arriving(ptx: str, name: str, calls: list[Any]) -> dict[int, Any]:
    """What each of the kernel's own parameters gets from a call."""
    lines = re.findall(r"\.param \.(u64|u32) (\S+?),?$", ptx, re.MULTILINE)
    assert len(lines) == len(calls)
    for (width, _), value in zip(lines, calls, strict=True):
        assert (width == "u64") == isinstance(value, tuple)
    own = zip(lines, calls, strict=True)
    return dict(sorted((int(word[len(name) + 1 :]), value) for (_, word), value in own if word.startswith(name)))


def test_scratch_travels_between_the_plugins_of_a_chain() -> None:
    steps = aot.steps_of(with_entries(MODULE), 87)
    known = set(MODULE.inputs)
    for step in steps:
        assert set(step.inputs) <= known
        known |= {output.name for output in step.outputs}
    assert [output.name for output in steps[-1].outputs] == ["y"]
    assert len({step.name for step in steps}) == len(steps)


def test_a_node_becomes_its_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, _ = fuse(self_attention().graph)
    offer(tmp_path, monkeypatch, requests_in(self_attention().graph, ["float32"]))
    graph = to_backend(fused, "tensorrt", choose(fused, "plugin", "")[0])
    (node,) = [node for node in graph.model.graph if node.domain == DOMAIN]
    seen: list[aot.Step] = []
    embedded = aot.embed(graph, 87, seen.append)
    (made,) = [node for node in embedded.model.graph if node.domain == DOMAIN]
    assert made.op_type == seen[0].name == f"SoftmaxAttention_{request_of(node).digest}_sm87_0"
    assert made.outputs[0].name == node.outputs[0].name
    assert {name: item.value for name, item in made.attributes.items()} == aot.ATTRIBUTES
    assert [value.name for value in made.inputs if value] == [value.name for value in node.inputs if value]


@pytest.mark.slow
def test_reordered_parameters_are_ptx_that_still_assembles() -> None:
    answer = compile_request(SQUARE, [87])
    (made,), (step,) = answer.builds[87], aot.steps_of(answer, 87)
    assert step.ptx != made.ptx
    assert sorted(step.ptx.replace(",", "").splitlines()) == sorted(made.ptx.replace(",", "").splitlines())
    padded = aot.with_parameters(made.ptx, [*range(len(made.arguments)), None])
    for ptx in (step.ptx, padded):
        assert _assemble(ptx, 87)[0][:4] == b"\x7fELF"


def test_ptx_without_an_entry_is_an_error() -> None:
    with pytest.raises(BuildError, match="has no entry point of the known form"):
        aot.with_parameters(".version 8.5\n", [0])
