from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn.errors import ExportError, UnsupportedError, UsageError
from edgeattn.export import ExportReport, export_model
from edgeattn.export.fidelity import judge
from edgeattn.graph import load_graph
from edgeattn.model import Model, parse_dynamic, parse_inputs
from edgeattn.tensors import random_feeds
from tests.models import ZOO, settled

EXPORTERS = ("dynamo", "torchscript")
both = pytest.mark.parametrize("exporter", EXPORTERS)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Says(nn.Module):
    """A 1x1 convolution `layer` and whatever a test computes with it."""

    def __init__(self, forward: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.forward = forward.__get__(self)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 3, 2, 1)
        self.gate = nn.Sequential(nn.Linear(8, 2), nn.ReLU(inplace=True), nn.Linear(2, 8), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(self.pool(x).flatten(1))[:, :, None, None]


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Linear(3 * 5 * 5, 6)
        self.locate.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])

    def forward(self, x: Tensor) -> Tensor:
        theta = self.locate(F.adaptive_avg_pool2d(x, 5).flatten(1)).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, context, context)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        embedded = self.table(ids) * mask[..., None]
        return {"mean": embedded.mean(1), "ids": ids + 1, "any": mask.any(1)}


def zoo(name: str) -> Callable[[], nn.Module]:
    return lambda: settled(ZOO[name], torch.rand(2, 3, 32, 32))


CASES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    **{name: (zoo(name), ["1x3x32x32"]) for name in ZOO},
    "squeeze-excite": (SqueezeExcite, ["2x3x9x7"]),
    "spatial transformer": (SpatialTransformer, ["1x3x11x13"]),
    "multi-head": (Attended, ["1x5x16", "1x7x16"]),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), ["src:1x5x16"]),
    "average pool": (lambda: nn.AdaptiveAvgPool2d(3), ["1x3x7x8"]),
    "even pool": (lambda: nn.AdaptiveMaxPool2d(3), ["1x3x7x7"]),
    "maximum pool": (lambda: nn.AdaptiveMaxPool2d((3, 5)), ["1x3x7x8"]),
    "whole numbers": (Tokens, ["1x6@int64", "1x6@bool"]),
}


@both
@pytest.mark.parametrize("case", CASES)
def test_an_export_computes_what_the_module_computes_at_any_batch(case: str, exporter: str, tmp_path: Path) -> None:
    make, texts = CASES[case]
    module = make()
    model = Model(module, parse_inputs(texts, module), case)
    report = export_model(model, tmp_path / "m.onnx", dynamic=parse_dynamic(["batch"], model.inputs), exporter=exporter)
    assert len(report.checks) == 4
    assert [spec.name for spec in report.inputs] == [spec.name for spec in model.inputs]
    assert [spec.dtype for spec in report.inputs] == [spec.dtype for spec in model.inputs]
    assert all(spec.shape[0] == "batch" for spec in report.inputs)
    assert tuple(spec.name for spec in report.outputs) == model.output_names
    # The oracle of this test: ONNX Runtime as users run it, on data that the export has not seen.
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        shapes = {spec.name: (batch, *spec.shape[1:]) for spec in model.inputs}
        feeds = random_feeds(model.inputs, shapes, seed=30 + batch)
        got = session.run(list(model.output_names), feeds)
        for ours, theirs, truth in zip(model.run(feeds), got, model.run(feeds, "float64"), strict=True):
            error, _, budget = judge(ours, theirs, truth)
            assert error <= budget


@both
@pytest.mark.parametrize("case", ["unet", "cbam", "spatial transformer"])
@pytest.mark.slow
def test_images_of_any_size_where_the_module_takes_them(case: str, exporter: str, tmp_path: Path) -> None:
    make, texts = CASES[case]
    if case == "spatial transformer":
        make, texts = (lambda: Says(lambda self, x: F.grid_sample(x, grid_of(x), align_corners=True))), ["1x3x6x8"]
    module = make()
    model = Model(module, parse_inputs(texts, module))
    dynamic = parse_dynamic(["batch", "height", "width"], model.inputs)
    report = export_model(model, tmp_path / "m.onnx", dynamic=dynamic, exporter=exporter)
    assert report.inputs[0].shape == ("batch", 3, "height", "width")
    assert len(report.checks) == 6


def grid_of(x: Tensor) -> Tensor:
    return F.affine_grid(x.mean((1, 2, 3))[:, None, None].expand(-1, 2, 3), list(x.shape), align_corners=True)


def image_model(forward: Callable[..., object], text: str = "1x3x8x8", **layers: nn.Module) -> Model:
    module = Says(forward, **layers)
    return Model(module, parse_inputs([text], module), "says")


def exported_lie(self, x):
    y = self.inner(self.layer(x))
    return torch.relu(y * 2 if torch.onnx.is_in_onnx_export() else y)


