"""The configuration with which DeepStream's nvinfer runs an engine as edgeattn does, as far as it can.

Source: DeepStream 9 documentation, Gst-nvinfer; NVIDIA/DeepStream 581889d: the keys of
`gst-nvinfer/gstnvinfer_property_parser.cpp`, the preprocessing and the parsers of outputs of `utils/nvdsinfer`. The
keys are the same in DeepStream 7 and 8.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from edgeattn import __version__, files
from edgeattn.camera.results import Reading, read_names
from edgeattn.data import default_recipe, load_recipe
from edgeattn.deploy.target import PLUGINS, Deployed, task_of, uses_library
from edgeattn.engine import Sidecar, read_sidecar
from edgeattn.errors import InputError, UsageError
from edgeattn.folding import folded_recipe
from edgeattn.images import Recipe
from edgeattn.reports.text import printable
from edgeattn.tensors import TensorSpec, check_feeds

MOST_IN_BATCH = 1024  # NVDSINFER_MAX_BATCH_SIZE
_MODES = {"int8": 1, "float16": 2}
_COLOURS = {"rgb": 0, "bgr": 1, "gray": 2}
_FILTERS = {"nearest": 0, "bilinear": 1, "bicubic": 2}
CLASSIFIER, SEGMENTATION, OTHER = 1, 2, 100
Keys = dict[str, str | int | float]


def deploy_deepstream(
    engine: str | Path,
    output: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    task: str | None = None,
    names: str | Path | None = None,
    trust: bool = False,
) -> Deployed:
    """Write nvinfer's configuration for a TensorRT engine.

    nvinfer computes `y = net-scale-factor * (x - offsets[channel])` of 8-bit pixels, so

        net-scale-factor = scale / std        offsets = mean / scale

    Args:
        engine: where it is on the device; the configuration names it by the way from its own folder.
        output: the configuration, an INI file.
        recipe: how an image becomes the input; without one, as in `edgeattn.data.default_recipe`.
        task: what the outputs are, where their shapes do not tell.
        names: a file with the names of the classes, one a line.
        trust: take a plan that its sidecar does not describe.

    Raises:
        UsageError: nvinfer cannot feed this engine: it is no TensorRT engine, or does not take one float32 image.
        InputError: a file is refused, or the recipe does not fit the engine.
    """
    engine, output = Path(engine), Path(output)
    sidecar = read_sidecar(engine, trust)
    spec = _input_of(sidecar, engine)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe) if recipe else default_recipe(spec)
    _require_fit(spec, sidecar, chosen)
    reading = task_of(sidecar, task, chosen.size)
    keys, notes = _preprocessing(chosen)
    parsed, more = _outputs(sidecar, reading, chosen)
    found = _names(names, reading)
    labels = output.with_name(f"{output.stem}_labels.txt")
    plan = os.path.relpath(engine.resolve(), output.resolve().parent)
    if not plan.isprintable():
        raise UsageError(f"the path {plan!r} holds a line break or the like, which the configuration cannot; rename it")
    about: Keys = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "model-engine-file": plan,
        "batch-size": min(sidecar.profile[spec.name].max[0], MOST_IN_BATCH),
        "network-mode": _MODES.get(sidecar.precision.asked, 0),
        **({"labelfile-path": labels.name} if found else {}),
    }
    library = [f"{PLUGINS}: name it as custom-lib-path"] if uses_library(sidecar) else []
    notes = [*notes, *more, *library]
    files.output_file(output, engine)
    if found:
        files.output_file(labels, engine, Path(names or ""))
        files.write_atomic(labels, found.encode())
    files.write_atomic(output, _written(engine, sidecar, {**about, **keys, **parsed}, notes).encode())
    return Deployed("deepstream", engine, (labels, output) if found else (output,), tuple(notes))


def _input_of(sidecar: Sidecar, engine: Path) -> TensorSpec:
    """The one input that nvinfer can feed."""
    if sidecar.backend != "tensorrt":
        raise UsageError(
            f"{engine} is an engine of {sidecar.backend}; DeepStream runs TensorRT's own: build it on the device with "
            "--backend tensorrt"
        )
    if len(sidecar.inputs) != 1:
        raise UsageError(f"{engine} has {len(sidecar.inputs)} inputs; nvinfer feeds one image")
    [spec] = sidecar.inputs
    if folded_recipe(sidecar.graph) is not None:
        raise UsageError(f"{engine} takes pixels, nvinfer gives float32: build it without --fold-preprocess")
    if spec.dtype != "float32":
        raise UsageError(
            f"input {spec} is not what nvinfer gives, float32: build it without --no-keep-io-types, from a graph that "
            "takes float32"
        )
    if spec.shape is None or len(spec.shape) != 4:
        raise UsageError(f"input {spec} is no batch of images, which is all that nvinfer gives")
    return spec


def _require_fit(spec: TensorSpec, sidecar: Sidecar, recipe: Recipe) -> None:
    batch = sidecar.profile[spec.name].opt[0]
    probe = np.zeros((batch, *recipe.shape), np.float32)
    try:
        check_feeds((spec,), sidecar.profile, {spec.name: probe})
    except InputError as err:
        raise InputError(f"the recipe does not fit the engine: {err}") from err


def _preprocessing(recipe: Recipe) -> tuple[Keys, list[str]]:
    """The keys that say how a frame becomes the input, and what nvinfer cannot do of it."""
    mean = recipe.mean or (0.0,) * recipe.channels
    inverse = [1 / std for std in recipe.std or (1.0,)]
    factor = 2 * max(inverse) * min(inverse) / (max(inverse) + min(inverse))  # the least relative error
    notes = []
    if max(inverse) > min(inverse):
        error = (max(inverse) - min(inverse)) / (max(inverse) + min(inverse))
        notes.append(
            f"nvinfer has one scale for all channels: with std {', '.join(map(str, recipe.std))} the input is up to "
            f"{100 * error:.2g} % too large or small; a graph that divides by std itself is fed exactly"
        )
    if recipe.resize == "crop":
        notes.append(
            f"nvinfer does not crop: cut the middle out before it, of the ratio {recipe.size[1]}:{recipe.size[0]}, for "
            "example by src-crop of nvvideoconvert; without, pictures are stretched"
        )
    if recipe.resize == "letterbox" and recipe.fill != 0:
        notes.append(f"nvinfer pads with black, where the recipe fills with {recipe.fill}")
    if recipe.reducing_gap is not None:
        notes.append("nvinfer does not average whole pixels first, as the recipe's reducing_gap does")
    if recipe.interpolation != "nearest":
        notes.append(
            f"nvinfer's {recipe.interpolation} filter does not smooth as it shrinks, as the recipe's does: frames much "
            "larger than the input become rougher"
        )
    keys: Keys = {
        "infer-dims": ";".join(map(str, (recipe.channels, *recipe.size))),
        "network-input-order": int(recipe.layout == "nhwc"),
        "model-color-format": _COLOURS[recipe.color],
        "net-scale-factor": recipe.scale * factor,
        "offsets": ";".join(repr(value / recipe.scale) for value in mean),
        "maintain-aspect-ratio": int(recipe.resize == "letterbox"),
        "symmetric-padding": int(recipe.resize == "letterbox"),
        "scaling-filter": _FILTERS[recipe.interpolation],
    }
    return keys, notes


def _outputs(sidecar: Sidecar, reading: Reading, recipe: Recipe) -> tuple[Keys, list[str]]:
    """The keys that say what becomes of the outputs, and what nvinfer's own parsers take for granted."""
    shapes = {spec.name: spec.shape or () for spec in sidecar.outputs}
    alone = len(sidecar.outputs) == 1 and sidecar.outputs[0].dtype == "float32"
    shape = shapes[reading.outputs[0]] if reading.outputs else ()
    raw: Keys = {"network-type": OTHER, "output-tensor-meta": 1}
    if reading.task == "classification" and alone:
        keys: Keys = {"network-type": CLASSIFIER, "classifier-threshold": 0.0}
        return keys, ["nvinfer gives a class only where its score is above 0: end the graph with a softmax"]
    if reading.task in ("segmentation", "saliency") and alone and shape[2:] == recipe.size:
        threshold = 0.5 if shape[1] == 1 else 0.0
        keys = {
            "network-type": SEGMENTATION,
            "num-detected-classes": int(shape[1]),
            "segmentation-threshold": threshold,
            "segmentation-output-order": 0,
        }
        if shape[1] == 1:
            return keys, ["nvinfer says class 0 where the probability is above 0.5, and -1 elsewhere"]
        return keys, ["nvinfer gives a pixel a class only where its score is above 0: end the graph with a softmax"]
    what = f"{reading.task} from {' and '.join(reading.outputs)}" if reading.task else "of no known task"
    advice = (
        "; to have objects, write a parser of the boxes: network-type=0, cluster-mode=4, parse-bbox-func-name and "
        "custom-lib-path"
        if reading.task == "detection"
        else ""
    )
    return raw, [f"nvinfer has no parser for these outputs ({what}): it attaches them as tensors{advice}"]


def _names(path: str | Path | None, reading: Reading) -> str:
    """The names of classes as nvinfer reads them: those of a classifier in one line."""
    names = read_names(path) if path is not None else ()
    for name in names:
        if ";" in name:
            raise InputError(f"{path}: the name {name!r} holds a semicolon, which parts names in nvinfer's file")
    return (";" if reading.task == "classification" else "\n").join(names) + "\n" if names else ""


def _written(engine: Path, sidecar: Sidecar, keys: Keys, notes: list[str]) -> str:
    """The file: comments, then `[property]`."""
    lines = [
        f"# nvinfer runs {printable(engine.name)} (SHA-256 {sidecar.plan_sha256}), written by edgeattn {__version__}.",
        "# There is no onnx-file: where the engine does not load, nothing else is to be built in its place.",
        *(f"# - {printable(note)}" for note in notes),
        "[property]",
        *(
            f"{key}={value!r}" if isinstance(value, float) else f"{key}={_escaped(value)}"
            for key, value in keys.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _escaped(value: str | int) -> str:
    """A value as GLib's key files hold it."""
    return re.sub("^ ", r"\\s", str(value).replace("\\", r"\\"))
