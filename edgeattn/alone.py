"""An attention alone: cut out of its graph, built in each of its forms, and timed, to run it in the fastest.

What runs it fastest depends on its sizes, on the device and on the backend's version, and no rule knows all three.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig, Session, silent
from edgeattn.backends.trt.layouts import border
from edgeattn.backends.trt.plugins import ATTENTION, request_of
from edgeattn.errors import EdgeAttnError, UnsupportedError, one_line
from edgeattn.graph import Graph, modules_around
from edgeattn.lowering import BODY, PLUGIN
from edgeattn.normalise import settle_shapes
from edgeattn.ops.base import DOMAIN
from edgeattn.precision.mixed import floating, typed_for
from edgeattn.precision.ranges import Ranges
from edgeattn.profile.paired import fastest
from edgeattn.profile.timing import Turns, turn
from edgeattn.reports.text import few
from edgeattn.tensors import random_feeds, resolve_profile

if TYPE_CHECKING:
    from edgeattn.tensors import Profile, Shape

__all__ = ["Measured", "cut_out", "fastest_forms", "sized", "timer"]

ROUNDS = 15
ROUND_S = 0.1  # for each form
WARMUP_S = 0.2

# What was measured in this process, by the graphs that were built and how: a search builds them many times.
_known: dict[tuple[str, ...], Measured] = {}


@dataclass(frozen=True)
class Measured:
    """What an attention takes alone in each of its forms.

    Attributes:
        form: the fastest; the planned one where no other is faster beyond the noise.
        ms: the median by form, of those that run.
        failures: of the others, why they do not.
        device: what it ran on, in words.
    """

    form: str
    ms: Mapping[str, float]
    failures: Mapping[str, str]
    device: str

    def __str__(self) -> str:
        times = ", ".join(f"{ms:.3g} ms {_how(form)}" for form, ms in self.ms.items())
        failed = "".join(f"; {_how(form)} it does not run alone: {why}" for form, why in self.failures.items())
        return f"{times}, alone on {self.device}{failed}"


def fastest_forms(
    fused: Graph,
    backend: str,
    config: BuildConfig,
    ways: Mapping[str, Sequence[str]],
    ranges: Ranges | None = None,
) -> tuple[dict[str, Measured], tuple[str, ...]]:
    """Time attentions alone in each form that they may take, at the optimal shapes and in the precision of a build.

    Of equal attentions the first is timed. All forms of one run in turns, on random values, without what surrounds it.

    Args:
        fused: a fused graph, its shapes inferred.
        backend: a name in `edgeattn.backends.BACKENDS`.
        config: the build's, its profile resolved.
        ways: by the name of an attention, its forms, the planned one first.
        ranges: what calibration observed of the graph, as for the build.

    Returns:
        What was measured, by the name of the attention, and why others could not be.
    """
    if not ways:
        return {}, ()
    if reasons := backend_named(backend).missing():
        return {}, (_unmeasured(list(ways), reasons[0]),)
    try:
        graph = sized(fused, config.profile)
        groups = _groups(graph, config, ways)
    except EdgeAttnError as err:
        return {}, (_unmeasured(list(ways), str(err)),)
    found: dict[str, Measured] = {}
    notes = []
    for place, names in enumerate(groups):
        config.progress(f"timing {names[0]} alone", place / len(groups))
        try:
            measured = _measured(cut_out(graph, names[0]), backend, config, ways[names[0]], ranges)
        except EdgeAttnError as err:
            notes.append(_unmeasured(names, str(err)))
        else:
            found |= dict.fromkeys(names, measured)
            notes.append(f"{few(names, 1)}: {measured}")
    return found, tuple(notes)


def sized(fused: Graph, profile: Profile) -> Graph:
    """A copy of a graph at its optimal shapes: every size a number, as far as it follows from the inputs'."""
    fixed = fused.copy()
    main = fixed.model.graph
    for value in (value for node in main for value in node.outputs):
        value.shape = value.shape and ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
    for value in main.inputs:
        if spread := profile.get(value.name or ""):
            value.shape = ir.Shape(spread.opt)
    settle_shapes(fixed.model)
    return Graph(fixed.model)


