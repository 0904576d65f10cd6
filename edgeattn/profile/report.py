"""What a profile found: the values, and the profile as a table, JSON and CSV (`page` draws it)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgeattn.reports.latency import LatencyReport
from edgeattn.reports.text import number, table
from edgeattn.tensors import format_shape, format_size

if TYPE_CHECKING:
    from edgeattn.tensors import Dim, Shape

__all__ = [
    "Block", "Ceiling", "Energy", "Group", "Layer", "Memory", "ProfileReport", "Reconciliation", "Run", "Stages",
    "grouped",
]  # fmt: skip

SHOWN = 20  # layers and blocks in the terminal's table
Interval = tuple[float, float]


@dataclass(frozen=True)
class Layer:
    """One layer of an engine as its backend runs it; times are of many instrumented runs.

    `name` and `kind` are the backend's. `share` is of the sum of all layers' medians, from 0 to 1. `nodes` are the
    nodes of the fused graph that it computes, `attention` the name of the block they belong to, `module` their PyTorch
    module's path, `stage` the path's first part; each empty where unknown or none. `kernel` is the backend's
    implementation: a tactic, `jit_avx512_amx_bf16`. A dimension that the backend does not tell is `?`. `flops` and
    `bytes` are of one run, None where unknown; bytes are those of its inputs and outputs.
    """

    name: str
    kind: str
    precision: str
    median_ms: float
    p90_ms: float
    interval_ms: Interval
    share: float
    input_shapes: tuple[tuple[Dim, ...], ...] = ()
    output_shapes: tuple[tuple[Dim, ...], ...] = ()
    nodes: tuple[str, ...] = ()
    attention: str = ""
    module: str = ""
    stage: str = ""
    kernel: str = ""
    flops: int | None = None
    bytes: int | None = None
    mean_ms: float = 0.0


@dataclass(frozen=True)
class Block:
    """One attention block: what it is, what ran it, and what it takes.

    `plan` says in words what ran it, `fused` whether that is one kernel, `why` why nothing better did (empty where
    nothing is better). `layers` are names of layers; `median_ms` is the sum of their medians, None where the backend
    hides them in a larger one. `flops` and `bytes` are of one run, decomposed or fused according to what ran;
    `intensity` is FLOPs per byte. `ablation_ms` is what the engine saves without the block. None where unknown.
    """

    name: str
    op: str
    plan: str
    fused: bool
    why: str
    layers: tuple[str, ...]
    median_ms: float | None
    share: float | None
    flops: int | None = None
    bytes: int | None = None
    intensity: float | None = None
    ablation_ms: float | None = None
    ablation_interval_ms: Interval | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes: the weights stored in the plan, the most that a process holds beyond them while it runs, and at all.

    Loading may take more than running: then the plan is there as well as what was made of it.
    """

    weights: int | None
    activations: int | None
    peak: int | None


@dataclass(frozen=True)
class Stages:
    """The three parts of a run on a GPU, by its own clock and by trtexec's names."""

    host_to_device: LatencyReport
    compute: LatencyReport
    device_to_host: LatencyReport


@dataclass(frozen=True)
class Ceiling:
    """What this machine reaches at most, measured on the spot: arithmetic in a precision, and memory."""

    precision: str
    gflops: float
    gbytes_per_s: float


@dataclass(frozen=True)
class Energy:
    """What the board's own meter says of a run, above nothing: idle power is in it."""

    millijoules: float
    watts: float
    source: str


@dataclass(frozen=True)
class Reconciliation:
    """How the layers add up to the whole, by medians in milliseconds.

    `whole_ms` is the engine without instrumentation, `instrumented_ms` with it, both in turns; `layers_ms` is the sum
    of the layers' medians, `together_ms` what they take together in the median run. Where they took longer than the
    whole, `taken_off_ms` is what the instrument itself took of each, and what was taken off its times. `explanation`
    says in words where the difference is.
    """

    whole_ms: float
    instrumented_ms: float
    layers_ms: float
    together_ms: float
    explanation: tuple[str, ...]
    taken_off_ms: float = 0.0

    @property
    def overhead_ms(self) -> float:
        """What instrumentation adds to a run."""
        return self.instrumented_ms - self.whole_ms

    @property
    def uneven_ms(self) -> float:
        """What medians leave out, since a disturbance hits other layers in each run; `layers_ms` is without it."""
        return self.together_ms - self.layers_ms

    @property
    def outside_ms(self) -> float:
        """What a run takes beyond its layers; below zero where layers run beside each other."""
        return self.whole_ms - self.together_ms


