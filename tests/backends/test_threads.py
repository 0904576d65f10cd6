"""How many threads a run takes on a CPU: as many as were asked for when the engine was built, by the runtime's word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest
from onnx import helper

from edgeattn.backends import backend_named, open_session
from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine, plan_build
from edgeattn.engine import read_sidecar
from edgeattn.errors import UsageError
from edgeattn.graph import Graph
from tests.graphs import FLOAT, graph_of

ASKED = {
    "onnxruntime": (ort, "InferenceSession", lambda session: session.get_session_options().intra_op_num_threads),
    "openvino": (ov.Core, "import_model", lambda compiled: compiled.get_property("INFERENCE_NUM_THREADS")),
}


def product() -> Graph:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    return graph_of([node], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 4])], {"w": np.ones((3, 4), np.float32)})


@pytest.mark.parametrize("backend", ASKED)
def test_a_run_takes_the_threads_that_the_build_was_asked_for(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "m.engine"
    report = build_engine(product(), output, BuildConfig(threads=1), backend)
    assert "threads    1\n" in str(report)
    assert "--threads 1" in read_sidecar(output).rebuild
    where, name, threads = ASKED[backend]
    opened, make = [], getattr(where, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        opened.append(make(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(where, name, noted)
    with open_session(output) as session:
        assert session.run({"x": np.ones((2, 3), np.float32)})["y"].tolist() == [[3.0] * 4] * 2
    assert [threads(item) for item in opened] == [1]


def test_no_thread_is_none() -> None:
    with pytest.raises(UsageError, match="cannot run on 0 threads"):
        plan_build(product(), BuildConfig(threads=0))


def test_tensorrt_says_that_it_has_no_such_setting() -> None:
    if reasons := backend_named("tensorrt-rtx").missing(running=False):
        pytest.skip(reasons[0])
    plan = plan_build(product(), BuildConfig(threads=1, targets=("sm_86",)), "tensorrt-rtx")
    assert "threads are a setting of the CPU backends: not used" in plan.notes
