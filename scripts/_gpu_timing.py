"""Times on a GPU: by CUDA events, over buffers that rotate so that no call finds its inputs in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

Call = Callable[[], object]
ROUNDS = 25
MOST_SETS = 32
L2_BYTES = 64 << 20  # where an older PyTorch does not tell


def sets_needed(size_bytes: int) -> int:
    """How many sets of buffers of this size hold twice what the L2 cache does."""
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", L2_BYTES)
    return max(2, min(MOST_SETS, -(-2 * cache // max(1, size_bytes))))


def milliseconds(calls: Sequence[Call]) -> float:
    """The median over rounds of the time of one call, each round doing all of them.

    They are replayed as one CUDA graph where they can be captured: then no launch waits for Python, whoever launches.
    """
    replay = _captured(calls)
    times = []
    for _ in range(ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(calls))
    return median(times)


def _captured(calls: Sequence[Call]) -> Call:
    def all_of_them() -> None:
        for call in calls:
            call()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        all_of_them()  # compiles, and warms up
        all_of_them()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            all_of_them()
    except RuntimeError:  # something in it cannot be captured
        torch.cuda.set_stream(torch.cuda.default_stream())  # a capture that fails leaves its own behind
        torch.cuda.synchronize()
        return all_of_them
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def ceilings() -> dict[str, float]:
    """What this GPU reaches now: GB/s of a large copy, TFLOP/s of a large product in float16."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = milliseconds([lambda: target.copy_(source)])
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    product = milliseconds([lambda: a @ b])
    return {"copy_gb_s": 2 * source.numel() / copy / 1e6, "gemm_tflop_s": 2 * size**3 / product / 1e9}


def rivals(form: Callable[..., Any], others: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Every way that PyTorch has to compute a form: eager, compiled, and by each backend of its fused attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch._dynamo.reset()  # it compiles one function for a few sizes only
    found: dict[str, Callable[..., Any]] = {"eager": form, "compile": torch.compile(form, dynamic=False)}
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    for name, other in others.items():
        for word, backend in backends.items():

            def chosen(*inputs: torch.Tensor, _other: Any = other, _backend: Any = backend) -> object:
                with sdpa_kernel(_backend):
                    return _other(*inputs)

            found[f"{name} {word}"] = chosen
    return found
