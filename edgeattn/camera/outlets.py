"""What a frame became, and how it gets to those who want it: none of them can hold up the engine of a camera."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgeattn.camera.frame import Frame
from edgeattn.camera.mailbox import Channel
from edgeattn.camera.timing import Meter

if TYPE_CHECKING:
    from edgeattn.tensors import Array

_WAITING = 8  # results that a lossless sink may be behind


@dataclass(frozen=True, eq=False)
class Result:
    """What an engine said of a frame.

    `outputs` are the engine's by name, each with a batch axis of 1. `value` is what they mean, by the task: an object
    with `to_json`, None where that is not known. `stages` are seconds by name, see `timing.STAGES`.
    """

    frame: Frame
    outputs: Mapping[str, Array]
    value: Any
    stages: Mapping[str, float]

    @property
    def age(self) -> float:
        """Seconds from the frame's first byte to the result."""
        return self.stages["age"]

    def to_json(self) -> dict[str, Any]:
        """An event: `captured_at` is Unix time in seconds, times end in `_ms` or are milliseconds by stage."""
        return {
            "index": self.frame.index,
            "source": self.frame.source,
            "epoch": self.frame.epoch,
            "captured_at": time.time() - (time.monotonic() - self.frame.captured_at),
            "age_ms": 1000 * self.age,
            "stages": {name: 1000 * seconds for name, seconds in self.stages.items() if name != "age"},
            "result": None if self.value is None else self.value.to_json(),
        }


class Sink(Protocol):
    """Whatever takes results: any callable.

    Its `close()`, where it has one, is called at the end, in the same thread. It gets every result of files, and of
    live sources all that it keeps up with; where its `lossless` is False, it gets the newest one only, of files too.
    """

    def __call__(self, result: Result, /) -> object: ...


class Outlet:
    """A sink with the channel that its thread reads."""

    def __init__(self, sink: Sink, live: bool, meter: Meter) -> None:
        self.sink, self._meter = sink, meter
        self.name = str(getattr(sink, "__name__", type(sink).__name__))
        lossless = bool(getattr(sink, "lossless", True))
        self.channel: Channel[Result] = Channel(_WAITING if lossless else 1, lossy=live or not lossless)

    def put(self, result: Result) -> None:
        """Hand over a result; waits only for a lossless sink behind files."""
        self._meter.missed(self.name, self.channel.put(result))

    def work(self) -> None:
        """Give the sink its results until there are no more, and close it."""
        try:
            while (result := self.channel.get()) is not None:
                began = time.monotonic()
                self.sink(result)
                self._meter.delivered(time.monotonic() - began)
        finally:
            self.channel.close(discard=True)
            self.close()

    def close(self) -> None:
        """Close the sink, where it can be closed."""
        close = getattr(self.sink, "close", None)
        if close is not None:
            close()
