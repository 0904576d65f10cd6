"""How long one call takes: the value that every measurement of time ends in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LatencyReport", "latency_report"]

UNSTABLE = 0.10


@dataclass(frozen=True)
class LatencyReport:
    """Latency of one callable over many runs, in milliseconds; the statistics are trtexec's.

    `throughput` is in samples per second: the batch size over the mean latency.
    """

    runs: int
    min_ms: float
    max_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    coefficient_of_variation: float
    throughput: float

    @property
    def warning(self) -> str:
        """What makes the numbers doubtful; empty where nothing does.

        trtexec warns from 1 % on, but of GPU events; the host's clock sees the whole machine.
        """
        if self.coefficient_of_variation <= UNSTABLE:
            return ""
        share = f"{100 * self.coefficient_of_variation:.0f} %"
        return f"latency is unstable (coefficient of variation {share}): lock clocks, stop other work, run longer"

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields, and `warning`."""
        return {**asdict(self), "warning": self.warning}

    def __str__(self) -> str:
        return (
            f"p50 {self.p50_ms:.3f} ms, p90 {self.p90_ms:.3f} ms, p99 {self.p99_ms:.3f} ms, "
            f"{self.throughput:.1f} samples/s, {self.runs} runs"
        )


def latency_report(times_ns: Sequence[int], batch: int = 1) -> LatencyReport:
    """Sum up the times of single runs, in nanoseconds.

    A percentile is a time that was measured: the smallest that the share of all runs does not exceed.
    """
    ordered = sorted(time / 1e6 for time in times_ns)
    count = len(ordered)
    mean = sum(ordered) / count
    variance = sum((time - mean) ** 2 for time in ordered) / count

    def percentile(share: int) -> float:
        return ordered[max(0, -(-count * share // 100) - 1)]

    return LatencyReport(
        runs=count,
        min_ms=ordered[0],
        max_ms=ordered[-1],
        mean_ms=mean,
        p50_ms=percentile(50),
        p90_ms=percentile(90),
        p95_ms=percentile(95),
        p99_ms=percentile(99),
        coefficient_of_variation=variance**0.5 / mean,
        throughput=batch * 1000 / mean,
    )
