from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeattn.backends.base import BuildConfig
from edgeattn.build import build_engine
from edgeattn.export import export_model
from edgeattn.maps import AttentionMap, map_parity
from edgeattn.maps.parity import drift, kl, topk_overlap
from edgeattn.model import Model, load_model
from edgeattn.parity import compare_files
from edgeattn.parity.report import MapParity
from edgeattn.tensors import TensorSpec
from tests.graphs import Array

SOURCE = '''
import torch
from torch import nn

class Looks(nn.Module):
    """Patches, a little attention among them, and a classifier that hardly sees it."""

    def __init__(self, turn):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.q, self.k = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.v, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        with torch.no_grad():
            self.q.weight.mul_(turn * 8)
            self.q.bias.mul_(turn * 8)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5).softmax(-1)
        return self.head((x + 1e-3 * (weights @ self.v(x))).mean(1))

def good():
    return Looks(1)

def moved():
    return Looks(-1)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looks")
    (folder / "looks.py").write_text(SOURCE)
    for name in ("good", "moved"):
        model = load_model(f"{folder}/looks.py:{name}")
        inputs = (TensorSpec("x", "float32", (1, 3, 32, 32)),)
        export_model(Model(model.module, inputs), folder / f"{name}.onnx", check=False)
        build_engine(folder / f"{name}.onnx", folder / f"{name}.engine", BuildConfig("float16"), "onnxruntime")
    for index in range(4):
        x = np.random.default_rng(index).normal(size=(1, 3, 32, 32)).astype(np.float32)
        (folder / "data").mkdir(exist_ok=True)
        with torch.no_grad():
            label = int(load_model(f"{folder}/looks.py:good").module(torch.from_numpy(x)).argmax())
        np.savez(folder / "data" / f"{index}.npz", x=x, label=label)
    return folder


def measures(found: MapParity) -> tuple[float, float, float]:
    assert found.kl is not None
    assert found.topk_overlap is not None
    assert found.drift is not None
    return found.kl, found.topk_overlap, found.drift


@pytest.mark.parametrize("against", ["looks.py:good", "good.onnx"])
def test_an_engine_that_looks_where_its_original_looks_passes(made: Path, against: str) -> None:
    (found,) = map_parity(made / "good.engine", str(made / against), data=made / "data")
    assert (found.op, found.kind) == ("SoftmaxAttention", "weights")
    assert found.passed
    assert found.limit is not None
    assert 0 < found.distance < found.limit < 0.05  # float16 moves it a little
    divergence, overlap, moved = measures(found)
    assert divergence < 1e-5
    assert overlap > 0.999
    assert moved < 1e-3


@pytest.mark.parametrize("against", ["looks.py:good", "good.onnx"])
def test_the_metric_is_fine_but_it_looks_elsewhere(made: Path, against: str) -> None:
    original = str(made / against)
    report = compare_files(made / "moved.engine", original, data=made / "data", max_drop={"top1": 0.0}, latency=False)
    assert report.passed
    (found,) = map_parity(made / "moved.engine", original, data=made / "data")
    assert not found.passed
    assert "looks elsewhere" in found.failures[0]
    assert found.distance > 0.2
    divergence, overlap, moved = measures(found)
    assert divergence > 0.2
    assert overlap < 0.7
    assert moved > 0.05
    for png in (found.original_png, found.engine_png):
        assert len(png) < 10_000
        with Image.open(io.BytesIO(png)) as drawn:
            assert drawn.size == (96, 96)
    assert found.original_png != found.engine_png


def test_without_samples_one_random_input_is_looked_at(made: Path) -> None:
    (found,) = map_parity(made / "good.engine", str(made / "looks.py:good"))
    assert found.passed


def test_an_engine_without_attention_has_no_maps(made: Path, tmp_path: Path) -> None:
    model = Model(torch.nn.Conv2d(3, 1, 1), (TensorSpec("x", "float32", (1, 3, 5, 7)),))
    export_model(model, tmp_path / "plain.onnx", check=False)
    build_engine(tmp_path / "plain.onnx", tmp_path / "plain.engine", backend="onnxruntime")
    assert map_parity(tmp_path / "plain.engine", str(tmp_path / "plain.onnx")) == ()


def test_a_map_that_the_original_does_not_show_is_said_to_be_the_graphs(made: Path, tmp_path: Path) -> None:
    plain = "import torch\nfrom torch import nn\ndef plain(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))\n"
    (tmp_path / "plain.py").write_text(plain)
    (found,) = map_parity(made / "good.engine", f"{tmp_path}/plain.py:plain")
    assert "was not found" in found.note
    (found,) = map_parity(made / "good.engine", str(made / "good.onnx"))
    assert not found.note


# Measures


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def pair(seed: int, queries: int, keys: int) -> AttentionMap:
    generator = np.random.default_rng(seed)
    maps = [softmax(3 * generator.normal(size=(2, 3, queries, keys))) for _ in range(2)]
    return AttentionMap("SoftmaxAttention", "a", "weights", *maps)


@given(seed=st.integers(0, 99), queries=st.sampled_from([1, 2, 7]), keys=st.sampled_from([1, 2, 13, 16]))
def test_kl_is_pytorchs(seed: int, queries: int, keys: int) -> None:
    item = pair(seed, queries, keys)
    p, q = (torch.from_numpy(array).reshape(-1, keys) for array in (item.original, item.engine))
    assert kl(item) == pytest.approx(float(torch.nn.functional.kl_div(q.log(), p, reduction="batchmean")), abs=1e-9)


def test_kl_is_of_weights_that_add_up_to_one_and_infinite_for_what_is_no_number() -> None:
    gate = np.full((1, 1, 2, 2), 0.5)
    assert kl(AttentionMap("SpatialGate", "a", "weights", gate, gate)) is None
    row = np.array([[[[0.5, 0.5]]]])
    assert kl(AttentionMap("SoftmaxAttention", "a", "weights", row, np.array([[[[np.nan, 1.0]]]]))) == np.inf
    assert kl(AttentionMap("SoftmaxAttention", "a", "weights", row, np.array([[[[0.0, 1.0]]]]))) > 10  # type: ignore[operator]


@given(seed=st.integers(0, 99), keys=st.sampled_from([1, 9, 10, 31]))
def test_the_overlap_is_the_mass_at_the_engines_top_places(seed: int, keys: int) -> None:
    item = pair(seed, 2, keys)
    assert item.engine is not None
    shares = []
    for p, q in zip(item.original.reshape(-1, keys), item.engine.reshape(-1, keys), strict=True):
        count = max(1, round(keys / 10))
        best = sorted(p, reverse=True)[:count]
        chosen = sorted(range(keys), key=lambda place: (-q[place], -place))[:count]
        shares.append(sum(p[place] for place in chosen) / sum(best))
    assert topk_overlap(item) == pytest.approx(np.mean(shares))


def test_the_overlap_of_choices_is_the_share_that_both_make() -> None:
    item = AttentionMap("HardAttention", "a", "places", np.array([[3, 1, 2, 0]]), np.array([[0, 7, 3, 9]]), 16)
    assert topk_overlap(item) == 0.5


@pytest.mark.parametrize(
    ("op", "shape", "origin", "goal"),
    [
        ("SpatialGate", (1, 1, 4, 8), (0, 0, 1, 2), (0, 0, 3, 2)),  # two rows of four
        ("SpatialGate", (1, 1, 8, 4), (0, 0, 1, 0), (0, 0, 1, 2)),  # two columns of four
        ("SoftmaxAttention", (1, 1, 1, 16), (0, 0, 0, 1), (0, 0, 0, 9)),  # tokens on a grid of 4 x 4
        ("SoftmaxAttention", (1, 1, 1, 17), (0, 0, 0, 2), (0, 0, 0, 10)),  # behind a class token
    ],
)
def test_drift_is_in_fractions_of_the_map(
    op: str, shape: tuple[int, ...], origin: tuple[int, ...], goal: tuple[int, ...]
) -> None:
    original, engine = np.zeros(shape), np.zeros(shape)
    original[origin], engine[goal] = 1.0, 1.0
    assert drift(AttentionMap(op, "a", "weights", original, engine)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("op", "kind", "shape"),
    [
        ("ChannelGate", "weights", (1, 16, 1, 1)),
        ("CBAM", "channel", (1, 16, 1, 1)),
        ("SoftmaxAttention", "weights", (1, 1, 3, 7)),
    ],
)
def test_a_map_without_places_has_no_drift(op: str, kind: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape)
    assert drift(AttentionMap(op, "a", kind, array, array)) is None
