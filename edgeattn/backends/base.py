"""What every backend agrees on: the settings of a build, and the session an engine runs in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from edgeattn.engine import Engine, Sidecar
from edgeattn.graph import Graph
from edgeattn.tensors import ShapeRange, TensorSpec, are_usual, check_feeds, usual_feeds

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Dim, Feeds, Shape


Progress = Callable[[str, "float | None"], None]  # called with a phase and its fraction, None where that is not known


def silent(phase: str, fraction: float | None = None) -> None:
    """The progress callback of whoever does not watch."""


@dataclass(frozen=True)
class BuildConfig:
    """How to build; names and meanings follow trtexec.

    Attributes:
        precision: the dtype to compute in, by name; empty keeps the graph's own. A backend receives a graph that is
            typed already, and never lowers anything by itself.
        rest: the dtype of what is not in INT8 where `precision` is.
        layer_precisions: by the name of a node in the fused graph or of a module, or a glob, its own precision.
        min_shapes: with `opt_shapes` and `max_shapes`, what was asked of the inputs by name; see `resolve_profile`.
        profile: the resolved range of every input, filled in before a backend sees the config.
        keep_io_types: inputs and outputs keep the model's dtypes where `precision` lowers the rest.
        targets: compute capabilities such as `sm_89`; empty means this machine's device.
        workspace: most memory a TensorRT tactic may use, in bytes; None leaves TensorRT's own limit.
        timing_cache: a file that is read and written; None for none.
        opt_level: TensorRT's builder optimisation level, 0 to 5.
        version_compatible: the plan also loads in later minor versions of TensorRT.
        hardware_compatibility: `none`, `ampere_plus` or `same_compute_capability`.
        fuse: build of the graph with its attentions recognised; off, of what the exporter wrote.
        forms: by the name of an attention, the form to run it in instead of the planned one; see `lowering.forms`.
        attention: what TensorRT runs attention with: `native`, its own fusion and plain operators; `plugin`, kernels of
            edgeattn wherever there is one; `auto`, for each attention what is faster alone on this device, and where
            that is a tie or cannot be measured, the kernels where its own fusion does not reach.
        tf32: allow TensorFloat-32 in float32 layers; off, since it is not what float32 says.
        threads: that one run of a CPU engine takes; None leaves it to the runtime.
        improve: the steps that improve INT8, by name, to take without asking what they gain; None to find out. See
            `edgeattn.precision.int8.improve`, whose steps need samples all the same.
        progress: called with a phase and its fraction, None where that cannot be known.
    """

    precision: str = ""
    rest: str = "float32"
    layer_precisions: Mapping[str, str] = field(default_factory=dict)
    min_shapes: Mapping[str, Shape] = field(default_factory=dict)
    opt_shapes: Mapping[str, Shape] = field(default_factory=dict)
    max_shapes: Mapping[str, Shape] = field(default_factory=dict)
    profile: Mapping[str, ShapeRange] = field(default_factory=dict)
    keep_io_types: bool = True
    targets: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: str | None = None
    opt_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    attention: str = "auto"
    tf32: bool = False
    fuse: bool = True
    forms: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    improve: tuple[str, ...] | None = None
    progress: Progress = field(default=silent, compare=False)


def config_of(sidecar: Sidecar) -> BuildConfig:
    """The settings that an engine was built with, as its sidecar has them, but its timing cache."""
    names = ({item.name for item in fields(BuildConfig)} & set(sidecar.config)) - {"timing_cache"}
    settings = {name: sidecar.config[name] for name in names}
    settings |= {"precision": sidecar.precision.asked, "targets": tuple(settings.get("targets", ()))}
    if settings.get("improve") is not None:
        settings["improve"] = tuple(settings["improve"])
    return BuildConfig(**{**settings, "profile": sidecar.profile})


@dataclass(frozen=True)
class RawLayer:
    """A layer as its backend names it.

    `origins` are names of nodes of the graph that was built, as far as the backend kept them; `reads` are the places
    of the layers whose outputs it takes. A dimension that the backend does not tell is `?`.
    """

    name: str
    kind: str
    precision: str = ""
    input_shapes: tuple[tuple[Dim, ...], ...] = ()
    output_shapes: tuple[tuple[Dim, ...], ...] = ()
    kernel: str = ""
    origins: tuple[str, ...] = ()
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerTimes:
    """The layers of an engine in the order in which they run, and the nanoseconds of each: a row a run.

    Where a backend tells only means of several runs, a row is such a mean, of `runs_a_row` runs.
    """

    layers: tuple[RawLayer, ...]
    rows: tuple[tuple[float, ...], ...]
    runs_a_row: int = 1


@dataclass
class Session:
    """An engine, loaded and ready. A context manager: leaving it frees what it holds.

    `infer` maps checked feeds to the outputs by name; `release` frees the backend's resources. A session that was
    opened for profiling has `layers`: the times of all runs since it was opened or last asked, but the first of them.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Mapping[str, ShapeRange]
    infer: Callable[[dict[str, Array]], dict[str, Array]]
    release: Callable[[], None] = lambda: None
    device: str = "cpu"  # in words, for reports
    details: Mapping[str, Any] = field(default_factory=dict)
    layers: Callable[[], LayerTimes] | None = None

    def __post_init__(self) -> None:
        self._usual = usual_feeds(self.inputs, self.profile)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once.

        Raises:
            InputError: the feeds do not fit the inputs; says name, expected and got.
            InferenceError: the backend failed.
        """
        usual = are_usual(feeds, self._usual)
        return self.infer(dict(feeds) if usual else check_feeds(self.inputs, self.profile, feeds))

    def close(self) -> None:
        """Free what the session holds; a second call does nothing."""
        release, self.release = self.release, lambda: None
        release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Backend(Protocol):
    """A backend is a module with these functions.

    It takes INT8 in the form `INT8`, a scheme of `quantise`, and in the rest of such a graph the dtypes `BESIDE_INT8`.
    """

    INT8: str
    BESIDE_INT8: tuple[str, ...]

    def missing(self, running: bool = True) -> list[str]:
        """Why this machine cannot run the backend's engines, or only build them; empty where it can. Never raises."""

    def unsupported(self, graph: Graph) -> list[str]:
        """What in a graph the backend cannot build, all of it at once; empty where it can."""

    def build(self, graph: Graph, config: BuildConfig) -> Engine:
        """Build a typed graph. Raises BuildError or UnsupportedError, and no other library's error."""

    def load(self, engine: Engine, profiling: bool = False) -> Session:
        """Check version and device against the sidecar, then deserialise; where asked, so that layers are timed."""


def unknown_operators(graph: Graph, domains: Collection[str]) -> list[str]:
    """Name every operator that is neither in one of a backend's domains nor a function of the model."""
    import onnx.defs

    def known(domain: str, op_type: str) -> bool:
        return domain in domains and (domain == "com.microsoft" or onnx.defs.has(op_type, domain))

    functions = {(domain, name) for domain, name, _ in graph.model.functions}
    first: dict[tuple[str, str], str] = {}
    for node in graph.nodes():
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key not in functions and not known(*key):
            first.setdefault(key, node.name or "unnamed")
    return [f"unknown operator {domain or 'ai.onnx'}::{op} (node {name!r})" for (domain, op), name in first.items()]
