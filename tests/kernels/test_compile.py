from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edgeattn.errors import UnsupportedError
from edgeattn.kernels import kernel, softmax_attention
from edgeattn.kernels.compile import PTX_ISA, Compiled, compile_launch
from edgeattn.kernels.launch import Launch
from edgeattn.kernels.tuned import SHARED_KIB

ARCHS = sorted(PTX_ISA)


def assert_fits(made: Compiled) -> None:
    assert made.registers <= 255
    assert made.registers * made.threads <= 65536
    assert made.spilled <= 64, f"{made.launch.kernel} for sm_{made.arch} spills {made.spilled} bytes a thread"
    assert made.shared <= 1024 * SHARED_KIB[made.arch]
    assert made.cubin[:4] == b"\x7fELF"


def parameters(ptx: str) -> list[str]:
    """Types of what the entry point takes."""
    found = re.search(r"\.visible \.entry \w+\((.*?)\n\)", ptx, re.DOTALL)
    assert found is not None
    return re.findall(r"\.param \.(u64|u32)", found[1])


def map_attention(arch: int, d_qk: int, d_v: int, dtype: str = "float16", tokens: int | str = 4096) -> Launch:
    shapes: Sequence[Sequence[int | str]] = [(1, 1, tokens, d_qk), (1, 1, tokens, d_qk), (1, 1, tokens, d_v)]
    return softmax_attention.launches("", shapes, dtype, arch, scale=1.0, layout=("bhdn",) * 4)[0]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_attention_fits_every_chip(arch: int) -> None:
    made = compile_launch(map_attention(arch, 8, 64), arch)
    assert_fits(made)
    isa = PTX_ISA[arch]
    assert f".version {isa // 10}.{isa % 10}" in made.ptx
    assert f".target sm_{arch}" in made.ptx
    assert ("mma" in made.ptx) == (arch >= 80)  # tensor cores; Triton has none for Turing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "dtype", "size", "queries"),
    [
        (75, "float16", 64, 4096), (75, "float32", 256, 4096), (86, "float16", 128, 4096), (87, "bfloat16", 256, 4096),
        (90, "float16", 128, 4096), (90, "float16", 256, 20), (110, "bfloat16", 256, 4096), (110, "float16", 256, 20),
    ],
)  # fmt: skip
def test_the_largest_heads_fit_with_all_masks(arch: int, dtype: str, size: int, queries: int) -> None:
    keys = (8, 8, 1000, size)  # no whole number of blocks
    shapes = [(8, 8, queries, size), keys, keys, (8, 1, queries, 1000), (queries, 1000)]
    (launch,) = softmax_attention.launches("bias-filled-guarded", shapes, dtype, arch, scale=0.1, fill=-1e4)
    assert_fits(compile_launch(launch, arch))


def gate_launches(arch: int, codes: bool = False) -> Iterator[Launch]:
    """Every kernel of the gates, in its largest form."""
    window = {"pads": (3, 3, 3, 3), "kernel_shape": (7, 7)}
    x, layers, plane = (8, 512, 56, 56), [(32, 512), (32,), (512, 32), (512,)], [(1, 2, 7, 7), (1,)]
    normed = [(32, 512), (32,), (32,), (32,), (512, 32), (512,)]
    branches = [(128, 512), (128,), (2048, 128), (2048,)]
    yield from kernel("CBAM").launches("gelu", [x, *layers, *plane], "float16", arch, codes=codes, **window)
    yield from kernel("ChannelGate").launches(
        "avgmax-ln-gelu-tanh", [x, *normed], "float16", arch, codes=codes, epsilon=1e-5
    )
    yield from kernel("ChannelGate").launches(
        "attn-ese-add", [x, (1, 512), (512, 512), (512,)], "bfloat16", arch, codes=codes
    )
    yield from kernel("SpatialGate").launches("conv-sigmoid", [x, (1, 512, 1, 1), (1,)], "float16", arch, codes=codes)
    convolutions = [(256, 512, 1, 1), (256, 512, 1, 1), (256,), (1, 256, 1, 1), (1,)]
    yield from kernel("AttentionGate").launches("same", [x, x, *convolutions], "float16", arch, codes=codes)
    yield from kernel("SelectiveKernel").launches("4-silu", [*[x] * 4, *branches], "float16", arch, codes=codes)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_gates_fit_every_chip(arch: int) -> None:
    for launch in {launch.kernel: launch for launch in gate_launches(arch)}.values():
        made = compile_launch(launch, arch)
        assert_fits(made)
        assert made.spilled == 0
        asynchronous = "cp.async" in made.ptx  # whose loads are of another name
        assert "x" not in launch.pointers or asynchronous or re.search(r"ld\.global\S*\.v4\.b32", made.ptx), (
            f"{launch.kernel} is slow"
        )


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_gates_that_write_codes_fit_every_chip(arch: int) -> None:
    for launch in gate_launches(arch, codes=True):
        if "y" in launch.pointers:
            made = compile_launch(launch, arch)
            assert_fits(made)
            assert made.spilled == 0
            assert ("pointer", "y_scale") in made.arguments
            assert {"0f4B400000", "0fCB400000"} <= set(re.findall(r"0f[4C]B4\w+", made.ptx)), "the rounding is gone"


def test_arguments_are_those_of_the_launch_and_none_is_hidden() -> None:
    made = compile_launch(map_attention(87, 8, 16), 87)
    kinds = {"pointer": "u64", "int32": "u32"}
    assert [kinds[kind] for kind, _ in made.arguments] == parameters(made.ptx)
    for kind, name in made.arguments:
        assert name in (made.launch.pointers if kind == "pointer" else made.launch.integers)
    absent = {name for name, size in made.launch.integers.items() if size == "1"}
    assert absent == {"heads", "q_token", "k_token", "v_token", "y_token"}
    assert not absent & {name for _, name in made.arguments}


def test_loads_are_wide_where_the_sizes_allow() -> None:
    wide = [compile_launch(map_attention(87, 8, 16, tokens=tokens), 87).ptx for tokens in (4096, 4095, "n")]
    assert ["cp.async.cg.shared.global" in ptx for ptx in wide] == [True, False, False]


def test_what_is_compiled_names_no_folder() -> None:
    made = compile_launch(map_attention(87, 8, 16), 87)
    folder = str(Path(softmax_attention.__file__).parent)
    assert folder not in made.ptx
    assert folder.encode() not in made.cubin


def test_what_is_compiled_can_be_kept() -> None:
    made = compile_launch(map_attention(87, 8, 16), 87)
    assert Compiled.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_unknown_architectures_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no kernels for sm_53; known: sm_75, "):
        compile_launch(map_attention(87, 8, 16), 53)
