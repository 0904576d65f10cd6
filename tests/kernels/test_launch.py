from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import MissingDependencyError, UsageError
from edgeattn.kernels import KERNELS, kernel
from edgeattn.kernels.launch import cdiv, evaluate, factor, product
from edgeattn.ops import ALL_OPS

NAMES = {"n": 3, "h": 7, "w": 16}
sizes = st.one_of(st.integers(1, 40), st.sampled_from(list(NAMES)))
expressions = st.recursive(
    st.lists(sizes, min_size=1, max_size=3).map(lambda terms: product(*terms)),
    lambda inner: st.one_of(
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: cdiv(*pair)),
        st.tuples(inner, sizes).map(lambda pair: product(*pair)),
        st.tuples(inner, inner).map(" + ".join),
    ),
    max_leaves=5,
)


def by_python(expression: str) -> int:
    value = eval(expression, {"cdiv": lambda a, b: math.ceil(a / b)}, dict(NAMES))
    assert isinstance(value, int)
    return value


@given(expressions)
def test_expressions_mean_what_python_takes_them_for(expression: str) -> None:
    assert evaluate(expression, NAMES) == by_python(expression)


@given(expressions)
def test_a_factor_divides_whatever_the_sizes(expression: str) -> None:
    for dims in (NAMES, {"n": 5, "h": 1, "w": 11}):
        assert evaluate(expression, dims) % factor(expression) == 0


@given(sizes, sizes, st.integers(1, 9))
def test_builders_compute(a: int | str, b: int | str, by: int) -> None:
    count = NAMES.get(str(a), a)
    other = NAMES.get(str(b), b)
    assert isinstance(count, int)
    assert isinstance(other, int)
    assert evaluate(product(a, b), NAMES) == count * other
    assert evaluate(cdiv(product(a, b), by), NAMES) == math.ceil(count * other / by)


def test_numbers_are_folded() -> None:
    assert product(4, "n", 2, "8") == "64 * n"
    assert product("n", 0) == "0"
    assert product(3, 5) == "15"
    assert cdiv(product(3, 5), 4) == "4"
    assert product("a + b", 2) == "2 * (a + b)"
    assert [factor(text) for text in ("64 * n", "cdiv(n, 4) * 8", "n", "16 * n + 24", "0")] == [64, 8, 1, 8, 0]


def test_symbols_go_through() -> None:
    class Symbol:
        def __init__(self, text: str) -> None:
            self.text = text

        def __rmul__(self, other: object) -> Symbol:
            return Symbol(f"[{other} {self.text}]")

    result = evaluate("2 * cdiv(n, 64)", {"n": Symbol("n")}, cdiv=lambda a, b: Symbol(f"{a.text}/{b}"))
    assert result.text == "[2 n/64]"


@pytest.mark.parametrize("text", ["n * k", "n ** 2", "open('x')", "n *", "n.real", "'n'"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot evaluate|not an expression"):
        evaluate(text, NAMES)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_expressions_are_those_of_cpp(tmp_path: Path) -> None:
    texts = ["3 * cdiv(n, 64) * h", "cdiv(h * w, 4096) * 512", "2 * (n + h)", "0"]
    names = ", ".join(f"{name} = {size}" for name, size in NAMES.items())
    prints = "".join(f"std::cout << ({text}) << ' ';" for text in texts)
    code = f"""#include <iostream>
    long cdiv(long a, long b) {{ return (a + b - 1) / b; }}
    int main() {{ long {names}; (void) w; {prints} }}"""
    (tmp_path / "e.cpp").write_text(code)
    subprocess.run(["c++", "e.cpp", "-o", "e"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "e"], check=True, capture_output=True, text=True)
    assert [int(word) for word in done.stdout.split()] == [evaluate(text, NAMES) for text in texts]


def test_kernels_are_of_known_ops_and_share_their_stems() -> None:
    stems = {op.name: op.function.__module__.rpartition(".")[2] for op in ALL_OPS}
    assert KERNELS.items() <= stems.items()
    for op in KERNELS:
        module = kernel(op)
        assert all(callable(getattr(module, name)) for name in ("inputs", "unsupported", "launches", "cost"))


def test_ops_without_a_kernel_are_named() -> None:
    with pytest.raises(UsageError, match="HardAttention has no kernel; these have one: SoftmaxAttention, "):
        kernel("HardAttention")


def test_without_triton_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("edgeattn.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgeattn\[kernels\]'"):
        kernel("CBAM")
