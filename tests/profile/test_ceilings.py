from __future__ import annotations

import os
import time

import numpy as np
import pytest

from edgeattn.backends import openvino
from edgeattn.backends.base import BuildConfig
from edgeattn.engine import Engine
from edgeattn.graph import Graph
from edgeattn.interpreter import run_as_written
from edgeattn.profile import ceilings as module
from edgeattn.profile.ceilings import ceilings
from edgeattn.tolerance import tolerance_for


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_SIDES", (256,))
    monkeypatch.setattr(module, "TURN_S", 0.02)
    monkeypatch.setattr(module, "MOST_COPIED", 2**24)


def numpy_gflops() -> float:
    """Of one core: so small a product has no threads, which on a busy machine would wait for each other."""
    side, times = 64, []
    x = np.ones((side, side), np.float32)
    for _ in range(2000):
        start = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times) / 1e9


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_arithmetic_and_memory_are_of_the_order_that_numpy_attains(backend: str) -> None:
    (found,), notes = ceilings(backend, ["float32"])
    assert not notes
    assert found.precision == "float32"
    assert numpy_gflops() / 50 < found.gflops < 10 * len(os.sched_getaffinity(0)) * numpy_gflops()
    assert 0.1 < found.gbytes_per_s < 1000


@pytest.mark.usefixtures("_small")
def test_int8_is_measured_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Engine] = []
    real = openvino.build

    def build(graph: Graph, config: BuildConfig) -> Engine:
        built.append(real(graph, config))
        return built[-1]

    monkeypatch.setattr(openvino, "build", build)
    (found,), _ = ceilings("openvino", ["int8"])
    assert found.precision == "int8"
    assert [engine.sidecar.precision.compute["int8"] for engine in built] == [module.PRODUCTS]


def test_a_backend_that_is_not_here_has_no_ceilings_and_says_why() -> None:
    found, notes = ceilings("tensorrt", ["float16"])
    assert not found
    assert notes[0].startswith("what the machine reaches was not measured: tensorrt cannot run here")


@pytest.mark.usefixtures("_small")
def test_a_precision_that_cannot_be_built_costs_only_itself() -> None:
    found, notes = ceilings("onnxruntime", ["bfloat16", "float32"])
    assert [ceiling.precision for ceiling in found] == ["float32"]
    assert notes[0].startswith("what the machine reaches in bfloat16 was not measured")


def test_what_is_measured_multiplies_as_often_as_is_counted() -> None:
    graph = module._products(5, 7)
    start, *weights, _ = (value.const_value.numpy() for value in graph.model.graph.initializers.values())  # type: ignore[union-attr]
    assert len(weights) == module.PRODUCTS
    x = np.linspace(-1, 1, 7, dtype=np.float32)[None]
    truth = np.linalg.multi_dot([x + start.astype(np.float64), *weights]).mean(0)
    (found,) = run_as_written(graph)({"x": x})["y"]
    assert np.abs(found - truth).max() <= tolerance_for("float32").floor * np.abs(truth).max()
