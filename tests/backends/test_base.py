from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeattn.backends.base import BuildConfig, config_of
from edgeattn.build import build_engine
from edgeattn.engine import read_sidecar
from edgeattn.lowering import FLASH
from tests.graphs import self_attention


def test_settings_come_back_from_a_sidecar_as_they_were(tmp_path: Path) -> None:
    forms = {"SoftmaxAttention": FLASH}
    asked = BuildConfig(
        "float16", layer_precisions={"query": "float32"}, forms=forms, keep_io_types=False, tf32=True, opt_level=3
    )
    with_cache = replace(asked, timing_cache=str(tmp_path / "t.cache"))
    build_engine(self_attention(batch=1).graph, tmp_path / "m.engine", with_cache, "onnxruntime", check=False)
    sidecar = read_sidecar(tmp_path / "m.engine")
    assert config_of(sidecar) == replace(asked, profile=sidecar.profile)
