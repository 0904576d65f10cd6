"""Ready models with trained weights, one family a file; `scripts/train_zoo` makes the weights again.

`edgeattn.zoo.NAME(pretrained=True)` makes a model, `zoo:NAME` names it wherever a model is named. Importing this
imports no torch: a factory is fetched from its file when it is first used.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeattn.errors import InputError, UsageError, did_you_mean, one_line
from edgeattn.metrics import task_named
from edgeattn.zoo.weights import FOLDER


@dataclass(frozen=True)
class Entry:
    """One model: its task, its attention mechanisms, the file its factory is in, the data set it was trained on.

    `weights` names the entry whose weights it shares; none means its own.
    """

    name: str
    task: str
    ops: tuple[str, ...]
    home: str
    data: str
    weights: str = ""

    @property
    def metric(self) -> str:
        """The metric that its task is judged by first."""
        return task_named(self.task).NAMES[0]

    @property
    def size_bytes(self) -> int | None:
        """Of its file of weights; None before it was trained."""
        path = FOLDER / f"{self.weights or self.name}.safetensors"
        return path.stat().st_size if path.is_file() else None

    def record(self) -> dict[str, Any]:
        """How its weights were made and what they reached in the test; empty before it was trained.

        Raises:
            InputError: the record is damaged.
        """
        path = FOLDER / f"{self.weights or self.name}.json"
        if not path.is_file():
            return {}
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise InputError(f"cannot read {path}: {one_line(err)}") from err
        return found


MODELS = {
    entry.name: entry
    for entry in (
        Entry("cbam_resnet_digits", "classification", ("CBAM",), "resnet", "digits"),
        Entry("resnet", "classification", (), "resnet", "cluttered"),
        Entry("se_resnet", "classification", ("ChannelGate",), "resnet", "cluttered"),
        Entry("eca_resnet", "classification", ("ChannelGate",), "resnet", "cluttered"),
        Entry("cbam_resnet", "classification", ("CBAM",), "resnet", "cluttered"),
        Entry("sk_resnet", "classification", ("SelectiveKernel",), "resnet", "cluttered"),
        Entry("self_attention_resnet", "classification", ("SoftmaxAttention",), "resnet", "cluttered"),
        Entry("non_local_resnet", "classification", ("SoftmaxAttention",), "resnet", "cluttered"),
        Entry("residual_attention_network", "classification", ("SoftMask",), "residual_attention", "cluttered"),
        Entry("vit", "classification", ("SoftmaxAttention",), "vit", "cluttered"),
        Entry("attention_mil", "classification", ("AttentionPool",), "attention_mil", "cluttered"),
        Entry("recurrent_attention", "classification", ("SpatialTransformer",), "recurrent_attention", "cluttered"),
        Entry("dynamic_capacity_network", "classification", ("HardAttention",), "dynamic_capacity", "cluttered"),
        Entry("cnn_classifier", "classification", (), "stn", "cluttered"),
        Entry("stn_classifier", "classification", ("SpatialTransformer",), "stn", "cluttered"),
        Entry("late_fusion", "classification", ("AttentionPool",), "cross_attention_fusion", "fusion"),
        Entry(
            "cross_attention_fusion",
            "classification",
            ("SoftmaxAttention", "AttentionPool"),
            "cross_attention_fusion",
            "fusion",
        ),
        Entry("temporal_mean", "classification", (), "temporal_attention", "clips"),
        Entry("temporal_attention", "classification", ("AttentionPool",), "temporal_attention", "clips"),
        Entry("unet", "segmentation", (), "unet", "scenes"),
        Entry("attention_unet", "segmentation", ("AttentionGate",), "unet", "scenes"),
        Entry("cbam_unet", "segmentation", ("CBAM",), "unet", "scenes"),
        Entry("fcn_dilated", "segmentation", (), "fcn", "scenes"),
        Entry("deeplabv3plus", "segmentation", (), "deeplab", "scenes"),
        Entry("se_deeplabv3plus", "segmentation", ("ChannelGate",), "deeplab", "scenes"),
        Entry("attention_to_scale", "segmentation", ("AttentionPool",), "attention_to_scale", "scenes"),
        Entry(
            "pyramid_feature_attention",
            "saliency",
            ("ChannelGate", "SpatialGate"),
            "pyramid_feature_attention",
            "saliency",
        ),
        Entry("cbam_yolo", "detection", ("CBAM",), "cbam_yolo", "scenes"),
        Entry("se_faster_rcnn", "detection", ("ChannelGate",), "se_faster_rcnn", "scenes"),
        Entry("cbam_yolo_raw", "detection", ("CBAM",), "cbam_yolo", "scenes", "cbam_yolo"),
    )
}


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
        UsageError: there is none; names the nearest.
    """
    if name not in MODELS:
        raise UsageError(f"the zoo has no model {name!r}; {did_you_mean(name, MODELS)}")
    return MODELS[name]


def factory(name: str) -> Callable[..., Any]:
    """The function that makes a model: `factory(name)(pretrained=True)`. See `find` for the error."""
    made: Callable[..., Any] = getattr(importlib.import_module(f"edgeattn.zoo.{find(name).home}"), name)
    return made


def __getattr__(name: str) -> Any:
    if name not in MODELS:
        raise AttributeError(f"module 'edgeattn.zoo' has no attribute {name!r}")
    return factory(name)


def __dir__() -> list[str]:
    return sorted(MODELS)