def cut_out(graph: Graph, name: str) -> Graph:
    """One attention of a `sized` graph as a graph of its own.

    It reaches from where a kernel would read to where it would write: the transposes before a softmax attention's
    operands come along, the one behind it, and the scaled sum with a map; and so do the constants of all of them.

    Raises:
        UnsupportedError: there is no such attention, or it is not known how large what it reads is.
    """
    main = graph.model.graph
    node = next((node for node in main if node.domain == DOMAIN and node.name == name), None)
    if node is None:
        raise UnsupportedError(f"the graph has no attention {name!r}")
    if node.op_type == ATTENTION:
        reads, written = border(node)
    else:
        reads, written = [value for value in node.inputs if value is not None], node.outputs[0]
    constants = _constants(main)
    inputs = [value for value in dict.fromkeys(reads) if value not in constants]
    try:
        part = ir.convenience.extract(main, inputs, [written])
    except ValueError as err:
        raise UnsupportedError(f"{name} cannot be cut out: {one_line(err)}") from err
    functions = [function.clone() for function in graph.model.functions.values()]
    model = ir.Model(part, ir_version=graph.model.ir_version, functions=functions)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    found = Graph(model)
    if unknown := [str(spec) for spec in found.inputs if not spec.is_static]:
        raise UnsupportedError(f"the sizes of what {name} reads do not follow from the shapes: {', '.join(unknown)}")
    return found


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """The weights, and what is made of nothing else."""
    found = set(graph.initializers.values())
    for node in graph:
        if all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _groups(graph: Graph, config: BuildConfig, ways: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The names of equal attentions together: of one request, and kept in float32 or not."""
    found: dict[object, list[str]] = {}
    for node in graph.model.graph:
        name = node.name or ""
        if node.domain == DOMAIN and name in ways:
            kept = _layer_precisions(node, config).values()
            key = (request_of(node, floating(config)).digest, *ways[name], *kept)
            found.setdefault(key, []).append(name)
    return list(found.values())


def _layer_precisions(node: ir.Node, config: BuildConfig) -> dict[str, str]:
    """What a build asks of one node and the modules around it."""
    own = [node.name or "", *modules_around(node)]
    asked = config.layer_precisions.items()
    return {pattern: precision for pattern, precision in asked if pattern in own or fnmatch.filter(own, pattern)}


def _measured(graph: Graph, backend: str, config: BuildConfig, forms: Sequence[str], ranges: Ranges | None) -> Measured:
    """Build and time a graph of one attention in each of its forms.

    Raises:
        UnsupportedError: it runs in none of them.
    """
    (node,) = (node for node in graph.model.graph if node.domain == DOMAIN)
    alone = dataclasses.replace(
        config,
        precision=floating(config),
        rest="float32",
        layer_precisions=_layer_precisions(node, config),
        profile=resolve_profile(graph.inputs),
        keep_io_types=False,
        timing_cache=None,
        progress=silent,
    )
    configs = {form: dataclasses.replace(alone, forms={node.name or "": form}) for form in forms}
    typed = {form: typed_for(graph, backend, own, ranges=ranges)[0] for form, own in configs.items()}
    key = (backend, repr(alone), *forms, *(own.sha256 for own in typed.values()))
    if key not in _known:
        module = backend_named(backend)
        _known[key] = _raced(forms, lambda form: module.load(module.build(typed[form], configs[form])))
    return _known[key]


def _raced(forms: Sequence[str], opened: Callable[[str], Session]) -> Measured:
    """Open each form, run all that can be opened in turns, and choose.

    Raises:
        UnsupportedError: none can.
    """
    calls: dict[str, Callable[[float], list[int]]] = {}
    failures: dict[str, str] = {}
    device = ""
    with contextlib.ExitStack() as stack:
        for form in forms:
            session = _ready(stack, opened, form)
            if isinstance(session, str):
                failures[form] = session
            else:
                calls[form], device = timer(session), session.device
        if not calls:
            raise UnsupportedError("it does not run alone", [f"{_how(form)}: {why}" for form, why in failures.items()])
        turns: dict[str, Turns] = {form: [] for form in calls}
        for _ in range(ROUNDS):
            for form, call in calls.items():
                turns[form].append(call(ROUND_S))
    times = {form: tuple(statistics.median(runs) / 1e6 for runs in own) for form, own in turns.items()}
    ms = {form: statistics.median(own) for form, own in times.items()}
    return Measured(fastest(times), ms, failures, device)


def _ready(stack: contextlib.ExitStack, opened: Callable[[str], Session], form: str) -> Session | str:
    """A session of a form that has run for a while, open as long as the stack; or why there is none."""
    try:
        session = stack.enter_context(opened(form))
        timer(session)(WARMUP_S)
    except Exception as err:  # a fault in one form costs that form, not the build
        return str(err) if isinstance(err, EdgeAttnError) else f"{type(err).__name__}: {one_line(err)}"
    return session


def timer(session: Session) -> Callable[[float], list[int]]:
    """A function that runs a session for some seconds: nanoseconds of each run, on the device where that tells them.

    There, what copies to and from it take would hide what differs.
    """
    shapes: dict[str, Shape] = {name: spread.opt for name, spread in session.profile.items()}
    run = partial(session.run, random_feeds(session.inputs, shapes, seed=0))
    timings = session.details.get("timings")

    def times(seconds: float) -> list[int]:
        if timings is None:
            return turn(run, seconds)
        found: list[int] = []
        turn(run, seconds, lambda start, spent: found.append(max(1, round(1e6 * timings()["compute"]))))
        return found

    return times


def _how(form: str) -> str:
    return {PLUGIN: "as a plugin", BODY: "natively"}.get(form, f"as {form}")


def _unmeasured(names: Sequence[str], why: str) -> str:
    return f"{few(names, 1)}: not timed alone, and run as planned: {why}"
