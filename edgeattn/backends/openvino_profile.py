"""The times of OpenVINO's layers.

OpenVINO sums up the time of a layer over all runs of a compiled model, the slow first ones too, each cut to whole
microseconds, and tells the mean, cut once more (seen with 2026.4). So a model is opened anew for each reading, and
what it told after a few runs is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeattn.backends.base import LayerTimes, RawLayer

if TYPE_CHECKING:
    import openvino as ov

    from edgeattn.tensors import Array, Dim

    Runner = Callable[[dict[str, Array]], dict[str, Array]]
    Opened = tuple[ov.CompiledModel, ov.InferRequest]

COLD_RUNS = 3
CUT = 1.0  # microseconds that two cuts to whole ones take from a mean
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "int8"}
_NO_LAYER = {"Input", "Output", "Const"}


class LayerTimer:
    """Runs a model with OpenVINO's counters on, each reading from a model of its own.

    Args:
        opened: opens the model.
        runner: gives the function that runs it.
    """

    def __init__(self, opened: Callable[[], Opened], runner: Callable[..., Runner]) -> None:
        self._opened, self._runner = opened, runner
        self._open()

    def _open(self) -> None:
        self._read = False
        self._compiled, self._request = self._opened()
        self._run = self._runner(self._compiled, self._request)
        self._cold: dict[str, int] = {}
        self._runs = 0

    def infer(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run once; the first run stands for a few that nobody counts."""
        if self._read:
            self._open()
        if not self._runs:
            for _ in range(COLD_RUNS - 1):
                self._run(feeds)
        outputs = self._run(feeds)
        self._runs += 1
        if self._runs == 1:
            self._cold = _microseconds(self._request)
        return outputs

    def layers(self) -> LayerTimes:
        """The mean of each layer over the runs since the last call; the next run begins afresh."""
        runs, self._runs, self._read = self._runs - 1, 0, True
        spent, layers = _microseconds(self._request), _layers(self._compiled)
        if runs < 1:
            return LayerTimes(layers, (), 1)
        means = (_mean(spent.get(layer.name, 0), self._cold.get(layer.name, 0), runs) for layer in layers)
        rows = (tuple(1e3 * mean for mean in means),)
        return LayerTimes(layers, rows, runs)


def _mean(spent: int, cold: int, runs: int) -> float:
    """Microseconds of a run, from the means over all and over the first runs; a layer of none stays at none."""
    if not spent:
        return 0.0
    return max(0.0, (spent * (runs + COLD_RUNS) - cold * COLD_RUNS) / runs + CUT)


def _microseconds(request: ov.InferRequest) -> dict[str, int]:
    return {info.node_name: round(info.real_time.total_seconds() * 1e6) for info in request.profiling_info}


def _layers(compiled: ov.CompiledModel) -> tuple[RawLayer, ...]:
    """The layers in the order in which they run, as the compiled model's own graph has them."""
    ops = [
        op for op in compiled.get_runtime_model().get_ordered_ops() if runtime_info(op, "layerType") not in _NO_LAYER
    ]
    ops.sort(key=lambda op: int(runtime_info(op, "execOrder")))
    places = {op.get_friendly_name(): place for place, op in enumerate(ops)}
    return tuple(_layer(op, places) for op in ops)


def _layer(op: ov.Node, places: dict[str, int]) -> RawLayer:
    precision = runtime_info(op, "runtimePrecision")
    sources = {value.get_node().get_friendly_name() for value in op.input_values()}
    return RawLayer(
        name=op.get_friendly_name(),
        kind=runtime_info(op, "layerType"),
        precision=DTYPES.get(precision, precision),
        input_shapes=tuple(_shape(port) for port in op.inputs()),
        output_shapes=tuple(_shape(port) for port in op.outputs()),
        kernel=re.sub(r"^un(known|def).*", "", runtime_info(op, "primitiveType")),
        origins=tuple(filter(None, runtime_info(op, "originalLayersNames").split(","))),
        reads=tuple(sorted(places[source] for source in sources if source in places)),
    )


def _shape(port: Any) -> tuple[Dim, ...]:
    return tuple(dim.get_length() if dim.is_static else "?" for dim in port.get_partial_shape())


def runtime_info(op: Any, key: str) -> str:
    """What OpenVINO notes at an op of a compiled model's graph."""
    return str(op.get_rt_info()[key].astype(str))
