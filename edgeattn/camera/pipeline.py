"""Frames on their way from sources through an engine to sinks: each stage is a thread, so that stages overlap.

    capture -> preprocess \
    capture -> preprocess  > inference -> postprocess -> sinks, and whoever iterates
    capture -> preprocess /

A stage that ends, at the end of its input or by an error, closes the channel before it and the one behind it; so the
others end as well, and what is behind it comes out at the other side.

Decoders, Pillow, numpy and engines let go of Python's lock while they compute. Of a live source the newest frame wins
before and after its preprocessing, so that what the engine takes next is never older than a frame's time, however long
the engine needs; of files every frame waits for its turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeattn.backends.base import Session
from edgeattn.camera.crew import Crew
from edgeattn.camera.custom import as_sources
from edgeattn.camera.frame import EndOfStream, Frame, Source
from edgeattn.camera.mailbox import Channel, Gatherer
from edgeattn.camera.outlets import Outlet, Result, Sink
from edgeattn.camera.runner import Runner, open_runner
from edgeattn.camera.timing import Meter, Stats
from edgeattn.errors import UsageError
from edgeattn.images import Recipe

if TYPE_CHECKING:
    from edgeattn.tensors import Array

_POLL = 0.25  # seconds that a source may keep its thread from seeing that it is to stop
_GRACE = 2.0  # seconds for what is under way when it stops


@dataclass(frozen=True, eq=False)
class _Prepared:
    frame: Frame
    x: Array
    taken: float
    ready: float


@dataclass(frozen=True, eq=False)
class _Inferred:
    source: int
    prepared: _Prepared
    outputs: dict[str, Array]
    began: float
    ended: float


class Pipeline:
    """Iterate over it for results, once; a context manager. Threads start with the first of the two.

    Of a live source, whoever iterates gets the newest result; of files, each one, for which the pipeline waits. Where
    only sinks want results, `run`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        runner: Runner,
        *,
        sinks: Sequence[Sink] = (),
        max_age: float | None = None,
        batch_wait: float = 0.01,
        frames: int | None = None,
        duration: float | None = None,
    ) -> None:
        self.sources, self.runner = sources, runner
        self.live = any(_live(source) for source in sources)
        self._max_age, self._limit, self._duration = max_age, frames, duration
        self._until = float("inf")
        self._meter = Meter(sources)
        changed = threading.Condition()
        self._frames: list[Channel[Frame]] = [Channel(1, lossy=_live(source)) for source in sources]
        self._ready: list[Channel[_Prepared]] = [Channel(1, lossy=_live(source), changed=changed) for source in sources]
        self._gatherer = Gatherer(self._ready, batch_wait, runner.most)
        self._inferred: Channel[_Inferred] = Channel(len(sources))
        self._results: Channel[Result] = Channel(1, lossy=self.live)
        self._outlets = [Outlet(sink, self.live, self._meter) for sink in sinks]
        self._crew = Crew(self._stop)
        self._halt = threading.Event()
        self._started = self._closed = self._iterated = False

    def attach(self, sink: Sink) -> None:
        """Add a sink, which may know the pipeline's `stats`, before the first frame is read.

        Raises:
            UsageError: it runs already.
        """
        if self._started:
            raise UsageError("a sink cannot be added to a pipeline that runs; add it before the first result")
        self._outlets.append(Outlet(sink, self.live, self._meter))

    def stats(self) -> Stats:
        """All that was counted so far; from any thread, at any time."""
        return self._meter.snapshot()

    def run(self) -> None:
        """Let it run to its end, for the sake of its sinks; raises what `__iter__` does."""
        for _ in self:
            pass

    def __iter__(self) -> Iterator[Result]:
        """Give results as they come.

        Raises:
            EdgeAttnError: the first error in any stage, which is named.
            UsageError: somebody iterates over it a second time.
        """
        if self._iterated or self._closed:
            raise UsageError("this pipeline has run or was closed; open another one for more results")
        self._iterated = True
        try:
            self._start()
            while (result := self._results.get()) is not None:
                yield result
            while not (self.live or self._closed or self._crew.failed) and self._crew.join(_POLL):
                pass  # sinks of files get every result, however long they take
        finally:
            self.close()
        self._crew.raise_failure()

    def __enter__(self) -> Pipeline:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if err is None:
            self._crew.raise_failure()

    def close(self) -> tuple[str, ...]:
        """Read no more frames, let what is under way run out, and close sources, sinks and engine.

        Returns:
            The stages that are still at work after 2 s, such as a sink that hangs; they end with the process.
        """
        self._closed = True
        self._results.close(discard=True)
        self._stop()
        if not self._started:
            self._started = True
            for outlet in self._outlets:
                outlet.close()
        if self._crew.join(_GRACE):
            for outlet in self._outlets:  # a sink that hangs holds up the others
                outlet.channel.close(discard=True)
        late = self._crew.join(_POLL)
        if "inference" not in late:
            self.runner.close()
        return late

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        self._until = time.monotonic() + (float("inf") if self._duration is None else self._duration)
        for outlet in self._outlets:
            self._crew.start(f"sink {outlet.name}", outlet.work)
        self._crew.start("postprocess", self._postprocess)
        self._crew.start("inference", self._infer)
        for index, source in enumerate(self.sources):
            self._crew.start(f"preprocess of {source.uri}", partial(self._preprocess, index))
            self._crew.start(f"capture of {source.uri}", partial(self._capture, index))

    def _stop(self) -> None:
        """Read no more frames."""
        self._halt.set()
        for source in self.sources:
            self._crew.attempt(f"closing {source.uri}", source.close)

    def _capture(self, index: int) -> None:
        source, channel = self.sources[index], self._frames[index]
        try:
            while not self._halt.is_set() and time.monotonic() < self._until:
                frame = source.read(_POLL)
                if frame is not None:
                    frame = replace(frame, source=self._meter.names[index])
                    self._meter.captured(index, frame)
                    self._meter.dropped(index, "newer", channel.put(frame))
        except EndOfStream:
            pass
        except Exception:
            if not self._halt.is_set():  # a source that is closed while it reads may say anything
                raise
        finally:
            self._meter.ended(index)
            channel.close()
            source.close()

    def _preprocess(self, index: int) -> None:
        try:
            while (frame := self._frames[index].get()) is not None:
                taken = time.monotonic()
                if self._too_old(index, frame, taken):
                    continue
                prepared = _Prepared(frame, self.runner.prepare(frame.image), taken, time.monotonic())
                self._meter.dropped(index, "newer", self._ready[index].put(prepared))
        finally:
            self._frames[index].close(discard=True)
            self._ready[index].close()

    def _infer(self) -> None:
        try:
            while gathered := self._gatherer.gather():
                now = time.monotonic()
                batch = [item for item in gathered if not self._too_old(item[0], item[1].frame, now)]
                if not batch:
                    continue
                outputs = self.runner.run([prepared.x for _, prepared in batch])
                ended = time.monotonic()
                for (source, prepared), found in zip(batch, outputs, strict=True):
                    self._inferred.put(_Inferred(source, prepared, found, now, ended))
        finally:
            for channel in self._ready:
                channel.close(discard=True)
            self._inferred.close()

    def _postprocess(self) -> None:
        left = self._limit
        try:
            while left != 0 and (inferred := self._inferred.get()) is not None:
                began = time.monotonic()
                frame = inferred.prepared.frame
                value = self.runner.value(frame, inferred.outputs)
                now = time.monotonic()
                if self._too_old(inferred.source, frame, now):
                    continue
                result = Result(frame, inferred.outputs, value, _stages(inferred, began, now))
                self._meter.result(inferred.source, result.stages, now)
                for outlet in self._outlets:
                    outlet.put(result)
                self._results.put(result)
                left = None if left is None else left - 1
        finally:
            self._stop()
            self._inferred.close(discard=True)
            self._results.close()
            for outlet in self._outlets:
                outlet.channel.close()

    def _too_old(self, source: int, frame: Frame, now: float) -> bool:
        """Whether a frame of a live source is past its time, which is counted."""
        if self._max_age is None or not _live(self.sources[source]) or now - frame.captured_at <= self._max_age:
            return False
        self._meter.dropped(source, "age")
        return True


