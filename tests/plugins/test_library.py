from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.library import (
    CODED,
    MAPS,
    MASKED,
    MIXTURE,
    MODULE,
    SCALED,
    SQUARE,
    Built,
    addresses,
    build,
    create,
    includes,
    launched,
    require_tools,
    run,
    tensors,
    without_code,
)

pytestmark = pytest.mark.slow

ANSWERED = (
    (MAPS, (80, 87, 90)),
    (SQUARE, (87,)),
    (MASKED, (87,)),
    (MODULE, (75, 87)),
    (SCALED, (87,)),
    (MIXTURE, (87,)),
    (CODED, (87,)),
)
SOME = "half:2x1x64x8:4x1x96x8:6x1x128x8"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """With the oldest headers there are: such a library must serve every later TensorRT."""
    require_tools()
    answers = [without_code(request, archs) for request, archs in ANSWERED]
    return build(tmp_path_factory.mktemp("plugins"), next(iter(includes().values())), answers)


# Building


def test_it_needs_the_libraries_of_c_and_cpp_only_and_shows_two_functions(built: Built) -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\.so", run("readelf", "-d", str(built.library)))
    assert set(needed) <= {"libstdc++", "libgcc_s", "libc", "libm", "libdl", "ld-linux-x86-64", "ld-linux-aarch64"}
    shown = run("nm", "-D", "--defined-only", str(built.library)).splitlines()
    assert sorted(line.split()[-1] for line in shown) == ["getCreators", "setLoggerFinder"]


@pytest.mark.parametrize("version", list(includes()) or ["any version"])
def test_it_compiles_without_a_warning_and_works(version: str, tmp_path: Path) -> None:
    require_tools()
    other = build(tmp_path, includes()[version], [without_code(SQUARE, [87])])
    answers = other.ask(create(SQUARE), f"change {tensors(SQUARE, {})}", f"enqueue {addresses(SQUARE)}", "errors")
    assert answers == ["ok", "ok", "ok", ""]
    assert other.calls("launch") == launched(other.answers[0], 87, {})


def test_it_compiles_for_a_jetson(tmp_path: Path) -> None:
    require_tools()
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("aarch64-linux-gnu-g++ is not installed")
    from edgeattn.backends.trt.plugin_library import CROSS

    include = next(iter(includes().values()))
    made = build(tmp_path, include, [without_code(MAPS, [87])], *CROSS["linux-aarch64"])
    assert "AArch64" in run("readelf", "-h", str(made.library))


# The build phase


def test_there_is_a_creator_for_each_operator_with_the_attributes_of_its_kernels(built: Built) -> None:
    listed = built.ask("list")[0].split()
    assert listed == [
        "CBAM/edgeattn/1(kernel_shape,pads,variant)",
        "SelectiveKernel/edgeattn/1(codes,variant)",
        "SoftmaxAttention/edgeattn/1(fill,layout,residual,scale,variant)",
    ]


def test_shapes_dtypes_and_formats_are_those_of_the_table(built: Built) -> None:
    answers = built.ask(
        create(MAPS),
        "shapes bx1xnx8 cx1xmx8 cx1xmx64",
        "dtypes half half half",
        "formats half half half half",
        "formats half half half float",
        "formats half half int8 half",
        create(MASKED),
        "shapes 2x3x5x16 2x3x7x16 2x3x7x24 1x3x5x7 2x1x1x7",
        "dtypes float float float float bool",
        "formats float float float float bool float",
        create(MODULE),
        "shapes bx64xhxw 4x64 4 64x4 64 1x2x7x7 1",
        create(SCALED),
        "shapes bx1x8xn bx1x8xn bx1x64xn bx64xhxw 1",
        "dtypes bf16 bf16 bf16 bf16 bf16",
        "errors",
    )
    assert answers == [
        "ok", "bx1xnx64", "half", "1111 0", "1110 0", "1100 0",
        "ok", "2x3x5x24", "float", "111111 0",
        "ok", "bx64xhxw",
        "ok", "bx64xhxw", "bf16", "",
    ]  # fmt: skip


