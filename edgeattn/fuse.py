"""Graph -> Graph + FusionReport: every attention becomes one canonical node, and what was nearly one is named.

A canonical node carries its plain decomposition as a model-local function, so the file runs anywhere; a backend with
something better replaces the node (`edgeattn.lowering`).
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

import onnx.parser
import onnx_ir as ir
from onnx_ir.passes import common

from edgeattn.errors import InputError, one_line
from edgeattn.graph import SCOPES, Graph, module_of, modules_around
from edgeattn.normalise import drop_identities, infer_types, inlined, merge_casts, settle_shapes, upgraded
from edgeattn.ops import ALL_OPS
from edgeattn.ops.base import DOMAIN, MIN_OPSET, VERSION, AttentionOp, Facts, Match, Miss, Tape


@dataclass(frozen=True)
class Found:
    """One attention in a graph: `name` is its node in the fused graph, `nodes` what it was made of."""

    op: str
    variant: str
    name: str
    nodes: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True)
class Missed:
    """A near miss: what it might have been, its nodes, and why it was left alone."""

    candidate: str
    nodes: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{self.candidate} at {', '.join(self.nodes[:1])}: {self.reason}"


@dataclass(frozen=True)
class FusionReport:
    """What was found, in the order of the graph, what was missed, and what kept the graph from being searched."""

    found: tuple[Found, ...] = ()
    missed: tuple[Missed, ...] = ()
    notes: tuple[str, ...] = ()


def fuse(graph: Graph, ops: tuple[AttentionOp, ...] = ALL_OPS) -> tuple[Graph, FusionReport]:
    """Replace every attention by its canonical node; the given graph stays as it is.

    The result computes what the graph computes: a match is exact or it is none. Where nothing is found, the same graph
    comes back. What an op's search raises becomes a note; the graph is then left as it was for that op.
    """
    with _collector_paused():
        return _fuse(graph, ops)


def _fuse(graph: Graph, ops: tuple[AttentionOp, ...]) -> tuple[Graph, FusionReport]:
    searched, notes = _prepared(graph)
    if searched is None:
        return graph, FusionReport(notes=notes)
    editor = _Editor(searched)
    found: dict[ir.Node, Found] = {}
    missed: dict[ir.Node, Missed] = {}
    for op in ops:
        known = len(found)
        try:
            for item in list(op.find(searched.model.graph)):
                if isinstance(item, Miss):
                    missed.setdefault(item.anchor, Missed(op.name, _names(item.nodes, found), item.reason))
                elif item.output.uses() or item.output.is_graph_output():  # else an earlier match has taken it
                    node = editor.replace(op, item)
                    names = _names(item.nodes, found)
                    found[node] = Found(op.name, item.variant, node.name or "", names, item.facts)
        except Exception as err:  # a fault in one op's search costs its fusions, never the build
            notes = (*notes, f"the search for {op.name} failed ({type(err).__name__}: {one_line(err)}): report it")
        if len(found) > known:
            common.RemoveUnusedNodesPass()(searched.model)
    order = {node: place for place, node in enumerate(searched.model.graph)}
    report = FusionReport(
        tuple(found[node] for node in order if node in found),  # not those that later matches took
        tuple(item for anchor, item in missed.items() if anchor in order),
        notes,
    )
    if not found:
        return graph, report
    searched.model.opset_imports[DOMAIN] = VERSION
    common.RemoveUnusedFunctionsPass()(searched.model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(searched.model)
    infer_types(searched.model)
    return searched, report


def _prepared(graph: Graph) -> tuple[Graph | None, tuple[str, ...]]:
    """A copy in the form that ops search: functions inlined, opset 18 or newer, constants as initializers, typed."""
    try:
        model = upgraded(inlined(graph.model), MIN_OPSET)
    except InputError as err:
        return None, (f"not searched for attention: {err}",)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    drop_identities(model)
    merge_casts(model)
    common.NameFixPass()(model)
    settle_shapes(model)
    return Graph(model, graph.path, graph.source_sha256), ()


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from walking all of a large graph again and again while it is copied and searched."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Editor:
    """Puts canonical nodes into a graph; keeps the names in use, since looking for them anew each time adds up."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        main = graph.model.graph
        self.nodes = Names(node.name for node in main)
        made = (value.name for node in main for value in node.outputs)
        self.values = Names((*made, *(value.name for value in main.inputs), *main.initializers))
        self.replaced: dict[ir.Value, ir.Value] = {}

    def replace(self, op: AttentionOp, match: Match) -> ir.Node:
        """Insert the canonical node, and what brings its operands and result into layout, before the output's node.

        Whatever a match raises, it raises before anything is inserted.
        """
        main, output, place = self.graph.model.graph, match.output, match.output.producer()
        assert place is not None
        tape = Tape()
        try:
            node, result = self._made(op, match, tape)
            self._add_function(op, match.variant)
        except Exception:
            _discard(tape)
            raise
        for value in (*tape.constants, *(made.outputs[0] for made in tape.nodes)):
            value.name = self.values.free(f"{node.name}/{value.name or 'value'}")
        for value in tape.constants:
            main.register_initializer(value)
        main.insert_before(place, tape.nodes)
        result.type, result.shape = output.type, output.shape
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        result.name, output.name = output.name, result.name
        self.replaced[output] = result
        return node

    def _made(self, op: AttentionOp, match: Match, tape: Tape) -> tuple[ir.Node, ir.Value]:
        """The canonical node and the value that takes the output's place, on a tape."""
        node = ir.Node(
            DOMAIN,
            op.name,
            match.inputs(tape),
            ir.convenience.convert_attributes(match.attributes),
            overload=match.variant,
            metadata_props=_provenance(match),
        )
        node.name = self.nodes.free(module_of(node) or op.name)
        tape.nodes.append(node)
        result = match.finish(tape, node.outputs[0])
        for made in tape.nodes:  # a match found beside this one may have taken the place of what it reads
            for place, value in enumerate(made.inputs):
                if value in self.replaced:
                    made.replace_input_with(place, self.replaced[value])
        return node, result

    def _add_function(self, op: AttentionOp, variant: str) -> None:
        functions, key = self.graph.model.functions, (DOMAIN, op.name, variant)
        if key not in functions:
            header = f'<domain: "{DOMAIN}", opset_import: ["": {self.graph.opset}], overload: "{variant}">\n'
            functions[key] = ir.serde.deserialize_function(onnx.parser.parse_function(header + op.function(variant)))


def _provenance(match: Match) -> dict[str, str]:
    """The anchor's metadata; of what is made of other attentions, the modules around all of them."""
    parts = [modules_around(node) for node in match.nodes if node.domain == DOMAIN]
    around = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))]
    return {**match.anchor.metadata_props, **({SCOPES: repr([*around, match.op])} if around else {})}


def _discard(tape: Tape) -> None:
    """Let go of the values that nodes read which were made and will not be inserted."""
    for node in tape.nodes:
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)


class Names:
    """The names in use; `free` finds one like the one asked for and takes it."""

    def __init__(self, taken: Iterable[str | None]) -> None:
        self.taken = set(taken)
        self.numbers: Counter[str] = Counter()

    def free(self, name: str) -> str:
        free = name
        while free in self.taken:
            self.numbers[name] += 1
            free = f"{name}_{self.numbers[name]}"
        self.taken.add(free)
        return free


def _names(nodes: tuple[ir.Node, ...], found: Mapping[ir.Node, Found]) -> tuple[str, ...]:
    """Names of nodes of the original graph: a canonical node stands for those it replaced."""
    parts = ((node.name or "",) if node not in found else found[node].nodes for node in nodes)
    return tuple(dict.fromkeys(name for part in parts for name in part))