class Branch(nn.Module):
    """Takes another way where the data are dark; a tracer sees one of the two."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if x.mean() > 0 else torch.sigmoid(x)


@both
def test_a_module_that_behaves_otherwise_under_export_is_found_out(exporter: str, tmp_path: Path) -> None:
    old = tmp_path / "m.onnx"
    old.write_bytes(b"the old file")
    with pytest.raises(ExportError, match=r"first node that differs is Mul '.*' in the top module") as caught:
        export_model(image_model(exported_lie, inner=nn.Tanh()), old, exporter=exporter)
    assert "\n" not in str(caught.value)
    assert old.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [old]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        return torch.sigmoid(y) if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() else torch.tanh(y)


@both
def test_the_node_is_named_with_the_module_it_stands_in(exporter: str, tmp_path: Path) -> None:
    model = image_model(lambda self, x: self.blocks(self.layer(x)) * 3, blocks=nn.Sequential(nn.ReLU(), Inner()))
    with pytest.raises(ExportError, match=r"differs is Sigmoid '.*' in module 'blocks.1'"):
        export_model(model, tmp_path / "m.onnx", exporter=exporter)
    assert not list(tmp_path.iterdir())


def test_a_branch_that_the_tracer_froze_is_found_and_its_line_named(tmp_path: Path) -> None:
    model = image_model(lambda self, x: self.inner(x) * 2, inner=Branch())
    with pytest.raises(ExportError, match=r"differs is (Tanh|Sigmoid) '/inner/.*' in module 'inner'") as caught:
        export_model(model, tmp_path / "m.onnx", exporter="torchscript")
    assert "froze a value at test_exporter.py:" in str(caught.value)


def test_a_branch_on_values_is_refused_by_dynamo_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"data-dependent expression.*it branches on values: use torch.where"
    ) as caught:
        export_model(image_model(lambda self, x: self.inner(x), inner=Branch()), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


@both
@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda self, x: torch.linalg.svdvals(x), "svd.* write it with other operators"),
        (lambda self, x: (x, 3.0), "'output_1' is a Python float"),
        (lambda self, x: None, "no tensor"),
        (lambda self, x: F.dropout(self.layer(x), training=True), "differs from run to run"),
        (lambda self, x: F.adaptive_avg_pool2d(x, 3), "adaptive_avg_pool2d to 3x3 of an image of dynamic size"),
        (lambda self, x: F.adaptive_max_pool2d(x, 3), "adaptive_max_pool2d to 3x3 of an image of dynamic size"),
        (lambda self, x: x + torch.ones(1, 1, 8, 1), r"out of --dynamic|module itself fails at x 1x3x16x8"),
    ],
    ids=["operator", "scalar", "none", "random", "average", "maximum", "fixed"],
)
def test_what_cannot_be_exported_is_said_on_one_line(forward, says: str, exporter: str, tmp_path: Path) -> None:
    model = image_model(forward)
    with pytest.raises(ExportError, match=says) as caught:
        export_model(model, tmp_path / "m.onnx", dynamic={"x": {2: "height"}}, exporter=exporter)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def fixes_its_batch(self, x):
    return self.layer(x).view(2, -1) if x.shape[0] == 2 else self.layer(x).flatten(1)


@pytest.mark.parametrize(
    ("exporter", "says"),
    [
        ("dynamo", "static shape of 2 for dimension x.shape.0."),
        ("torchscript", "2x128 instead of .* Reshape '/Reshape'"),
    ],
)
def test_a_batch_that_the_module_fixes_is_not_exported_as_dynamic(exporter: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=says):
        export_model(image_model(fixes_its_batch), tmp_path / "m.onnx", dynamic={"x": {0: "batch"}}, exporter=exporter)


@both
def test_outputs_may_be_called_like_inputs_weights_and_inner_values(exporter: str, tmp_path: Path) -> None:
    names = ["x", "layer.bias", "relu", "conv2d", "/layer/Conv_output_0"]
    model = image_model(
        lambda self, x: dict(zip(names, (x, x * 2, self.layer(x), torch.relu(x), torch.sigmoid(x)), strict=True))
    )
    report = export_model(model, tmp_path / "m.onnx", exporter=exporter)
    assert [spec.name for spec in report.outputs] == ["x_out", *names[1:]]


@both
def test_modules_that_write_into_their_input_are_exported(exporter: str, tmp_path: Path) -> None:
    def forward(self, x):
        x += 1
        x[:, 0] = 0
        return F.relu_(self.layer(x))

    export_model(image_model(forward), tmp_path / "m.onnx", dynamic={"x": {0: "batch"}}, exporter=exporter)


@both
def test_opset_and_fast_path_and_logging_are_as_before(exporter: str, tmp_path: Path, capfd) -> None:
    before = (torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable, list(warnings.filters))
    module = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    model = Model(module, parse_inputs(["src:1x4x8"], module))
    report = export_model(model, tmp_path / "m.onnx", exporter=exporter)
    assert report.opset == 18
    assert before == (torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable, list(warnings.filters))
    assert "forward" not in vars(module)
    with pytest.raises(ExportError):
        export_model(image_model(lambda self, x: torch.linalg.svdvals(x)), tmp_path / "n.onnx", exporter=exporter)
    assert capfd.readouterr() == ("", "")


def test_attention_below_opset_14_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = image_model(lambda self, x: F.scaled_dot_product_attention(x, x, x))
    with pytest.raises(ExportError, match=r"scaled_dot_product_attention.*; use --opset 18"):
        export_model(model, tmp_path / "m.onnx", opset=13, exporter="torchscript")
    assert export_model(model, tmp_path / "m.onnx", opset=14, exporter="torchscript").opset == 14


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    model = image_model(lambda self, x: self.layer(x))
    with pytest.raises(UsageError, match="writes opset 18 or newer, not 17; add --exporter torchscript"):
        export_model(model, tmp_path / "m.onnx", opset=17)
    with pytest.raises(ExportError, match=r"wrote opset .* instead of 99"):
        export_model(model, tmp_path / "m.onnx", opset=99)
    with pytest.raises(UsageError, match="unknown exporter 'tracer'"):
        export_model(model, tmp_path / "m.onnx", exporter="tracer")
    with pytest.raises(UsageError, match="no such folder"):
        export_model(model, tmp_path / "absent" / "m.onnx")
    with pytest.raises(UsageError, match="has no input shapes"):
        export_model(Model(model.module), tmp_path / "m.onnx")


def test_grid_sample_of_opset_20_is_pointed_out(tmp_path: Path) -> None:
    model = image_model(lambda self, x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False))
    assert not export_model(model, tmp_path / "m.onnx", exporter="torchscript").notes
    (note,) = export_model(model, tmp_path / "m.onnx", exporter="torchscript", opset=20).notes
    assert "TensorRT reads GridSample of opset 20 wrong" in note


def test_weights_beyond_one_file_are_refused_before_any_work(tmp_path: Path) -> None:
    module = Says(lambda self, x: x)
    module.register_buffer("huge", torch.zeros(1).expand(2**30))
    with pytest.raises(UnsupportedError, match=r"take 4.00 GiB, more than the 2 GiB"):
        export_model(Model(module, parse_inputs(["1x3x8x8"], module)), tmp_path / "m.onnx")


def test_an_input_that_only_dynamo_keeps(tmp_path: Path) -> None:
    class Spare(nn.Module):
        def forward(self, x: Tensor, spare: Tensor) -> Tensor:
            return x * 2

    model = Model(Spare(), parse_inputs(["1x3", "1x5"], Spare()))
    assert [spec.name for spec in export_model(model, tmp_path / "m.onnx").inputs] == ["x", "spare"]
    with pytest.raises(ExportError, match="drops input 'spare'"):
        export_model(model, tmp_path / "m.onnx", exporter="torchscript")


@both
def test_the_file_says_nothing_of_the_machine_and_keeps_module_scopes(exporter: str, tmp_path: Path) -> None:
    model = image_model(lambda self, x: self.blocks(self.layer(x)), blocks=nn.Sequential(nn.ReLU(), Inner()))
    export_model(model, tmp_path / "m.onnx", exporter=exporter, check=False)
    data = (tmp_path / "m.onnx").read_bytes()
    for word in (str(Path(__file__).parent), str(Path(torch.__file__).parent), Path(__file__).name, "stack_trace"):
        assert word.encode() not in data
    assert b"blocks.1" in data
    onnx.checker.check_model(onnx.load_model(tmp_path / "m.onnx"), full_check=True)


def test_a_report_reads_as_text_and_as_json(tmp_path: Path) -> None:
    model = image_model(lambda self, x: F.adaptive_avg_pool2d(self.layer(x), 3))
    report = export_model(model, tmp_path / "m.onnx", dynamic={"x": {0: "batch"}}, exporter="torchscript")
    text = str(report)
    for part in (
        "m.onnx: says, opset 18",
        "x: float32 batchx3x8x8",
        "MatMul",
        "adaptive_avg_pool2d 8x8 to 3x3",
        "seed 2",
    ):
        assert part in text
    record = json.loads(json.dumps(report.to_json()))
    assert record["inputs"][0] == {"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8]}
    assert record["op_counts"] == dict(load_graph(report.path).op_counts())
    assert "check   not made" in str(ExportReport(Path("m.onnx"), "s", (), (), 18, "dynamo", {}))


def test_importing_the_exporter_imports_no_torch() -> None:
    code = "import sys, edgeattn.export, edgeattn.model, edgeattn.export.fidelity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
