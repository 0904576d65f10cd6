from __future__ import annotations

import pytest

from edgeattn.errors import one_line


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 "
            "onnxruntime::Model::Model(onnx::ModelProto&&, const std::unordered_map<std::__cxx11::string, int>&) "
            "Unsupported model IR version: 14",
            "[ONNXRuntimeError] : 1 : FAIL : Unsupported model IR version: 14",
        ),
        (
            "Exception from src/inference/src/cpp/core.cpp:105:\nException from src/plugins/x.hpp:8: no such layer\n",
            "no such layer",
        ),
        ("a (plain) message about /tmp/model.cc", "a (plain) message about /tmp/model.cc"),
        (" \n", "ValueError"),
    ],
)
def test_where_another_library_raised_in_its_sources_is_left_out(theirs: str, ours: str) -> None:
    assert one_line(ValueError(theirs)) == ours