def open_pipeline(
    sources: Any,
    engine: str | Path | Session,
    *,
    recipe: str | Path | Recipe | None = None,
    sinks: Sequence[Sink] = (),
    task: str | None = None,
    names: Sequence[str] = (),
    max_age: float | None = None,
    batch_wait: float = 0.01,
    frames: int | None = None,
    duration: float | None = None,
    on_state: Callable[[str, str, str], None] | None = None,
    trust: bool = False,
) -> Pipeline:
    """Let an engine watch sources: `for result in edgeattn.camera.open("rtsp://...", "m.engine")`.

    Args:
        sources: a URI or path, an object with `read(timeout)` and `close()`, an iterable of pictures (uint8 (H, W, 3)
            in RGB), or a list of these, whose frames go to the engine as a batch.
        engine: a file, or a session that stays open.
        recipe: how a frame becomes the engine's input; without one, what is folded into the engine or its input says.
        sinks: callables that take a `Result`, each in a thread of its own; see `outlets.Sink`.
        task: what the outputs are, where they do not tell; see `results.reading_of`.
        names: of the classes.
        max_age: drop frames of live sources that are older, in seconds.
        batch_wait: how long a frame waits for those of other sources at most, in seconds.
        frames: end after this many results.
        duration: end after this many seconds.
        on_state: called with a source's URI, its new state and the reason, when it is lost or comes back.
        trust: run a plan that its sidecar does not describe.

    Raises:
        EdgeAttnError: a source, the engine or the recipe is refused.
    """
    opened = as_sources(sources, on_state)
    try:
        runner = open_runner(engine, streams=len(opened), recipe=recipe, task=task, names=names, trust=trust)
    except BaseException:
        for source in opened:
            source.close()
        raise
    return Pipeline(
        opened, runner, sinks=sinks, max_age=max_age, batch_wait=batch_wait, frames=frames, duration=duration
    )


def _live(source: Source) -> bool:
    return bool(getattr(source, "live", True))


def _stages(inferred: _Inferred, began: float, now: float) -> dict[str, float]:
    """The times of a frame, in seconds; what is no stage's own is waiting."""
    prepared, frame = inferred.prepared, inferred.prepared.frame
    return {
        "capture": prepared.taken - frame.captured_at,
        "decode": frame.decoded_at - frame.captured_at,
        "preprocess": prepared.ready - prepared.taken,
        "wait": inferred.began - prepared.ready + began - inferred.ended,
        "inference": inferred.ended - inferred.began,
        "postprocess": now - began,
        "age": now - frame.captured_at,
    }