def test_a_gate_writes_int8_where_its_node_says_so_and_takes_no_other_combination(built: Built) -> None:
    maps, inputs = "bx64xhxw bx64xhxw 8x64 8 128x8 128", "half half half half half half"
    answers = built.ask(
        create(MIXTURE), f"shapes {maps}", f"dtypes {inputs}", f"formats {inputs} half", f"formats {inputs} int8",
        create(CODED), f"shapes {maps} 1", f"dtypes {inputs} half", f"formats {inputs} half int8",
        f"formats {inputs} half half", f"formats {inputs} int8 int8", f"dtypes {inputs}",
        "fields", "clone", "reload", f"dtypes {inputs} half",
    )  # fmt: skip
    assert answers[:5] == ["ok", "bx64xhxw", "half", "1111111 0", "1111110 0"]
    assert answers[5:12] == ["ok", "bx64xhxw", "int8", "11111111 0", "11111110 0", "11111100 0", "refused"]
    assert answers[12:16] == ["codes=f:1 variant=s:2-relu ", "ok", "ok", "int8"]


def test_profiles_are_taken_where_every_corner_has_a_kernel(built: Built) -> None:
    v = SOME.replace("x8", "x64")
    answers = built.ask(
        create(MAPS),
        f"configure {SOME} {SOME} {v}",
        f"configure {SOME} half:2x1x64x8:4x1x96x8:6x1x129x8 {v}",
        f"configure {SOME} {SOME} {SOME}",
        create(SQUARE),
        f"configure {SOME} {SOME} {v}",
    )
    assert answers == ["ok", "ok", "refused", "refused", "ok", "ok"]


