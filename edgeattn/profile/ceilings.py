"""What a machine reaches at most, measured on the spot: arithmetic in each precision, and memory.

In the engine's own backend, since data sheets know neither this board's clocks nor what its libraries reach.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeattn.backends import backend_named
from edgeattn.backends.base import BuildConfig
from edgeattn.errors import EdgeAttnError, UnsupportedError
from edgeattn.graph import Graph
from edgeattn.normalise import infer_types
from edgeattn.ops.base import Tape
from edgeattn.precision.mixed import typed_for
from edgeattn.precision.ranges import Range, Ranges
from edgeattn.profile.report import Ceiling, ProfileReport
from edgeattn.profile.roofline import points
from edgeattn.tensors import ShapeRange, numpy_dtype

__all__ = ["ceilings", "with_ceilings"]

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
ABOVE = 1.1  # times the measured ceiling that nothing should be above
TURN_S = 0.3
FEWEST_RUNS = 5
# Sides of the square matrices that arithmetic is measured with: small ones end before a busy machine interrupts them,
# large ones keep many cores at work.
CPU_SIDES, GPU_SIDES = (512, 1024), (4096,)
PRODUCTS = 4  # in a row, so that feeding the first and reading the last does not count
CACHES = 4  # how many times the last cache a copy goes through
MOST_COPIED, PIECE = 2**30, 2**23  # bytes


def with_ceilings(report: ProfileReport) -> ProfileReport:
    """A profile with the ceilings of every precision that its layers compute in, and a note for each that has none."""
    computed = {layer.precision for layer in report.layers if layer.flops}
    precisions = [name for name in PRECISIONS if name in computed]
    if not precisions:
        return report
    found, notes = ceilings(report.backend, precisions)
    report = replace(report, ceilings=found, notes=(*report.notes, *notes))
    above = [point.share for point in points(report) if point.bound == "compute" and point.share > ABOVE]
    if not above:
        return report
    most = f"{len(above)} layers or blocks attain up to {max(above):.1f} times what products of large matrices did"
    return replace(report, notes=(*report.notes, f"{most}: the machine was busy while these were measured"))


def ceilings(backend: str, precisions: Sequence[str]) -> tuple[tuple[Ceiling, ...], tuple[str, ...]]:
    """Measure what a backend reaches on this machine: products of large matrices, and a copy larger than any cache.

    Args:
        backend: a name in `edgeattn.backends.BACKENDS`.
        precisions: dtypes to compute in, by name.

    Returns:
        A ceiling for each precision, and in words what could not be measured.
    """
    gpu = backend.startswith("tensorrt")
    try:
        rate = _streamed(backend) if gpu else _copied()
    except EdgeAttnError as err:
        return (), (f"what the machine reaches was not measured: {err}",)
    found = [_ceiling(backend, precision, GPU_SIDES if gpu else CPU_SIDES, rate) for precision in precisions]
    notes = tuple(item for item in found if isinstance(item, str))
    return tuple(item for item in found if isinstance(item, Ceiling)), notes


def _ceiling(backend: str, precision: str, sides: Sequence[int], rate: float) -> Ceiling | str:
    """A ceiling, or why there is none."""
    try:
        rates = [2 * side**3 * PRODUCTS / _product_seconds(backend, precision, side, side) for side in sides]
    except EdgeAttnError as err:
        return f"what the machine reaches in {precision} was not measured: {err}"
    return Ceiling(precision, max(rates) / 1e9, rate)


def _streamed(backend: str) -> float:
    """GB/s at which a row times large matrices reads the matrices."""
    [side] = GPU_SIDES
    return 4 * PRODUCTS * side**2 / _product_seconds(backend, "float32", 1, side) / 1e9


def _copied() -> float:
    """GB/s of a copy, reading and writing, by as many threads as there are cores.

    It goes piece by piece through more than the caches hold; the rate is that of most pieces.
    """
    size = min(MOST_COPIED, max(2**26, CACHES * _last_cache()), _free_memory() // 4) // 2
    threads = len(os.sched_getaffinity(0))
    source, target = (np.ones(size // 8) for _ in range(2))
    step = min(len(source), PIECE // 8 * threads)
    starts = range(0, len(source) - step + 1, step)
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for start in (*starts, *starts):
            pieces = (np.array_split(array[start : start + step], threads) for array in (target, source))
            began = time.perf_counter()
            list(pool.map(np.copyto, *pieces))  # numpy copies without Python's lock
            times.append(time.perf_counter() - began)
    return 2 * 8 * step / statistics.median(times) / 1e9


def _last_cache() -> int:
    """Bytes of the largest cache; 32 MiB where the machine does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}.get(size[-1], 0) for size in sizes), default=2**25)


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _product_seconds(backend: str, precision: str, rows: int, side: int) -> float:
    """How long `PRODUCTS` products in a row take, of (rows, side) by (side, side).

    What is fed is one row, and what is read is one: on a GPU, all else stays there.

    Raises:
        EdgeAttnError: the backend cannot do it here.
    """
    module = backend_named(backend)
    if reasons := module.missing():
        raise UnsupportedError(f"{backend} cannot run here", reasons)
    graph = _products(rows, side)
    shape = (1, side)
    config = BuildConfig(precision, profile={"x": ShapeRange(shape, shape, shape)})
    names = ["x", *(value.name or "" for node in graph.model.graph for value in node.outputs)]
    ranges = Ranges("minmax", 1, dict.fromkeys(names, Range(-4.0, 4.0, -4.0, 4.0)))
    typed, *_ = typed_for(graph, backend, config, ranges=ranges if precision == "int8" else None)
    with module.load(module.build(typed, config)) as session:
        feeds = {"x": np.ones(shape, numpy_dtype(session.inputs[0].dtype))}
        return _seconds(lambda: session.run(feeds))


def _products(rows: int, side: int) -> Graph:
    """A row x (1, side) added to constant rows, multiplied by one matrix after another, and averaged over the rows."""
    drawn, tape = np.random.default_rng(0), Tape()
    weight = drawn.standard_normal((side, side), np.float32) / np.float32(math.sqrt(side))  # keeps the values' size
    x = ir.Value(name="x", shape=ir.Shape((1, side)), type=ir.TensorType(ir.DataType.FLOAT))
    y = tape.op("Add", [x, tape.constant(drawn.standard_normal((rows, side), np.float32))])
    for place in range(PRODUCTS):
        y = tape.op("MatMul", [y, tape.constant(np.roll(weight, place, axis=0))])
    y = tape.op("ReduceMean", [y, tape.constant(np.array([0]))])
    for place, value in enumerate((*tape.constants, *(node.outputs[0] for node in tape.nodes))):
        value.name = f"value_{place}"
    y.name, y.type = "y", x.type
    main = ir.Graph([x], [y], nodes=tape.nodes, initializers=tape.constants, opset_imports={"": 18}, name="products")
    graph = Graph(ir.Model(main, ir_version=10))
    infer_types(graph.model)
    return graph


def _seconds(run: Callable[[], object]) -> float:
    """The fastest of many runs: whatever disturbs one only makes it slower."""
    run()
    times: list[float] = []
    while len(times) < FEWEST_RUNS or sum(times) < TURN_S:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
