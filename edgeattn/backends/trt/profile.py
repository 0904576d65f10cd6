"""TensorRT's layers: what the engine inspector says of each, and its times by `IProfiler`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeattn.backends.base import LayerTimes, RawLayer

if TYPE_CHECKING:
    from edgeattn.tensors import Dim

# TensorRT 10 says "Format/Datatype": "Channel major FP16 format where channel % 8 == 0", TensorRT 11 splits it
# into "Format" and "Datatype": "Half" (the migration guide writes "DataType").
_TYPE_WORDS = (
    ("bfloat16", r"BF16|BFloat16"),
    ("float16", r"FP16|Half"),
    ("float8_e4m3fn", r"FP8"),
    ("float32", r"FP32|Float"),
    ("int8", r"INT8|Int8"),
)


def layers_of(information: str) -> tuple[RawLayer, ...]:
    """The layers in the JSON of TensorRT's engine inspector, of 10.x and of 11.x.

    An engine that was built without details has names only. Other text has no layers.
    """
    try:
        found = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError):
        return ()
    items = [{"Name": item} if isinstance(item, str) else item for item in found if isinstance(item, str | dict)]
    makers = {name: place for place, item in enumerate(items) for name, _, _ in _ports(item, "Outputs")}
    return tuple(_layer(item, makers) for item in items)


def _layer(item: Mapping[str, Any], makers: Mapping[str, int]) -> RawLayer:
    inputs, outputs = _ports(item, "Inputs"), _ports(item, "Outputs")
    return RawLayer(
        name=str(item.get("Name", "")),
        kind=str(item.get("ParameterType") or item.get("LayerType", "")),
        precision=dtype_in(outputs[0][2]) if outputs else "",
        input_shapes=tuple(shape for _, shape, _ in inputs),
        output_shapes=tuple(shape for _, shape, _ in outputs),
        kernel=str(item.get("TacticName") or item.get("TacticValue", "")),
        origins=_origins(item),
        reads=tuple(sorted({makers[name] for name, _, _ in inputs if name in makers})),
    )


def _ports(item: Mapping[str, Any], side: str) -> list[tuple[str, tuple[Dim, ...], str]]:
    """Name, shape and format of a layer's inputs or outputs; a dimension that is dynamic is `?`."""
    found = item.get(side, [])
    ports = [port for port in found if isinstance(port, dict)] if isinstance(found, list) else []
    return [
        (
            str(port.get("Name", "")),
            _shape(port.get("Dimensions")),
            str(port.get("Datatype") or port.get("DataType") or port.get("Format/Datatype", "")),
        )
        for port in ports
    ]


def _shape(sizes: Any) -> tuple[Dim, ...]:
    known = sizes if isinstance(sizes, list) else []
    return tuple(size if isinstance(size, int) and size >= 0 else "?" for size in known)


def _origins(item: Mapping[str, Any]) -> tuple[str, ...]:
    """The ONNX nodes in a layer's metadata, `[ONNX Layer: a]` and so on; without any, in the name: `a + b`."""
    noted = re.findall(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|\[ONNX|$)", str(item.get("Metadata", "")))
    return tuple(dict.fromkeys(noted)) or tuple(str(item.get("Name", "")).split(" + "))


def dtype_in(words: str) -> str:
    """The dtype that the inspector's words for a tensor's format speak of; empty for any other."""
    return next((name for name, pattern in _TYPE_WORDS if re.search(rf"\b({pattern})\b", words)), "")


class LayerTimer:
    """Collects what a TensorRT profiler reports, layer by layer and run by run."""

    def __init__(self) -> None:
        self._runs: list[dict[str, float]] = []

    def add(self, name: str, milliseconds: float) -> None:
        """Take one layer's time; a layer that was there already begins the next run."""
        if not self._runs or name in self._runs[-1]:
            self._runs.append({})
        self._runs[-1][name] = 1e6 * milliseconds

    def take(self, known: Sequence[RawLayer]) -> LayerTimes:
        """The times so far, without the first run, for the layers that the inspector knows and those it does not."""
        runs, self._runs = self._runs[1:], []
        by_name = {layer.name: layer for layer in known}
        names = dict.fromkeys([*by_name, *(name for run in runs for name in run)])
        layers = tuple(by_name.get(name, RawLayer(name, "")) for name in names)
        return LayerTimes(layers, tuple(tuple(run.get(name, 0.0) for name in names) for run in runs))


def attach(trt: Any, context: Any) -> LayerTimer:
    """Have a context report the time of each layer after each run."""
    timer = LayerTimer()

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            timer.add(layer_name, ms)

    context.profiler = Profiler()
    return timer