def test_workspace_is_what_the_scratch_tensors_take_at_the_largest_shapes(built: Built) -> None:
    answer = built.answers[3]
    largest = {"d0": 3, "d1": 31, "d2": 17}
    x = "float:1x64x1x1:2x64x8x8:3x64x31x17"
    weights = " ".join(f"float:{size}:{size}:{size}" for size in ("4x64", "4", "64x4", "64", "1x2x7x7", "1"))
    told = [line.split() for arch in (75, 87) for line in launched(answer, arch, largest)]
    first = min(int(word, 16) for line in told for word in line if word.startswith("0x"))
    assert first == 0x10000
    found = built.ask(create(MODULE), f"workspace {x} {weights}", create(MAPS), f"workspace {SOME} {SOME} {SOME}")
    from edgeattn.kernels.launch import evaluate

    needed = [
        sum(-(-4 * evaluate(count, largest) // 256) * 256 for step in steps for count in step.launch.scratch.values())
        for steps in answer.builds.values()
    ]
    assert found == ["ok", str(max(needed)), "ok", "0"]
    assert max(needed) > 0


# The runtime phase


@pytest.mark.parametrize(
    "number", range(len(ANSWERED)), ids=["maps", "square", "masked", "module", "scaled", "mixture", "codes"]
)
def test_launches_are_those_that_python_computes(built: Built, number: int) -> None:
    answer, numbers = built.answers[number], random.Random(number)
    cases = [{name: numbers.choice((1, 2, 3, 7, 31, 64, 97, 128)) for name in answer.request.open} for _ in range(12)]
    lines = [
        line
        for dims in cases
        for line in (f"change {tensors(answer.request, dims)}", f"enqueue {addresses(answer.request)}")
    ]
    assert built.ask(create(answer.request), *lines, "errors") == ["ok"] * (1 + len(lines)) + [""]
    expected = [line for dims in cases for line in launched(answer, 87, dims)]
    assert built.calls("launch") == expected
    # Code is loaded once for all shapes, and freed with the plugin.
    assert len(built.calls("load")) == len(built.calls("unload")) == len(answer.builds[87])


def test_what_was_serialised_cloned_and_attached_launches_the_same(built: Built) -> None:
    dims = {"d0": 2, "d1": 13, "d2": 11}
    work = (f"change {tensors(MODULE, dims)}", f"enqueue {addresses(MODULE)}")
    answers = built.ask(create(MODULE), "fields", "clone", "reload", "attach", "clone", "fields", *work, "errors")
    assert answers[1] == answers[6] == "kernel_shape=s:7,7 pads=s:3,3,3,3 variant=s:relu "
    assert set(answers[2:6] + answers[7:9]) == {"ok"}
    assert built.calls("launch") == launched(built.answers[3], 87, dims)


def test_a_kernel_for_the_very_size_is_preferred_and_the_general_one_serves_the_rest(built: Built) -> None:
    exact, other = {"d0": 1, "d1": 64}, {"d0": 1, "d1": 65}
    lines = [
        line for dims in (exact, other) for line in (f"change {tensors(MAPS, dims)}", f"enqueue {addresses(MAPS)}")
    ]
    built.ask(create(MAPS), *lines)
    assert built.calls("launch") == [*launched(built.answers[1], 87, {}), *launched(built.answers[0], 87, other)]


def test_an_empty_batch_launches_nothing(built: Built) -> None:
    work = (f"change {tensors(MAPS, {'d0': 0, 'd1': 5})}", f"enqueue {addresses(MAPS)}")
    assert built.ask(create(MAPS), *work) == ["ok"] * 3
    assert built.calls("launch") == []


@pytest.mark.parametrize(
    ("driver", "loaded"),
    [
        ({"FAKE_CUDA_ARCH": "87"}, "cubin -"),
        ({"FAKE_CUDA_ARCH": "90"}, "cubin -"),
        ({"FAKE_CUDA_ARCH": "90", "FAKE_CUDA_REFUSES": "cubin"}, "ptx sm_90a"),
        ({"FAKE_CUDA_ARCH": "89"}, "ptx sm_87"),
        ({"FAKE_CUDA_ARCH": "120"}, "ptx sm_87"),  # that of sm_90a runs nowhere else
        ({"FAKE_CUDA_ARCH": "86"}, "ptx sm_80"),
    ],
)
def test_a_gpu_gets_its_own_code_or_the_ptx_of_the_nearest_before_it(
    built: Built, driver: dict[str, str], loaded: str
) -> None:
    dims = {"d0": 1, "d1": 5}
    assert built.ask(create(MAPS), f"change {tensors(MAPS, dims)}", driver=driver) == ["ok", "ok"]
    assert built.calls("load") == [loaded]


# What goes wrong


def refusal(built: Built, *lines: str, driver: dict[str, str] | None = None) -> str:
    """What the library says when it refuses the last of some commands."""
    *before, last, said = built.ask(*lines, "errors", driver=driver)
    assert set(before) <= {"ok"}
    assert last == "refused"
    return said


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "create SoftmaxAttention variant=s: scale=f:0.5",
            'no kernel of SoftmaxAttention(scale=0.5, variant="") is in',
        ),
        ("create SoftmaxAttention", "no kernel of SoftmaxAttention() is in this library; see edgeattn plugins list"),
        ("create SoftmaxAttention variant=s: scale=s:one", "the attribute scale is no number"),
        ("create SoftmaxAttention variant=f:1", "the attribute variant is no text"),
        ("create CBAM variant=s:relu pads=n:", "the attribute pads is no text"),
    ],
)
def test_attributes_that_no_kernel_has_are_refused_in_words(built: Built, command: str, says: str) -> None:
    assert says in refusal(built, command)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("dtypes float half half", "takes inputs of these dtypes"),
        ("shapes bx1xn bx1xnx8 bx1xnx64", "takes 3 inputs of these ranks"),
        ("shapes bx1xnx8 bx1xnx8", "takes 2 inputs of these ranks"),
        (f"configure {SOME} {SOME} {SOME}", "takes inputs of 2x1x64x8, 2x1x64x8, 2x1x64x8; the library is built for"),
        ("change half:2x1x64x8 half:2x1x65x8 half:2x1x64x65", "takes inputs of 2x1x64x8, 2x1x65x8, 2x1x64x65 on sm_87"),
        ("change half:40000x1x9000x8 half:40000x1x9000x8 half:40000x1x9000x64", "does not fit in 31 bits"),
        ("enqueue 10 20 30 40 0", "is run before its shapes are known"),
    ],
)
def test_what_no_kernel_takes_is_refused_in_words(built: Built, command: str, says: str) -> None:
    assert says in refusal(built, create(MAPS), command)


def test_tensors_that_are_not_aligned_are_refused(built: Built) -> None:
    work = f"change {tensors(MAPS, {'d0': 1, 'd1': 5})}"
    said = refusal(built, create(MAPS), work, "enqueue 10000 11008 12000 13000 0")
    assert "a tensor of SoftmaxAttention" in said
    assert "is not aligned to 16 bytes" in said
    assert built.calls("launch") == []


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        ({}, "no CUDA driver: "),
        ({"FAKE_CUDA_ARCH": "75"}, "on sm_75; build the library for them"),
        ({"FAKE_CUDA_ARCH": "86", "FAKE_CUDA_SHARED": "40000"}, "on sm_86; build the library for them"),
        ({"FAKE_CUDA_REFUSES": "cubin,ptx"}, "the CUDA driver refuses attend"),
    ],
)
def test_a_driver_that_cannot_is_said_and_recorded(built: Built, driver: dict[str, str], says: str) -> None:
    said = refusal(built, create(MAPS), "attach", f"change {tensors(MAPS, {'d0': 1, 'd1': 5})}", driver=driver)
    logged, recorded = said.split(" | ")
    assert says in logged
    assert logged.startswith(recorded)  # which has room for 127 characters
    assert len(recorded) <= 127


