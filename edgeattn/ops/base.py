"""What an attention op is: how it is found in a graph, what replaces it, and what it means.

An op is one file: source and formula, a PyTorch reference, an ONNX function body as text, a search, and cases. Its
canonical node lives in domain `edgeattn`, version 1. Where an op has several configurations (with a bias or without,
one activation or another) each is a *variant*: the node's and the function's `overload`, so one name has as many
bodies as it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from torch import Tensor, nn

DOMAIN = "edgeattn"
VERSION = 1
MIN_OPSET = 18  # bodies are written in it; older graphs are converted before they are searched


@dataclass(frozen=True)
class Facts:
    """What `inspect` says of one attention: sizes by name, and costs of one sample where sizes are known.

    `flops` counts multiplications and additions. `bytes_decomposed` is what the plain decomposition moves through
    memory (each intermediate written and read once), `bytes_fused` what one kernel has to (inputs read, output
    written). None where a size is dynamic; a dynamic batch counts as one.
    """

    sizes: Mapping[str, int | str]
    flops: int | None = None
    bytes_decomposed: int | None = None
    bytes_fused: int | None = None


@dataclass(frozen=True)
class Match:
    """One attention, found, and certain: replacing it changes no result.

    `output` is the value that the canonical node will compute. `inputs` makes the node's operands, inserting whatever
    nodes bring them into the canonical layout, and `finish`, given the node's output, inserts those that bring it
    back to the layout of `output`. Nodes that nothing uses any more are removed afterwards, so a shared intermediate
    stays where it is used.
    """

    op: str
    variant: str
    anchor: ir.Node
    nodes: tuple[ir.Node, ...]  # what it is made of, for people
    output: ir.Value
    inputs: Callable[[Tape], Sequence[ir.Value]]
    attributes: Mapping[str, int | float | str | Sequence[int]]
    facts: Facts
    finish: Callable[[Tape, ir.Value], ir.Value] = lambda tape, value: value


@dataclass(frozen=True)
class Miss:
    """Something that is nearly this op, and the reason why it was left alone."""

    op: str
    anchor: ir.Node
    nodes: tuple[ir.Node, ...]
    reason: str


class Tape:
    """Makes the nodes around a canonical one: `tape.op("Transpose", [x], perm=[0, 2, 1])` returns the new value."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def op(self, kind: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Append a node of the default domain and return its only output."""
        node = ir.Node("", kind, inputs, ir.convenience.convert_attributes(attributes), name=None)
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: Any) -> ir.Value:
        """A new initializer with this numpy array."""
        tensor = ir.tensor(array)
        value = ir.Value(const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
        self.constants.append(value)
        return value


@dataclass(frozen=True)
class Case:
    """A module as people write it, and what must be found in its export.

    `found` are the canonical ops expected, in order; empty for a graph that must not match. `missed` is text that must
    stand in the reason of a near miss, empty where the graph is not even near.
    """

    name: str
    module: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]  # of the inputs, float32
    found: tuple[str, ...] = ()
    missed: str = ""
    dynamic: tuple[str, ...] = ("batch",)  # as `edgeattn export --dynamic`, tried beside static shapes


@dataclass(frozen=True)
class AttentionOp:
    """One attention mechanism.

    Attributes:
        name: the canonical node's type.
        source: paper, or repository and what differs.
        find: search a graph of opset `MIN_OPSET` or newer, whose types and shapes are inferred, for matches and
            near misses; must not change it.
        function: the body of a variant, as ONNX text (`onnx.parser`), for opset 18 and newer.
        reference: the same in PyTorch: `reference(variant, *inputs, **attributes)`, any float dtype; float64 is the
            oracle.
        cases: modules that must match and modules that must not; imports torch.
        maps: the values of the body that say where it looks, those that a variant has.
    """

    name: str
    source: str
    find: Callable[[ir.Graph], Iterator[Match | Miss]]
    function: Callable[[str], str]
    reference: Callable[..., Tensor]
    cases: Callable[[], Sequence[Case]] = field(default=tuple)
    maps: tuple[str, ...] = ()
