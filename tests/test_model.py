from __future__ import annotations

import contextlib
import importlib
import math
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeattn.errors import ExportError, InputError, UnsupportedError, UsageError
from edgeattn.model import Model, load_model, parse_dynamic, parse_inputs
from edgeattn.tensors import TensorSpec, format_shape, numpy_dtype

X = TensorSpec("x", "float32", (2, 3))
FILE = """
import torch
from edgeattn.model import example_inputs
from neighbour import width

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, width)
        self.drop = torch.nn.Dropout(0.9)
    def forward(self, x):
        return self.drop(self.layer(x))

def make():
    print("made")
    return Net()

def broken():
    raise RuntimeError("no such backbone\\nsecond line")

def leave():
    raise SystemExit(3)

def sized(width, depth=2):
    return Net()

@example_inputs("2x3")
def exampled():
    return Net()

ready = Net()
number = 7
"""


class Named(nn.Module):
    """Returns what a test puts into it."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor):
        return self.make(x)


class Pair(nn.Module):
    def forward(self, image: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return image * mask * scale


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("width = 5\n")
    yield str(tmp_path / "net.py")
    sys.modules.pop("neighbour", None)


@pytest.mark.parametrize("name", ["make", "Net", "ready"])
def test_a_factory_a_class_and_a_module_are_loaded_in_eval_mode(net: str, name: str, capsys) -> None:
    model = load_model(f"{net}:{name}", inputs=[X])
    assert not model.module.training
    assert model.run({"x": np.ones((2, 3), np.float32)})[0].shape == (2, 5)
    assert model.source == f"{net}:{name}"
    assert capsys.readouterr().out == ""
    assert str(Path(net).parent) not in sys.path


def test_a_module_of_a_package_is_loaded() -> None:
    assert isinstance(load_model("torch.nn:Identity").module, nn.Identity)


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ("{net}", UsageError, "expected FILE.py:FACTORY"),
        ("nowhere.py:make", InputError, "no such file: nowhere.py"),
        ("no_such_package.sub:make", UsageError, "no module 'no_such_package'"),
        ("{net}:mkae", UsageError, "did you mean 'make'?"),
        ("{net}:broken", ExportError, "RuntimeError: no such backbone"),
        ("{net}:leave", ExportError, "SystemExit: 3"),
        ("{net}:sized", UsageError, "missing a required argument: 'width'"),
        ("{net}:number", UsageError, "is a int, no nn.Module"),
        ("{syntax}:make", ExportError, "SyntaxError"),
        ("{lonely}:make", ExportError, "No module named 'not_there'"),
    ],
)
def test_a_target_that_makes_no_module_is_one_line(net: str, tmp_path: Path, target, error, says) -> None:
    (tmp_path / "syntax.py").write_text("def make(:\n")
    (tmp_path / "lonely.py").write_text("import not_there\n")
    target = target.format(net=net, syntax=tmp_path / "syntax.py", lonely=tmp_path / "lonely.py")
    with pytest.raises(error) as caught:
        load_model(target)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scripted.py").write_text(
        "import torch, warnings\n"
        "with warnings.catch_warnings():\n"
        "    warnings.simplefilter('ignore')\n"
        "    ready = torch.jit.script(torch.nn.ReLU())\n"
    )
    with pytest.raises(UsageError, match="give the Python module"):
        load_model(f"{tmp_path / 'scripted.py'}:ready")


Out = namedtuple("Out", "logits aux")


@pytest.mark.parametrize(
    ("make", "names", "factors"),
    [
        (lambda x: x, ["output"], [1]),
        (lambda x: (x,), ["output"], [1]),
        (lambda x: [x, x * 2], ["output_0", "output_1"], [1, 2]),
        (lambda x: {"a": x, "b": (x * 2, x * 3)}, ["a", "b_0", "b_1"], [1, 2, 3]),
        (lambda x: {"a": x, "gone": None}, ["a"], [1]),
        (lambda x: Out(x, [x * 2, x * 3]), ["logits", "aux_0", "aux_1"], [1, 2, 3]),
        (lambda x: {"x": x, "a": {"b": x * 2}}, ["x_out", "a_b"], [1, 2]),
    ],
)
def test_outputs_are_flattened_in_order_and_named(make, names, factors) -> None:
    model = Model(Named(make), (X,))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert list(model.output_names) == names
    for array, factor in zip(model.run({"x": x}), factors, strict=True):
        np.testing.assert_array_equal(array, factor * x)


@pytest.mark.parametrize(
    ("make", "says"), [(lambda x: (x, 3.0), "'output_1' is a Python float"), (lambda x: None, "no")]
)
def test_an_output_that_is_no_tensor_is_named(make, says) -> None:
    with pytest.raises(ExportError, match=says):
        Model(Named(make), (X,)).run({"x": np.ones((2, 3), np.float32)})


def test_float64_is_the_oracle_and_low_precision_is_torchs_own() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    model = Model(module)
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    w1, b1, w2, b2 = (parameter.detach().numpy().astype(np.float64) for parameter in module.parameters())
    hidden = x.astype(np.float64) @ w1.T + b1
    erf = np.vectorize(math.erf)
    truth = (hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))) @ w2.T + b2
    errors = []
    for dtype in ("float64", "float32", "fp16", "bfloat16"):
        (y,) = model.run({"x": x}, dtype)
        assert y.dtype == numpy_dtype(dtype)
        errors.append(np.abs(y.astype(np.float64) - truth).max())
    assert errors[0] < 1e-14 < errors[1] < errors[2] < errors[3]
    assert module[0].weight.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    assert model._in("float64") is model._in("float64")


def test_constants_made_inside_forward_follow_the_dtype() -> None:
    model = Model(Named(lambda x: x @ torch.linspace(0, 1, 3)))
    assert model.run({"x": np.ones((2, 3), np.float32)}, "float64")[0].dtype == np.float64


def test_integer_and_boolean_inputs_stay_in_every_dtype() -> None:
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 2)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
            return self.table(ids) * mask[:, None]

    feeds = {"ids": np.array([3, 0, 1]), "mask": np.array([True, False, True])}
    model = Model(Embed())
    for dtype in ("float32", "float64", "bfloat16"):
        assert not model.run(feeds, dtype)[0][1].any()


def test_inputs_are_given_by_name_and_else_by_position_and_never_changed() -> None:
    image, mask = np.full((1, 2), 3, np.float32), np.array([[0, 1]], np.float32)
    model = Model(Pair())
    for feeds in ({"mask": mask, "image": image}, {"a": image, "b": mask}):
        np.testing.assert_array_equal(model.run(feeds)[0], [[0, 3]])
    writer = Model(Named(lambda x: x.mul_(2)))
    np.testing.assert_array_equal(writer.run({"x": image})[0], image * 2)
    assert image[0, 0] == 3


def test_feeds_that_the_module_refuses_are_one_line() -> None:
    model = Model(nn.Linear(3, 4), source="net.py:make")
    with pytest.raises(InputError) as caught:
        model.run({"input": np.ones((2, 7), np.float32)})
    assert "net.py:make refuses input 2x7 float32: RuntimeError: mat1 and mat2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_run_in_a_dtype_says_so() -> None:
    model = Model(Named(lambda x: x @ torch.ones(3, dtype=torch.float32)))
    with pytest.raises(UnsupportedError, match="cannot run in float64"):
        model.run({"x": np.ones((2, 3), np.float32)}, "float64")


def test_inputs_take_the_names_of_forward() -> None:
    assert parse_inputs(["1x3x8x8"], Named(None)) == (TensorSpec("x", "float32", (1, 3, 8, 8)),)
    expected = (TensorSpec("image", "float32", (1, 3, 8, 8)), TensorSpec("mask", "bool", (1, 8)))
    for texts in (["1x3x8x8", "1x8@bool"], ["image:1x3x8x8,mask:1x8@bool"], ["image:[1,3,8,8],mask:1x8@bool"]):
        assert parse_inputs(texts, Pair()) == expected
    assert parse_inputs(["mask:1x8@bool", "1x3x8x8"], Pair()) == expected[::-1]
    assert [spec.name for spec in parse_inputs(["a:1x2", "b:1x2"], Pair())] == ["a", "b"]
    assert parse_inputs(["1,3,8,8"], Named(None))[0].shape == (1, 3, 8, 8)
    assert parse_inputs(["ids:1x16@int64"], Named(None))[0].dtype == "int64"


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "also needs image, mask: add --input image:SHAPE"),
        (["1x3"], "also needs mask"),
        (["image:1x3", "maks:1x3"], "takes no 'maks'; did you mean 'mask'?"),
        (["a:1", "b:1", "c:1", "d:1"], "takes 3 inputs"),
        (["image:1x3", "image:1x3"], "names 'image' twice"),
        (["1x0x3"], "not a shape"),
        (["1x3@float33"], "unknown dtype 'float33'"),
    ],
)
def test_inputs_that_do_not_fit_forward_are_refused(texts: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("?", r"\?")):
        parse_inputs(texts, Pair())


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=6), st.sampled_from(["float32", "int64", "bool", "float16"]))
def test_an_input_round_trips(shape: list[int], dtype: str) -> None:
    (spec,) = parse_inputs([f"x:{format_shape(shape)}@{dtype}"], Named(None))
    assert spec == TensorSpec("x", dtype, tuple(shape))


@given(st.text(max_size=20))
def test_any_text_is_an_input_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_inputs([text], Named(None))
        parse_dynamic([text], [X])


def test_dynamic_words_name_axes() -> None:
    inputs = [TensorSpec("x", "float32", (1, 3, 32, 64)), TensorSpec("t", "float32", (1, 7))]
    assert parse_dynamic(["batch"], inputs) == {"x": {0: "batch"}, "t": {0: "batch"}}
    assert parse_dynamic(["height,width"], inputs) == {"x": {2: "height", 3: "width"}}
    assert parse_dynamic(["batch", "t:1=tokens"], inputs) == {"x": {0: "batch"}, "t": {0: "batch", 1: "tokens"}}
    assert parse_dynamic([], inputs) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bacth", "expected batch, height, width"),
        ("x:9=rows", "no such axis; the inputs are x: float32 1x3x32x64"),
        ("y:0=rows", "no such axis"),
        ("x:2=n,x:3=n", "is 32 in 'x' but 64 in 'x'"),
        ("x:2=2n", "not a dynamic axis"),
    ],
)
def test_a_dynamic_axis_that_is_not_there_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_dynamic([text], [TensorSpec("x", "float32", (1, 3, 32, 64))])


def test_batch_over_inputs_of_different_first_axes_is_refused() -> None:
    with pytest.raises(UsageError, match="name the axes one by one"):
        parse_dynamic(["batch"], [TensorSpec("x", "float32", (1, 3)), TensorSpec("t", "float32", (7,))])


def test_what_forward_prints_stays_off_stdout(capsys) -> None:
    Model(Named(lambda x: print("layer") or x)).run({"x": np.ones((2, 3), np.float32)})
    assert capsys.readouterr().out == ""


def test_a_factory_may_say_its_inputs_and_input_overrules_them(net: str) -> None:
    module = load_model(f"{net}:exampled").module
    assert parse_inputs([], module) == (X,)
    assert parse_inputs(["5x3"], module)[0].shape == (5, 3)
    assert load_model(f"{net}:exampled").inputs == ()
    with pytest.raises(UsageError, match="add --input x:SHAPE"):
        parse_inputs([], load_model(f"{net}:make").module)


def test_zoo_is_short_for_the_zoo() -> None:
    short, long = (load_model(f"{place}:cbam_resnet_digits") for place in ("zoo", "edgeattn.zoo"))
    x = {"x": np.ones((1, 1, 32, 32), np.float32)}
    assert np.array_equal(short.run(x)[0], long.run(x)[0])
    with pytest.raises(
        UsageError, match=r"edgeattn\.zoo has no 'cbam_resnet_digit'; did you mean 'cbam_resnet_digits'"
    ):
        load_model("zoo:cbam_resnet_digit")


def test_a_function_is_found_behind_the_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "small.py").write_text("import torch\n\ndef small():\n    return torch.nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("nets.small")
    assert isinstance(load_model("nets:small").module, nn.Linear)
