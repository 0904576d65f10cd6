"""The session that shows the values that calibration looks at, at the least cost for the runtime."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from edgeattn.errors import InferenceError, UnsupportedError, one_line
from edgeattn.graph import Graph, with_profile
from edgeattn.normalise import infer_types
from edgeattn.tensors import ShapeRange

if TYPE_CHECKING:
    import onnxruntime as ort

    from edgeattn.tensors import Array, Feeds, Shape

CHANNEL_BLOCK = 16  # the largest in which ONNX Runtime lays out channels
CACHE_LINE = 64
Look = Callable[["Feeds"], "dict[str, Array]"]


def observed_shapes(graph: Graph, names: Mapping[str, Any], fed: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of the inputs and of the named values in a run of inputs of these shapes, where they follow."""
    fixed = with_profile(graph, {name: ShapeRange(shape, shape, shape) for name, shape in fed.items()})
    infer_types(fixed.model)
    made = [value for node in fixed.model.graph for value in node.outputs if value.name in names]
    known = [value for value in made if value.shape is not None and value.shape.is_static()]
    return dict(fed) | {value.name or "": value.shape.numpy() for value in known if value.shape is not None}


def open_look(graph: Graph, names: Mapping[str, Any], shapes: Mapping[str, Shape], threads: int) -> Look:
    """Open a session in ONNX Runtime that gives the values of these names.

    Args:
        graph: what is run.
        names: of inputs and of what nodes make.
        shapes: from `observed_shapes`; runs of inputs of other shapes take longer.
        threads: of one run.

    Returns:
        A function of the feeds, which several threads may call; the next call of the same thread overwrites what it
        gave. Of some values, the elements come in another order.

    Raises:
        UnsupportedError: ONNX Runtime cannot run the graph.
    """
    shown = graph.copy()
    main = shown.model.graph
    inputs = [value.name or "" for value in main.inputs if value.name in names]
    made = {value.name or "": value for node in main for value in node.outputs if value.name in names}
    main.outputs.extend(value for value in made.values() if not value.is_graph_output())
    try:
        session, fetches = _opened(shown, list(made), threads)
    except Exception as err:
        raise UnsupportedError(f"ONNX Runtime cannot run the graph to observe it: {one_line(err)}") from err
    dtypes = {fetches[name]: (value.dtype or ir.DataType.FLOAT).numpy() for name, value in made.items()}
    kept = _Kept(session, dtypes, {fetches[name]: shapes[name] for name in made if name in shapes})

    def run(feeds: Feeds) -> dict[str, Array]:
        if not dtypes:  # to the runtime, no names are all
            return {}
        if all(array.shape == shapes.get(name) for name, array in feeds.items()):
            with contextlib.suppress(Exception):  # a shape that was inferred wrong, or what happens again below
                return kept.run(feeds)
        return dict(zip(dtypes, session.run(list(dtypes), dict(feeds)), strict=True))

    def look(feeds: Feeds) -> dict[str, Array]:
        try:
            arrays = run(feeds)
        except Exception as err:
            raise InferenceError(f"ONNX Runtime failed: {one_line(err)}") from err
        return {name: feeds[name] for name in inputs} | {name: arrays[fetched] for name, fetched in fetches.items()}

    return look


class _Kept(threading.local):
    """Memory for the outputs of a session, each thread's own: what every run would allocate anew, page by page.

    It is one piece, since only large pieces get large pages. Outputs of unknown shape are allocated by the runtime.
    """

    def __init__(
        self, session: ort.InferenceSession, dtypes: Mapping[str, np.dtype[Any]], shapes: Mapping[str, Shape]
    ) -> None:
        self.session, self.binding = session, session.io_binding()
        sizes = [math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()]
        starts = np.cumsum([0, *(-(-size // CACHE_LINE) * CACHE_LINE for size in sizes)])
        memory = np.empty(starts[-1] + CACHE_LINE, np.uint8)
        memory = memory[-memory.ctypes.data % CACHE_LINE :]
        self.arrays: dict[str, Array] = {}
        for (name, shape), start, size in zip(shapes.items(), starts, sizes, strict=False):
            self.arrays[name] = array = memory[start : start + size].view(dtypes[name]).reshape(shape)
            self.binding.bind_output(name, "cpu", 0, array.dtype, shape, array.ctypes.data)
        self.others = [name for name in dtypes if name not in shapes]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        for name, array in feeds.items():
            self.binding.bind_cpu_input(name, array)
        for name in self.others:
            self.binding.bind_output(name, "cpu")  # what the last run bound to it has that run's shape
        self.session.run_with_iobinding(self.binding)
        made = self.binding.get_outputs()[len(self.arrays) :] if self.others else []
        return self.arrays | dict(zip(self.others, (value.numpy() for value in made), strict=True))


def _opened(graph: Graph, names: Sequence[str], threads: int) -> tuple[ort.InferenceSession, dict[str, str]]:
    """A session, and the output to fetch for each value.

    ONNX Runtime computes convolutions with channels in blocks and would reorder every value that leaves. So the graph
    as it has optimised it is made to give the values in blocks, and opened once more: where these are full, nothing
    else is in them.
    """
    import onnxruntime as ort

    options = _options(threads)
    if not graph.op_counts()["Conv"]:
        session = ort.InferenceSession(graph.serialized, options, ["CPUExecutionProvider"])
        return session, {name: name for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimised.onnx")
        options.optimized_model_filepath = path
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        ort.InferenceSession(graph.serialized, options, ["CPUExecutionProvider"])
        optimised = onnx.load(path, load_external_data=False)
        fetches = _without_reordering(optimised.graph, names)
        onnx.save(optimised, path)
        options = _options(threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(path, options, ["CPUExecutionProvider"]), fetches


def _options(threads: int) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return options


def _without_reordering(graph: onnx.GraphProto, names: Sequence[str]) -> dict[str, str]:
    """Let an optimised graph give values as they are inside; returns the output to fetch for each."""
    readers = Counter(name for node in graph.node for name in node.input)
    fetches = {name: name for name in names}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    for node in [node for node in graph.node if node.op_type == "ReorderOutput"]:
        channels = next((item.i for item in node.attribute if item.name == "channels"), 1)
        if node.output[0] in fetches and not readers[node.output[0]] and channels % CHANNEL_BLOCK == 0:
            fetches[node.output[0]] = node.input[0]
            graph.node.remove(node)
    del graph.output[:]
    for name in dict.fromkeys(fetches.values()):
        graph.output.add(name=name).type.tensor_type.elem_type = types.get(name, onnx.TensorProto.FLOAT)
    return fetches
