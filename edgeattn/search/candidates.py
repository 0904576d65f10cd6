"""The ways to build a graph that a search may try."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from edgeattn.backends.base import BuildConfig, silent
from edgeattn.build import SHORT_NAMES
from edgeattn.fuse import fuse
from edgeattn.graph import Graph
from edgeattn.lowering import forms
from edgeattn.reports.text import few

MOST_GROUPS = 4  # of equal attentions that are tried one by one
# What each backend is asked for below float32, and what the rest then is, where INT8 leaves one.
LOWER = {
    "tensorrt": (("float16", "float32"), ("bfloat16", "float32"), ("int8", "float16"), ("int8", "float32")),
    "tensorrt-rtx": (("float16", "float32"), ("bfloat16", "float32")),
    "openvino": (("bfloat16", "float32"), ("float16", "float32"), ("int8", "float32"), ("int8", "bfloat16")),
    "onnxruntime": (("int8", "float32"),),
}
THREADED = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Candidate:
    """A way to build.

    `forms` has by the name of an attention the form that differs from the plan; `precision` is empty for the model's
    own, `rest` what stays beside INT8, and `high` the parts of the network (see `groups`) that stay out of it, with
    their nodes and, in words, `but`. `improve` are the steps that improve INT8; None to find them out. `threads` are
    those of one run; None leaves them to the runtime. Without `fuse` it is the graph as the exporter wrote it.
    """

    backend: str
    forms: Mapping[str, str] = field(default_factory=dict)
    precision: str = ""
    rest: str = "float32"
    high: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    but: str = ""
    improve: tuple[str, ...] | None = None
    threads: int | None = None
    fuse: bool = True

    @property
    def name(self) -> str:
        """All of it in words."""
        precision = SHORT_NAMES[self.precision] if self.precision else ""
        rest = f" + {SHORT_NAMES[self.rest]}" if self.rest != "float32" else ""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        exported = "" if self.fuse else "as exported"
        parts = (self.backend, exported, *_forms_in_words(self.forms), precision + rest, threads, self.but)
        return ", ".join(filter(None, parts))

    @property
    def floating(self) -> Candidate:
        """The same way without INT8."""
        precision = self.rest if self.rest != "float32" else ""
        return dataclasses.replace(self, precision=precision, rest="float32", high={}, but="", improve=None)

    def config(self, config: BuildConfig) -> BuildConfig:
        """The settings that build it: where no form is chosen, TensorRT's own, since here whole engines are timed."""
        native = self.backend == "tensorrt" and config.attention == "auto"
        return dataclasses.replace(
            config,
            forms=self.forms,
            attention="native" if native else config.attention,
            precision=self.precision or config.precision,
            rest=self.rest,
            improve=config.improve if self.improve is None else self.improve,
            threads=self.threads or config.threads,
            fuse=self.fuse and config.fuse,
            layer_precisions={
                **config.layer_precisions,
                **{node: self.rest for nodes in self.high.values() for node in nodes},
            },
            progress=silent,
        )


def candidates(graph: Graph, backend: str) -> list[Candidate]:
    """A backend's ways to build a graph: as planned, with equal attentions in each other form, and as it was exported.

    The last is what people have without edgeattn, so that nothing slower is chosen.
    """
    fused, found = fuse(graph)
    nodes = {node.name: node for node in fused.model.graph}
    others = {item.name: forms(nodes[item.name], backend)[1:] for item in found.found}
    groups: dict[object, list[str]] = {}
    for item in sorted(found.found, key=lambda item: -(item.facts.flops or 0)):
        if others[item.name]:
            key = (item.op, item.variant, *item.facts.sizes.items())
            groups.setdefault(key if key in groups or len(groups) < MOST_GROUPS - 1 else "rest", []).append(item.name)
    ways = [Candidate(backend)]
    for names in groups.values():
        tried = dict.fromkeys(form for name in names for form in others[name])
        ways += [Candidate(backend, {name: form for name in names if form in others[name]}) for form in tried]
    return [*ways, *([Candidate(backend, fuse=False)] if found.found else [])]


def lowered(way: Candidate) -> list[Candidate]:
    """The same way in every lower precision that its backend may gain by."""
    return [dataclasses.replace(way, precision=precision, rest=rest) for precision, rest in LOWER[way.backend]]


def without(way: Candidate, high: Collection[str], parts: Mapping[str, tuple[str, ...]]) -> Candidate:
    """The same way with some parts of the network kept out of its low precision."""
    kept = {part: nodes for part, nodes in parts.items() if part in high}
    low = [part for part in parts if part not in high]
    but = f"without {few(list(kept), 2)}" if len(kept) <= len(low) else f"only {few(low, 2)}"
    return dataclasses.replace(way, high=kept, but=but if kept else "")


def _forms_in_words(chosen: Mapping[str, str]) -> Iterator[str]:
    for form in dict.fromkeys(chosen.values()):
        yield f"{form} for {few([name for name, its in chosen.items() if its == form], 1)}"