def test_a_logger_of_another_generation_is_never_called(built: Built) -> None:
    other = "11" if built.major < 11 else "10"
    driver = {"FAKE_TENSORRT": other}
    assert built.ask("create SoftmaxAttention", "errors", driver=driver) == [
        "refused", "", "edgeattn: no kernel of SoftmaxAttention() is in this library; see edgeattn plugins list"
    ]  # fmt: skip


def test_no_memory_is_lost_or_misread(built: Built) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    watched = ("valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite,indirect")
    dims = {"d0": 2, "d1": 13, "d2": 11}
    lines = [
        create(MODULE), "fields", "clone", "reload", "attach", f"change {tensors(MODULE, dims)}",
        f"enqueue {addresses(MODULE)}", "create SoftmaxAttention scale=s:one", "errors",
        create(CODED), "reload", f"change {tensors(CODED, dims)}", f"enqueue {addresses(CODED)}",
        create(MAPS), "dtypes int8", "shapes bxn", f"configure {SOME}", f"workspace {SOME}",
        "enqueue 10 20 30 40 50", "errors",
    ]  # fmt: skip
    built.ask(*lines, under=watched)


# In TensorRT's own hands


START = """
import sys
import numpy as np, onnx, tensorrt_rtx as trt
from onnx import TensorProto, helper
class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, text):
        print(severity.name, text, flush=True)
logger = Logger()
builder, registry = trt.Builder(logger), trt.get_plugin_registry()
registry.load_library(sys.argv[1])
"""
CREATE = (
    START
    + """
creator = registry.get_creator("SoftmaxAttention", "1", "edgeattn")
def create(scale):
    fields = [("variant", np.array([], np.int8), "CHAR"), ("scale", np.array([scale], np.float32), "FLOAT32")]
    made = [trt.PluginField(name, value, getattr(trt.PluginFieldType, kind)) for name, value, kind in fields]
    return creator.create_plugin("node", trt.PluginFieldCollection(made), trt.TensorRTPhase.BUILD)
plugin = create(1)
core, build = (plugin.get_capability_interface(kind) for kind in
               (trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD))
print("found", core.plugin_name, core.plugin_namespace, core.plugin_version, build.num_outputs, create(0.3))
"""
)
PARSE = (
    START
    + """
node = helper.make_node("SoftmaxAttention", ["q", "k", "v"], ["y"], domain="edgeattn", variant="",
                        scale=float(sys.argv[2]), plugin_namespace="edgeattn", plugin_version="1")
ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 1, 64, size]) for name, size in
         (("q", 8), ("k", 8), ("v", 64), ("y", 64))]
opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edgeattn", 1)]
model = helper.make_model(helper.make_graph([node], "g", ports[:3], ports[3:]), opset_imports=opsets, ir_version=10)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
trt.OnnxParser(network, logger).parse(model.SerializeToString())
"""
)


def in_tensorrt(code: str, *arguments: str) -> str:
    """What a fresh process prints that runs some code beside TensorRT-RTX."""
    pytest.importorskip("tensorrt_rtx")
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def test_tensorrt_loads_it_and_creates_its_plugins(built: Built) -> None:
    said = in_tensorrt(CREATE, str(built.library))
    assert "found SoftmaxAttention edgeattn 1 1 None" in said
    assert f"Loaded shared library {built.library}" in said


def test_tensorrts_parser_finds_the_plugin_and_hands_it_the_attributes_of_the_node(built: Built) -> None:
    # TensorRT-RTX cannot have a plugin in a network: behind this point its parser ends the process.
    assert "Successfully created plugin: SoftmaxAttention" in in_tensorrt(PARSE, str(built.library), "1")
    refused = in_tensorrt(PARSE, str(built.library), "0.3")
    assert "Searching for plugin: SoftmaxAttention" in refused
    assert "Successfully created plugin" not in refused
