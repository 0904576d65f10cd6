"""What every backend agrees on: the settings of a build, and the session an engine runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from edgeattn.engine import Engine
from edgeattn.graph import Graph
from edgeattn.tensors import Array, Feeds, ShapeRange, TensorSpec, check_feeds


def silent(phase: str, fraction: float | None = None) -> None:
    """The progress callback of whoever does not watch."""


@dataclass(frozen=True)
class BuildConfig:
    """How to build; names and meanings follow trtexec.

    `precision` is the dtype that the graph was already typed to: a backend never lowers anything by itself.
    `targets` are compute capabilities (`sm_89`); empty means this machine's device. `workspace` is in bytes.
    `progress(phase, fraction)` is called as the build goes; fraction is None where it cannot be known.
    """

    profile: Mapping[str, ShapeRange]
    precision: str = "float32"
    targets: tuple[str, ...] = ()
    workspace: int | None = None
    timing_cache: str | None = None
    opt_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    tf32: bool = False
    progress: Callable[[str, float | None], None] = field(default=silent, compare=False)


@dataclass
class Session:
    """An engine, loaded and ready. A context manager: leaving it frees what it holds.

    `infer` maps checked feeds to the outputs by name; `release` frees the backend's resources.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Mapping[str, ShapeRange]
    infer: Callable[[dict[str, Array]], dict[str, Array]]
    release: Callable[[], None] = lambda: None
    device: str = "cpu"  # in words, for reports
    details: Mapping[str, Any] = field(default_factory=dict)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run once.

        Raises:
            InputError: the feeds do not fit the inputs; says name, expected and got.
            InferenceError: the backend failed.
        """
        return self.infer(check_feeds(self.inputs, self.profile, feeds))

    def close(self) -> None:
        """Free what the session holds; a second call does nothing."""
        release, self.release = self.release, lambda: None
        release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Backend(Protocol):
    """A backend is a module with these functions."""

    def missing(self) -> list[str]:
        """Why this machine cannot run the backend's engines; empty where it can. Must not raise."""

    def unsupported(self, graph: Graph) -> list[str]:
        """What in a graph the backend cannot build, all of it at once; empty where it can."""

    def build(self, graph: Graph, config: BuildConfig) -> Engine:
        """Build a typed graph. Raises BuildError or UnsupportedError, and no other library's error."""

    def load(self, engine: Engine) -> Session:
        """Check version and device against the sidecar, then deserialise."""