@dataclass(frozen=True)
class Run:
    """One timed run: when it began, from the first on, how long it took, and its parts where there is a device."""

    start_ms: float
    latency_ms: float
    host_to_device_ms: float | None = None
    compute_ms: float | None = None
    device_to_host_ms: float | None = None


@dataclass(frozen=True)
class Group:
    """Layers that have something in common; `median_ms` is the sum of their medians."""

    name: str
    layers: int
    median_ms: float
    share: float


def grouped(layers: Sequence[Layer], key: str | Callable[[Layer], str]) -> tuple[Group, ...]:
    """Sum layers by a field (`attention`, `kind`, `stage`, `module`, `precision`) or a function; the slowest first.

    Layers that have none are the group named by the empty string.
    """
    name_of: Callable[[Layer], str] = key if callable(key) else lambda layer: str(getattr(layer, key))
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        found.setdefault(name_of(layer), []).append(layer)
    groups = (
        Group(name, len(own), sum(layer.median_ms for layer in own), sum(layer.share for layer in own))
        for name, own in found.items()
    )
    return tuple(sorted(groups, key=lambda group: -group.median_ms))


@dataclass(frozen=True)
class ProfileReport:
    """What an engine takes, whole and in parts; the whole is timed without instrumentation.

    `latency` is the host's clock around a run, `interval_ms` bounds its median with 95 % confidence, `stages` are a
    GPU's own times. `load_ms` is what opening took, `first_run_ms` the first run, and `warmup_ms` all of the
    `warmup_runs` runs until times were steady. `layers` stand in the order in which they run, timed `layer_runs` times.
    `conditions` holds clocks, temperatures and power mode `before` and `after`. `data` says what was fed. `runs` are
    single runs, for exports; JSON leaves them out.
    """

    engine: str
    plan_sha256: str
    backend: str
    device: str
    precision: str
    shapes: Mapping[str, Shape]
    batch: int
    data: str
    latency: LatencyReport
    interval_ms: Interval
    load_ms: float
    first_run_ms: float
    warmup_ms: float
    warmup_runs: int
    stages: Stages | None = None
    memory: Memory = Memory(None, None, None)
    layers: tuple[Layer, ...] = ()
    layer_runs: int = 0
    blocks: tuple[Block, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    energy: Energy | None = None
    reconciliation: Reconciliation | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    runs: tuple[Run, ...] = field(default=(), repr=False)

    @property
    def attention_share(self) -> float | None:
        """The share of attention blocks in the sum of the layers; None where no block's layers are known."""
        shares = [block.share for block in self.blocks if block.share is not None]
        return sum(shares) if shares else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the numbers doubtful."""
        return tuple(filter(None, (self.latency.warning,)))

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields, the layers summed up in `groups`, and under the `roofline`."""
        from edgeattn.profile.roofline import points

        plain = asdict(replace(self, runs=()))
        del plain["runs"]
        for name in ("host_to_device", "compute", "device_to_host") if self.stages else ():
            plain["stages"][name] = getattr(self.stages, name).to_json()
        if self.reconciliation is not None:
            more = {name: getattr(self.reconciliation, name) for name in ("overhead_ms", "uneven_ms", "outside_ms")}
            plain["reconciliation"] = {**plain["reconciliation"], **more}
        return {
            **plain,
            "latency": self.latency.to_json(),
            "attention_share": self.attention_share,
            "roofline": [point.to_json() for point in points(self)],
            "groups": {
                key: [asdict(group) for group in grouped(self.layers, key)]
                for key in ("attention", "kind", "stage", "precision")
            },
        }

    def to_html(self) -> str:
        """One self-contained page."""
        from edgeattn.profile.page import profile_page

        return profile_page(self)

    def to_csv(self) -> str:
        """One row a layer, under the names of its fields; lists are joined by spaces."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Layer.__dataclass_fields__)
        for layer in self.layers:
            writer.writerow(_csv_cell(getattr(layer, name)) for name in Layer.__dataclass_fields__)
        return text.getvalue()

    def __str__(self) -> str:
        parts = [self._totals(), self._slowest(), self._blocks(), self._kinds()]
        return "\n\n".join(part for part in parts if part)

    def _totals(self) -> str:
        memory = self.memory
        sizes = (("weights", memory.weights), ("activations", memory.activations), ("peak", memory.peak))
        known = ", ".join(f"{name} {format_size(size)}" for name, size in sizes if size is not None)
        low, high = self.interval_ms
        rows = [
            ("engine", f"{self.engine} ({self.backend}, {self.precision}, {self.device})"),
            ("input", f"{', '.join(f'{name} {format_shape(s)}' for name, s in self.shapes.items())}, {self.data}"),
            ("latency", f"{self.latency}"),
            ("", f"  p95 {self.latency.p95_ms:.3f} ms; median between {low:.3f} and {high:.3f} ms (95 %)"),
            *(("device", text) for text in self._stage_texts()),
            ("warm-up", f"loaded in {self.load_ms:.1f} ms, first run {self.first_run_ms:.2f} ms, steady after "
             f"{self.warmup_runs} runs ({self.warmup_ms:.0f} ms)"),
            *([("memory", known)] if known else []),
            *([("machine", self._changes())] if self.conditions else []),
            *([("energy", f"{self.energy.millijoules:.3g} mJ a run, {self.energy.watts:.3g} W ({self.energy.source})")]
              if self.energy else []),
            *(("layers", text) for text in (self.reconciliation.explanation if self.reconciliation else ())),
            *([("attention", f"{self.attention_share:.1%} of the layers' time")] if self.attention_share else []),
            *(("warning", text) for text in self.warnings),
            *(("note", text) for text in self.notes),
        ]  # fmt: skip
        return table(rows)

    def _changes(self) -> str:
        """Clocks, heat, load and power, before and after."""
        before, after = (self.conditions.get(key, {}) for key in ("before", "after"))
        return ", ".join(f"{name} {text} -> {after.get(name, '?')}" for name, text in before.items())

    def _stage_texts(self) -> list[str]:
        if self.stages is None:
            return []
        names = ("host_to_device", "compute", "device_to_host")
        return [f"{name.replace('_', ' ')} p50 {getattr(self.stages, name).p50_ms:.3f} ms" for name in names]

    def _slowest(self) -> str:
        slowest = sorted(self.layers, key=lambda layer: -layer.median_ms)[:SHOWN]
        digits = 3 if slowest and slowest[0].median_ms >= 1 else 4
        rows = [
            (f"{layer.median_ms:.{digits}f}", f"{layer.p90_ms:.{digits - 1}f}", f"{100 * layer.share:.1f}",
             layer.kind, layer.precision, " ".join(map(format_shape, layer.output_shapes)), _placed(layer))
            for layer in slowest
        ]  # fmt: skip
        header = ("ms", "p90", "%", "kind", "dtype", "output", "slowest layers")
        return table(rows, header, "rrr") + _more(len(self.layers) - len(rows), "layers") if rows else ""

    def _blocks(self) -> str:
        slowest = sorted(self.blocks, key=lambda block: -(block.median_ms or 0.0))[:SHOWN]
        rows = [
            (number(block.median_ms), "-" if block.share is None else f"{block.share:.1%}", _without(block), block.op,
             block.name)
            for block in slowest
        ]  # fmt: skip
        header = ("ms", "share", "without", "op", "attention")
        alike = Counter((block.op, block.plan, block.why) for block in self.blocks)
        said = [(str(count), op, f"{plan}{f' ({why})' if why else ''}") for (op, plan, why), count in alike.items()]
        drawn = table(rows, header, "rrr") + _more(len(self.blocks) - len(rows), "blocks")
        return f"{drawn}\n\n{table(said, ('blocks', 'op', 'run by'), 'r')}" if rows else ""

    def _kinds(self) -> str:
        rows = [
            (f"{group.median_ms:.4f}", f"{group.share:.1%}", str(group.layers), group.name)
            for group in grouped(self.layers, "kind")
        ]
        return table(rows, ("ms", "share", "layers", "kind"), "rrr") if rows else ""


def _more(rest: int, what: str) -> str:
    return f"\n... and {rest} faster {what}" if rest else ""


def _placed(layer: Layer) -> str:
    """A layer's name and where it is, unless the name says so."""
    where = layer.attention or layer.module
    return layer.name if layer.name.startswith(where) else f"{layer.name} ({where})"


def _without(block: Block) -> str:
    """What the engine saves without a block, and its bounds."""
    if block.ablation_interval_ms is None:
        return number(block.ablation_ms)
    return f"{number(block.ablation_ms)} [{', '.join(map(number, block.ablation_interval_ms))}]"


def _csv_cell(value: object) -> object:
    if isinstance(value, tuple):
        value = " ".join(format_shape(item) if isinstance(item, tuple) else str(item) for item in value)
    if isinstance(value, str):  # a spreadsheet takes what begins so for a formula
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return "" if value is None else value
