"""The times of ONNX Runtime's kernels, from the profile that it writes when a session ends."""

from __future__ import annotations

import json
import tempfile
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeattn.backends.base import LayerTimes, RawLayer
from edgeattn.errors import InferenceError, one_line

if TYPE_CHECKING:
    import onnxruntime as ort

    from edgeattn.tensors import Array

    Runner = Callable[[dict[str, Array]], dict[str, Array]]

SUFFIX = "_kernel_time"
_TYPE_NAMES = {"float": "float32", "double": "float64"}  # the rest are called as in the dtype table


class LayerTimer:
    """Runs a model under ONNX Runtime's profiler, each reading in a session of its own.

    Args:
        plan: the model, as ONNX.
        opened: opens it with the given options.
        runner: gives the function that runs it.
    """

    def __init__(
        self,
        plan: bytes,
        opened: Callable[[ort.SessionOptions], ort.InferenceSession],
        runner: Callable[[ort.InferenceSession], Runner],
    ) -> None:
        self._names = _names(plan)
        self._opened, self._runner = opened, runner
        self._folder = tempfile.TemporaryDirectory()
        self._session: ort.InferenceSession | None = self._open()

    def _open(self) -> ort.InferenceSession:
        session = self._opened(profiled(self._folder.name))
        self._run = self._runner(session)
        return session

    def infer(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run once."""
        self._session = self._session or self._open()
        return self._run(feeds)

    def layers(self) -> LayerTimes:
        """Every kernel of every run since the last call but the first; the next run begins afresh."""
        session, self._session = self._session, None
        return layer_times(kernels(session) if session else [], self._names)

    def close(self) -> None:
        """Remove what the profiler wrote."""
        if self._session:
            self._session.end_profiling()
        self._folder.cleanup()


def profiled(folder: str) -> ort.SessionOptions:
    """Options of a session whose profile goes into a folder."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "run")
    return options


def kernels(session: ort.InferenceSession) -> list[list[dict[str, Any]]]:
    """End a session's profile: the events of the kernels of each run, in the order in which they began.

    Raises:
        InferenceError: the profile cannot be read.
    """
    path = Path(session.end_profiling())
    try:
        events = json.loads(path.read_text())
        path.unlink()
    except (OSError, ValueError) as err:
        raise InferenceError(
            f"ONNX Runtime's profile {path} cannot be read ({one_line(err)}); is the disk full?"
        ) from err
    later = sorted(event["ts"] for event in events if event["name"] == "model_run")[1:]
    found: list[list[dict[str, Any]]] = [[] for _ in range(len(later) + 1)]
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["name"].endswith(SUFFIX):
            found[bisect(later, event["ts"])].append(event)
    return found


def layer_times(runs: Sequence[Sequence[dict[str, Any]]], names: Mapping[str, str]) -> LayerTimes:
    """Sum up events per kernel and run, without the first run.

    What runs inside of another (the body of a Loop) is part of its time.
    """
    tables = []
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs[1:]:
        spent: dict[tuple[str, str], float] = {}
        end = -1
        for event in run:
            if event["ts"] + event["dur"] <= end and event["ts"] < end:
                continue
            end = event["ts"] + event["dur"]
            key = (event["name"], event["args"]["node_index"])
            first.setdefault(key, event)
            spent[key] = spent.get(key, 0.0) + 1e3 * event["dur"]
        tables.append(spent)
    shared = Counter(name for name, _ in first)
    layers = tuple(_layer(event, names, shared[event["name"]] > 1) for event in first.values())
    return LayerTimes(layers, tuple(tuple(spent.get(key, 0.0) for key in first) for spent in tables))


def _layer(event: dict[str, Any], names: Mapping[str, str], shared: bool) -> RawLayer:
    """A layer; a name that it shares with others gets the kernel's number."""
    args, name = event["args"], event["name"].removesuffix(SUFFIX)
    return RawLayer(
        name=f"{name or args['op_name']}_{args['node_index']}" if shared or not name else name,
        kind=args["op_name"],
        precision=compute_dtype(args),
        input_shapes=_shapes(args["input_type_shape"]),
        output_shapes=_shapes(args["output_type_shape"]),
        kernel=args["provider"],
        origins=tuple(origin for origin in [_origin(name, names)] if origin),
    )


def _origin(name: str, names: Mapping[str, str]) -> str:
    """The node that a kernel's name still shows: `fused node_8`, `node_5/MatMulScaleFusion/`, `relu_nchwc`.

    The last is a convolution in channel blocks, named after its output.
    """
    name = name.removeprefix("fused ")
    while name:
        for known in (name, name.removesuffix("_nchwc")):
            if known in names:
                return names[known]
        name = name.rpartition("/")[0]
    return ""


def _names(plan: bytes) -> dict[str, str]:
    """The nodes of a model by their own names and by those of their outputs."""
    import onnx

    nodes = onnx.load_from_string(plan).graph.node
    by_output = {output: node.name for node in nodes for output in node.output}
    return {**by_output, **{node.name: node.name for node in nodes}}


def _shapes(ports: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for port in ports for shape in port.values())


def compute_dtype(kernel: Mapping[str, Any]) -> str:
    """The dtype that a kernel computes in, by what goes in and out: INT8, or the first float."""
    types = [name for port in kernel["input_type_shape"] + kernel["output_type_shape"] for name in port]
    if types[:1] in (["int8"], ["uint8"]):
        return "int8"
    return next((_TYPE_NAMES.get(name, name) for name in types if name.startswith(("float", "bfloat", "double"))), "")
