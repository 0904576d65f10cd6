"""The numbers of a camera in Prometheus's form, read from the same meter as everything else when it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgeattn.camera.sinks.serving import Answer, Server
from edgeattn.camera.timing import Histogram, Stats
from edgeattn.errors import MissingDependencyError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PREFIX = "edgeattn_camera"
STATES = ("connecting", "live", "stale", "backoff", "closed", "ended")
_BY_SOURCE = ("source",)


def serve_metrics(address: tuple[str, int], stats: Callable[[], Stats], token: str | None = None) -> Server:
    """Answer Prometheus at `/metrics` of an address (see `serving.parse_address`) until the server is closed.

    A `token` is asked of everybody, as Prometheus's `authorization` gives it.

    Raises:
        MissingDependencyError: prometheus_client is not installed.
        EdgeAttnError: the address cannot be served.
    """
    registry = metrics_registry(stats)
    from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

    def metrics() -> Answer:
        return Answer(CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry))

    return Server(address, {"/metrics": metrics}, token)


def metrics_registry(stats: Callable[[], Stats]) -> CollectorRegistry:
    """A registry of prometheus_client's with all that `stats` counts, and the process's memory and time.

    Raises:
        MissingDependencyError: prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
    except ImportError as err:
        raise MissingDependencyError(
            "prometheus_client, which --metrics needs, is not installed; pip install 'edgeattn[camera]'"
        ) from err
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Collector(stats))
    return registry


class _Collector:
    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def describe(self) -> list[Any]:
        """Nothing: what there is, is known when it is asked for."""
        return []

    def collect(self) -> Iterator[Any]:
        stats = self._stats()
        yield from _counters(stats)
        yield from _histograms(stats)


def _counters(stats: Stats) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, what in (
        ("frames", "Frames that a source gave"),
        ("results", "Frames that became results"),
        ("reconnects", "How often a source was opened anew"),
    ):
        counter = CounterMetricFamily(f"{PREFIX}_{name}", what, labels=_BY_SOURCE)
        for source in stats.sources:
            counter.add_metric([source.uri], getattr(source, name))
        yield counter
    dropped = CounterMetricFamily(f"{PREFIX}_dropped", "Frames that became no result", labels=("source", "reason"))
    state = GaugeMetricFamily(f"{PREFIX}_source_state", "1 for the state a source is in", labels=("source", "state"))
    for source in stats.sources:
        for reason, count in source.dropped.items():
            dropped.add_metric([source.uri, reason], count)
        for name in STATES:
            state.add_metric([source.uri, name], float(name == source.state))
    missed = CounterMetricFamily(f"{PREFIX}_missed", "Results that a sink did not come to", labels=("sink",))
    for sink, count in stats.missed.items():
        missed.add_metric([sink], count)
    yield from (dropped, state, missed)


def _histograms(stats: Stats) -> Iterator[Any]:
    from prometheus_client.core import HistogramMetricFamily

    what = "Seconds from a frame's first byte to its result"
    age = stats.stages["age"]
    yield HistogramMetricFamily(f"{PREFIX}_frame_age_seconds", what, buckets=_buckets(age), sum_value=age.sum)
    stages = HistogramMetricFamily(
        f"{PREFIX}_stage_seconds", "Seconds that a stage took for a frame", labels=("stage",)
    )
    for name, histogram in stats.stages.items():
        if name != "age":
            stages.add_metric([name], _buckets(histogram), histogram.sum)
    yield stages


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Bounds as Prometheus writes them, and how many are at most that."""
    return [("+Inf" if bound == float("inf") else f"{bound:.6g}", count) for bound, count in histogram.buckets()]
