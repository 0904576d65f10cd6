"""Which engines are opened on this machine, and what a session of TensorRT says of its layers and times."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeattn.backends import tensorrt_rtx
from edgeattn.backends.trt import library as lib
from edgeattn.backends.trt import session
from edgeattn.backends.trt.capabilities import capabilities
from edgeattn.backends.trt.device import Gpu
from edgeattn.engine import Engine, Precision, Sidecar, this_platform
from edgeattn.errors import EngineMismatchError, UnsupportedError
from tests.backends.rtx import build, gated_conv, needs_rtx
from tests.graphs import self_attention


def an_engine(version: str = "1.7.1.116", **fields: Any) -> Engine:
    sidecar = Sidecar("tensorrt-rtx", version, (), (), {}, Precision("float32"), platform=this_platform())
    return Engine(b"never deserialised", dataclasses.replace(sidecar, rebuild="edgeattn build m.onnx", **fields))


RTX_1_7 = lib.Library(SimpleNamespace(__version__="1.7.1.116"), lib.RTX, capabilities("1.7.1.116", "tensorrt-rtx"))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (an_engine("1.6.0"), r"for TensorRT-RTX 1\.6\.0, this is 1\.7\.1\.116"),
        (an_engine("1.8.0", config={"version_compatible": True}), r"for TensorRT-RTX 1\.8\.0, this is 1\.7\.1\.116"),
        (an_engine(platform="linux-aarch64"), "for the platform linux-aarch64, this is"),
        (an_engine(targets=("sm_86", "sm_120")), "for compute capability sm_86 or sm_120, this is sm_89"),
    ],
    ids=["version", "compatible-but-newer", "platform", "gpu"],
)
def test_an_engine_for_something_else_is_refused_before_it_is_deserialised(
    engine: Engine, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lib, "library", lambda flavour: RTX_1_7)
    monkeypatch.setattr(lib, "missing", lambda flavour, running: [])
    monkeypatch.setattr(session, "gpus", lambda: (Gpu(0, "RTX 4090", "sm_89", 1 << 30, "13.0"),))
    with pytest.raises(EngineMismatchError, match=f"built {said}.*rebuild it here: edgeattn build m.onnx"):
        tensorrt_rtx.load(engine)


@pytest.mark.parametrize(
    ("engine", "gpu"),
    [
        (an_engine(targets=("sm_80+",)), "sm_80"),
        (an_engine(targets=("sm_80+",)), "sm_120"),
        (an_engine(targets=("sm_86", "sm_89")), "sm_89"),
        (an_engine("1.6.0", targets=("sm_89",), config={"version_compatible": True}), "sm_89"),
        (an_engine("1.7.0.999", targets=("sm_89",), config={"version_compatible": True}), "sm_89"),
    ],
)
def test_an_engine_that_fits_is_let_through(engine: Engine, gpu: str) -> None:
    session.require_fit(RTX_1_7, engine.sidecar, gpu)


def test_a_gpu_before_ampere_does_not_run_what_was_built_for_ampere_and_later() -> None:
    with pytest.raises(EngineMismatchError, match=r"sm_80\+, this is sm_75"):
        session.require_fit(RTX_1_7, an_engine(targets=("sm_80+",)).sidecar, "sm_75")


@needs_rtx
def test_loading_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib, "gpus", lambda: ())
    engine = build(gated_conv(), targets=("sm_89",))
    with pytest.raises(UnsupportedError, match=r"TensorRT-RTX engines cannot run here.*no NVIDIA GPU"):
        tensorrt_rtx.load(engine)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ([{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}], {"float16": 1}),
        ([{"Format/Datatype": "Row major linear FP32"}], {"float32": 1}),
        ([{"Format/Datatype": "Four wide channel vectorized row major Int8 format"}], {"int8": 1}),
        ([{"Format/Datatype": "Half"}, {"Format/Datatype": "Float"}], {"float16": 1}),
        ([{"Format": "Row major linear BF16 format (kLINEAR)", "DataType": "BFloat16"}], {"bfloat16": 1}),
        ([{"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Float"}], {"float32": 1}),
        ([{"Format/Datatype": "Row major Int64"}], {}),
        ([], {}),
    ],
)
def test_layers_are_counted_in_the_inspectors_words_of_10_and_11(
    outputs: list[dict[str, str]], expected: dict[str, int]
) -> None:
    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": outputs}
    assert session.dtypes_of_layers(json.dumps({"Layers": [layer], "Bindings": ["x"]})) == expected


@pytest.mark.parametrize("text", ["", "not json", '{"Layers": ["only", "names"]}', "[]"])
def test_an_inspector_without_details_counts_nothing(text: str) -> None:
    assert session.dtypes_of_layers(text) == {}


@pytest.mark.gpu
def test_a_static_engine_runs_as_a_cuda_graph_and_tells_its_timings() -> None:
    if reasons := tensorrt_rtx.missing():
        pytest.skip("; ".join(reasons))
    case = self_attention(batch=2)
    x = np.random.default_rng(0).standard_normal((2, 7, 8)).astype(np.float32)
    with tensorrt_rtx.load(build(case.graph)) as loaded:
        for _ in range(3):
            found = loaded.run({"x": x})["y"]
        timings = loaded.details["timings"]()
        assert set(loaded.details["compute"]()) <= {"float32"}
    expected = case.compute({"x": x})["y"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert set(timings) == {"h2d", "compute", "d2h"}
    assert all(milliseconds >= 0 for milliseconds in timings.values())
