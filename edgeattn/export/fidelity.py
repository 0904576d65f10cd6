"""Does an exported graph compute what its module computes, and where does it stop doing so?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import ExportError, InputError, UnsupportedError
from edgeattn.graph import SCOPES, Graph, module_of
from edgeattn.interpreter import run_as_written
from edgeattn.model import Model
from edgeattn.tensors import TensorSpec, format_shape, random_feeds
from edgeattn.tolerance import TOLERANCES
from edgeattn.weights import reason

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeattn.model import Dynamic
    from edgeattn.tensors import Array, Feeds, Shape

SEEDS = (0, 1, 2)
LARGE_STEP = 64  # sizes that are multiples of it grow by half; 1.5 times it still divides by 32


@dataclass(frozen=True)
class Check:
    """One comparison: `case` names shapes and seed; the errors are those of the worst output.

    `max_abs` is max|graph - module|, `relative` the same over max|module|, `budget` what max_abs may be.
    """

    case: str
    max_abs: float
    relative: float
    budget: float


@dataclass(frozen=True)
class _Run:
    case: str
    feeds: Feeds
    expected: Mapping[str, Array]
    got: Mapping[str, Array]


def check_fidelity(graph: Graph, model: Model, dynamic: Dynamic | None = None) -> tuple[Check, ...]:
    """Run graph and module on seeded data: three seeds, then every dynamic dimension at another size.

    The oracle is the module in float64, the limit that of `edgeattn.tolerance`: twice PyTorch's own float32 error and
    one rounding unit of max|y|, with a floor, since convolution algorithms differ, and a cap.

    Raises:
        ExportError: an output differs (names the first node that does, with its module), or from run to run.
    """
    _require_repeatable(model)
    try:
        run = run_as_written(graph)
    except Exception as err:
        raise ExportError(f"the exported graph cannot be loaded: {reason(err)}") from err
    checks = []
    for shapes, seed, case in _cases(model.inputs, dynamic or {}):
        feeds = random_feeds(model.inputs, shapes, seed)
        try:
            expected = model.run_named(feeds)
        except InputError as err:
            why = reason(err.__cause__ or err)
            raise ExportError(f"the module itself fails at {case}: {why}; make that dimension static") from err
        try:
            got = run(feeds)
        except Exception as err:
            raise ExportError(f"the exported graph fails at {case}: {reason(err)}; the module runs") from err
        checks.append(_compare(graph, model, _Run(case, feeds, expected, got)))
    return tuple(checks)


def base_shapes(inputs: Sequence[TensorSpec]) -> dict[str, Shape]:
    """The shapes as given to the export."""
    return {spec.name: tuple(int(dim) for dim in spec.shape or ()) for spec in inputs}


def resized(shapes: Mapping[str, Shape], dynamic: Dynamic, name: str, size: Callable[[int], int]) -> dict[str, Shape]:
    """The shapes with every axis of that name at another size."""
    return {
        key: tuple(size(dim) if dynamic.get(key, {}).get(axis) == name else dim for axis, dim in enumerate(shape))
        for key, shape in shapes.items()
    }


def _cases(inputs: Sequence[TensorSpec], dynamic: Dynamic) -> Iterator[tuple[dict[str, Shape], int, str]]:
    base = base_shapes(inputs)
    described = ", ".join(f"{name} {format_shape(shape)}" for name, shape in base.items())
    for seed in SEEDS:
        yield base, seed, f"{described}, seed {seed}"
    for name in dict.fromkeys(name for axes in dynamic.values() for name in axes.values()):
        batch = any(axes.get(0) == name for axes in dynamic.values())
        shapes = resized(base, dynamic, name, _another_batch if batch else _another_size)
        described = ", ".join(f"{key} {format_shape(shape)}" for key, shape in shapes.items())
        yield shapes, SEEDS[0], f"{described}, seed {SEEDS[0]}"


def _another_batch(size: int) -> int:
    # Never 2: that is the size of the trace where one was given.
    return 3 if size != 3 else 1


def _another_size(size: int) -> int:
    """A size that keeps what the old one divides by, as strided networks need."""
    return size * 3 // 2 if size % LARGE_STEP == 0 else size * 2


def _compare(graph: Graph, model: Model, run: _Run) -> Check:
    try:
        oracle: Mapping[str, Array] | None = model.run_named(run.feeds, "float64")
    except UnsupportedError:
        oracle = None
    worst = Check(run.case, 0.0, 0.0, 0.0)
    for name, ours in run.expected.items():
        theirs = run.got[name]
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            found = f"{theirs.dtype} {format_shape(theirs.shape)}"
            how = f"is {found} instead of {ours.dtype} {format_shape(ours.shape)}"
            raise _difference(graph, model, run, name, how=how, relative=1.0)
        error, size, budget = judge(ours, theirs, oracle[name] if oracle is not None else None)
        relative = error / size if size else error
        if not error <= budget:
            how = f"differs by {error:.3g} (at most {budget:.3g} expected)"
            raise _difference(graph, model, run, name, how=how, relative=relative)
        if relative >= worst.relative:
            worst = Check(run.case, error, relative, budget)
    return worst


def _difference(graph: Graph, model: Model, run: _Run, output: str, *, how: str, relative: float) -> ExportError:
    node = first_difference(graph, model, run.feeds, output, relative)
    return ExportError(
        f"the exported graph is not the module: output {output!r} {how} at {run.case}; the first node that differs is "
        f"{node}; look there for a branch on values, sizes or the exporter: use torch.where, or try the other exporter"
    )


def judge(ours: Array, theirs: Array, oracle: Array | None) -> tuple[float, float, float]:
    """Error of `theirs`, the size it is relative to, and the budget; `ours` is PyTorch's run in the same dtype.

    The error is max-abs; of whole numbers it is the share that differs. Non-finite values have to stand at the same
    places.
    """
    rule = TOLERANCES["float32"]
    if ours.dtype.kind in "iub":
        own = np.mean(ours != oracle) if oracle is not None and ours.size else 0.0
        return float(np.mean(ours != theirs)) if ours.size else 0.0, 1.0, rule.limit_differing(float(own))
    finite = np.isfinite(ours)
    if not np.array_equal(np.where(finite, 0, ours), np.where(np.isfinite(theirs), 0, theirs), equal_nan=True):
        return float("inf"), 1.0, 0.0
    if oracle is not None and not np.isfinite(oracle[finite]).all():
        oracle = None
    truth = (ours if oracle is None else oracle)[finite].astype(np.float64)
    own = np.abs(ours[finite] - truth).max(initial=0.0)
    size = float(np.abs(truth).max(initial=0.0))
    error = float(np.abs(theirs[finite] - truth).max(initial=0.0))
    return error, size, rule.limit(None if oracle is None or not size else float(own) / size) * size


def first_difference(graph: Graph, model: Model, feeds: Feeds, output: str, relative: float) -> str:
    """Name the first node behind a wrong output whose result PyTorch computes nowhere.

    Every value that the module computes on the way is recorded. Going back from the output, a value that PyTorch has
    too is right; the rest are suspects, and the first of them in the graph's order is where the two part.
    """
    found = run_as_written(graph, every=True)(feeds)
    values = {name: array for name, array in found.items() if isinstance(array, (np.ndarray, np.generic))}
    seen = _record(model, feeds)
    close = min(max(relative / 10, TOLERANCES["float32"].floor), 1e-3)

    def known(value: ir.Value) -> bool:
        array = values.get(value.name or "")
        return array is not None and array.dtype.kind == "f" and _among(array, seen.get(array.size, []), close)

    suspects: set[ir.Node] = set()
    waiting = [value for value in graph.model.graph.outputs if value.name == output]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in suspects:
            suspects.add(node)
            waiting.extend(value for value in node.inputs if value is not None and not known(value))
    modules = [name for name, _ in model.module.named_modules()]
    ordered = [node for node in graph.model.graph if node in suspects]
    floats = [node for node in ordered if node.inputs and _is_float(node, values)]
    return _describe((floats or ordered)[0], modules) if ordered else f"output {output!r} itself"


def _is_float(node: ir.Node, values: Mapping[str, Array]) -> bool:
    found = (values.get(value.name or "") for value in node.outputs)
    return any(array is not None and array.dtype.kind == "f" for array in found)


def _among(array: Array, others: Sequence[Array], close: float) -> bool:
    flat = array.ravel()
    limit = close * float(np.abs(flat).max(initial=0.0))
    return any(np.abs(flat - other).max(initial=0.0) <= limit for other in others)


def _record(model: Model, feeds: Feeds) -> dict[int, list[Array]]:
    """Every floating-point result inside the module, flat, by size."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    seen: dict[int, list[Array]] = {}

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                    # A copy, since later operations may write into it.
                    seen.setdefault(leaf.numel(), []).append(leaf.detach().float().numpy().flatten())
            return result

    with Recorder():  # type: ignore[no-untyped-call]
        model.run_named(feeds)
    return seen


def _describe(node: ir.Node, modules: Sequence[str]) -> str:
    path = _module_path(node, modules)
    return f"{node.op_type} {node.name!r} in {f'module {path!r}' if path else 'the top module'}"


def _module_path(node: ir.Node, modules: Sequence[str]) -> str:
    if SCOPES in node.metadata_props:
        return module_of(node)
    path = ""
    # TorchScript names a node /a/a.0/b/Conv: each step ends the path of a module inside the one before.
    for step in (node.name or "").split("/")[1:-1]:
        inside = [name for name in modules if f".{name}".endswith(f".{step}") and name.startswith(path)]
        path = min(inside, key=len, default=path)
    return path


def _require_repeatable(model: Model) -> None:
    feeds = random_feeds(model.inputs, base_shapes(model.inputs), SEEDS[0])
    once, again = model.run_named(feeds), model.run_named(feeds)
    for name, array in once.items():
        if not np.array_equal(array, again[name], equal_nan=array.dtype.kind == "f"):
            raise ExportError(
                f"output {name!r} of {model.source} differs from run to run on one input, so nothing can be compared "
                "with it: take random numbers (dropout with training=True) or state out of forward"
            )
