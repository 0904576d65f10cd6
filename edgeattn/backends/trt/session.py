"""Runs TensorRT and TensorRT-RTX engines: memory, stream and events through pycuda, in the primary context.

The primary context is the one torch and TensorRT itself use. It is made current for each run and put back after it,
so that a session can be used from any thread and beside other users of the GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.backends.base import LayerTimes, Session
from edgeattn.backends.trt import library as lib
from edgeattn.backends.trt import profile, registry
from edgeattn.backends.trt.builder import AMPERE_PLUS
from edgeattn.backends.trt.device import gpus
from edgeattn.backends.trt.network import DTYPES
from edgeattn.engine import Engine, Sidecar, require_match, this_platform
from edgeattn.errors import InferenceError, InputError, UnsupportedError, one_line
from edgeattn.tensors import TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from edgeattn.tensors import Array, Shape


def load(flavour: lib.Flavour, engine: Engine, profiling: bool = False) -> Session:
    """Open an engine, once version, platform and GPU are known to be those it was built for.

    `details` of the session holds three functions: `timings`, the milliseconds of the last run (`h2d`, `compute`,
    `d2h`), `memory`, the GPU's bytes beyond the weights, and `compute`, the layers of the built engine by the dtype
    they write, as TensorRT's inspector has them.

    Raises:
        EngineMismatchError: it was built for something else.
        UnsupportedError: this machine cannot run it.
        InputError: TensorRT does not read the plan, or the plan is not what the sidecar says.
        InferenceError: the GPU refused memory or the context.
    """
    reasons = lib.missing(flavour, running=True)
    if reasons:
        raise UnsupportedError(f"{flavour.title} engines cannot run here", reasons)
    library, sidecar, gpu = lib.library(flavour), engine.sidecar, gpus()[0]
    require_fit(library, sidecar, gpu.compute_capability)

    import pycuda.driver as cuda

    try:
        execution = Execution(library, engine, profiling)
    except cuda.Error as err:
        raise InferenceError(f"the GPU refused the engine: {one_line(err)}") from err
    return Session(
        sidecar.inputs,
        sidecar.outputs,
        sidecar.profile,
        execution.infer,
        execution.close,
        device=f"{gpu.name} ({gpu.compute_capability})",
        details={"timings": execution.timings, "compute": execution.compute, "memory": execution.memory},
        layers=execution.layers if profiling else None,
    )


def require_fit(library: lib.Library, sidecar: Sidecar, compute_capability: str) -> None:
    """Compare an engine with this machine: its TensorRT, its platform and its GPU.

    A version-compatible engine also runs in versions later than the one that built it.

    Raises:
        EngineMismatchError: it was built for something else.
    """

    def numbers(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version)]

    built = sidecar.backend_version
    if not (sidecar.config.get("version_compatible") and numbers(library.version) >= numbers(built)):
        require_match(sidecar, library.flavour.title, [built], library.version)
    require_match(sidecar, "the platform", [sidecar.platform], this_platform())
    if not (AMPERE_PLUS in sidecar.targets and int(compute_capability[3:]) >= 80):
        require_match(sidecar, "compute capability", sidecar.targets, compute_capability)


class Execution:
    """A deserialised plan with its context, stream and buffers. Buffers are sized for the largest shapes, once."""

    def __init__(self, library: lib.Library, engine: Engine, profiling: bool) -> None:
        import pycuda.driver as cuda

        self._cuda, self._trt = cuda, library.trt
        self._lock = threading.Lock()
        self._specs = (*engine.sidecar.inputs, *engine.sidecar.outputs)
        self._outputs = engine.sidecar.outputs
        self._shapes: dict[str, Shape] = {}
        self._device: dict[str, Any] = {}
        self._host: dict[str, Array] = {}
        self._primary = _primary_context()
        with self._current(), lib.messages() as heard:
            self._engine = _deserialise(library, engine, heard)
            _check_ports(self._engine, self._specs)
            self._context = _context(library, self._engine, engine.sidecar, profiling)
            if not self._context:
                raise InferenceError(f"{library} has no context for the engine: {lib.errors_in(heard)}")
            self._stream = cuda.Stream()
            self._events = [cuda.Event() for _ in range(4)]
            self._allocate(engine.sidecar)
            self._timer = profile.attach(self._trt, self._context) if profiling else profile.LayerTimer()

    def infer(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Copy in, run, copy out, on a stream of its own; returns arrays that the caller owns."""
        try:
            with self._lock, self._current(), lib.messages() as heard:
                return self._infer(feeds, heard)
        except self._cuda.Error as err:
            raise InferenceError(f"the GPU failed: {one_line(err)}") from err

    def timings(self) -> dict[str, float]:
        """Milliseconds of the last run on the GPU: copies to it, the network, copies back."""
        with self._current():
            marks = [end.time_since(start) for start, end in zip(self._events, self._events[1:], strict=False)]
        return dict(zip(("h2d", "compute", "d2h"), marks, strict=True))

    def compute(self) -> dict[str, int]:
        """The layers of the built engine, by the dtype they write."""
        inspector = self._engine.create_engine_inspector()
        return dtypes_of_layers(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def memory(self) -> int:
        """Bytes of the GPU beyond the weights: TensorRT's scratch memory, and the inputs and outputs."""
        key = "device_memory_size_v2" if hasattr(self._engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(self._engine, key)) + sum(array.nbytes for array in self._host.values())

    def layers(self) -> LayerTimes:
        """The times of the layers since the last call; their shapes are those of the last run."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        known = profile.layers_of(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))
        return self._timer.take(known)

    def close(self) -> None:
        """Free everything, the context before its engine."""
        with self._lock, self._current():
            self._stream.synchronize()
            del self._context, self._engine
            for allocation in self._device.values():
                allocation.free()
            self._host.clear()
            del self._events, self._stream

    def _infer(self, feeds: dict[str, Array], heard: list[tuple[bool, str]]) -> dict[str, Array]:
        cuda, stream, context = self._cuda, self._stream, self._context
        self._set_shapes({name: array.shape for name, array in feeds.items()}, heard)
        self._events[0].record(stream)
        for name, array in feeds.items():
            staged = self._host[name][: array.nbytes]
            staged[:] = array.reshape(-1).view(np.uint8)
            cuda.memcpy_htod_async(self._device[name], staged, stream)
        self._events[1].record(stream)
        if not context.execute_async_v3(stream.handle):
            raise InferenceError(f"TensorRT failed: {lib.errors_in(heard)}")
        self._events[2].record(stream)
        found = {spec.name: self._output(spec) for spec in self._outputs}
        for name, (staged, _) in found.items():
            cuda.memcpy_dtoh_async(staged, self._device[name], stream)
        self._events[3].record(stream)
        stream.synchronize()
        return {name: typed.copy() for name, (_, typed) in found.items()}

    def _output(self, spec: TensorSpec) -> tuple[Array, Array]:
        """An output's bytes in page-locked memory, and the same memory in its dtype and shape."""
        shape = tuple(self._context.get_tensor_shape(spec.name))
        dtype = numpy_dtype(spec.dtype)
        staged = self._host[spec.name][: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize]
        return staged, staged.view(dtype).reshape(shape)

    def _set_shapes(self, shapes: dict[str, Shape], heard: list[tuple[bool, str]]) -> None:
        if shapes == self._shapes:
            return
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise InferenceError(f"TensorRT refuses the shape {shape} of input {name!r}: {lib.errors_in(heard)}")
        self._shapes = shapes

    def _allocate(self, sidecar: Sidecar) -> None:
        """Reserve device and page-locked memory for the largest shapes, and tell TensorRT where it is."""
        self._set_shapes({name: spread.max for name, spread in sidecar.profile.items()}, [])
        for spec in self._specs:
            size = int(self._context.get_max_output_size(spec.name)) if spec in self._outputs else _bytes(spec, sidecar)
            if size < 0 or -1 in tuple(self._context.get_tensor_shape(spec.name)):
                raise UnsupportedError(f"the size of output {spec.name!r} depends on the data: run it with onnxruntime")
            self._device[spec.name] = self._cuda.mem_alloc(max(size, 1))
            self._host[spec.name] = self._cuda.pagelocked_empty(max(size, 1), np.uint8)
            self._context.set_tensor_address(spec.name, int(self._device[spec.name]))

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        self._primary.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()


@functools.cache
def _primary_context() -> Any:
    """The first GPU's primary context, retained once and until the process ends, as the CUDA runtime does too.

    pycuda does not pair the calls of a release in the middle of a process, and one by its destructor fails.
    """
    import pycuda.driver as cuda

    cuda.init()
    primary = cuda.Device(0).retain_primary_context()
    atexit.register(primary.detach)
    return primary


def _deserialise(library: lib.Library, engine: Engine, heard: list[tuple[bool, str]]) -> Any:
    """Read a plan. Code of its own it may bring only if it is version-compatible: that one holds its runtime."""
    from polygraphy.backend.trt.util import get_trt_logger

    trt = library.trt
    trt.init_libnvinfer_plugins(get_trt_logger(), "")
    registry.require(library, engine.sidecar)
    runtime = trt.Runtime(get_trt_logger())
    runtime.engine_host_code_allowed = bool(engine.sidecar.config.get("version_compatible"))
    found = runtime.deserialize_cuda_engine(engine.plan)
    if not found:
        raise InputError(f"{library} cannot load the engine: {lib.errors_in(heard)}")
    return found


def _context(library: lib.Library, engine: Any, sidecar: Sidecar, profiling: bool) -> Any:
    """An execution context; TensorRT-RTX captures a CUDA graph by itself where every shape is fixed.

    pycuda offers no stream capture, so TensorRT proper runs without a graph. In a graph, no layer is timed.
    """
    static = all(spread.is_static for spread in sidecar.profile.values())
    if profiling or not (static and library.can.cuda_graphs):
        return engine.create_execution_context()
    runtime_config = engine.create_runtime_config()
    runtime_config.cuda_graph_strategy = library.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(runtime_config)


def _check_ports(engine: Any, specs: tuple[TensorSpec, ...]) -> None:
    """Refuse a plan whose inputs and outputs are not the sidecar's: its buffers would have the wrong size."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: DTYPES.get(engine.get_tensor_dtype(name).name, "") for name in names}
    expected = {spec.name: spec.dtype for spec in specs}
    if found != expected:
        raise InputError(f"the sidecar describes another engine: it says {expected}, the engine has {found}")


def _bytes(spec: TensorSpec, sidecar: Sidecar) -> int:
    return int(np.prod(sidecar.profile[spec.name].max, dtype=np.int64)) * numpy_dtype(spec.dtype).itemsize


def dtypes_of_layers(information: str) -> dict[str, int]:
    """Count the layers in the JSON of TensorRT's engine inspector by the dtype of their first output.

    Other text, and an engine built without details, has no dtypes.
    """
    seen = Counter(layer.precision for layer in profile.layers_of(information) if layer.precision)
    return dict(seen.most_common())
