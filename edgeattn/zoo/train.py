"""Train the zoo's models: `python -m edgeattn.zoo.train [NAME ...]`, all of them without a name.

The data pass through files and recipe exactly as a user's do, so what is trained is what is deployed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn import files
from edgeattn.data import load_recipe, open_data
from edgeattn.errors import UsageError
from edgeattn.metrics import task_named
from edgeattn.model import parse_inputs
from edgeattn.tensors import TensorSpec
from edgeattn.zoo import MODELS, Entry, factory, find
from edgeattn.zoo.catalogue import write_data
from edgeattn.zoo.fitting import Labels, Settings, fit, jittered, mirrored, taken
from edgeattn.zoo.weights import FOLDER

ROOT = Path(__file__).parents[2]
DATA = ROOT / "build" / "train_zoo"
TEST_SAMPLES, TEST_BATCH = 2000, 100

# How the models on a data set are trained, and those that need something else.
DATA_SETTINGS = {
    "digits": Settings(epochs=30, samples=1442, augment=jittered),
    "cluttered": Settings(epochs=14, samples=6000),
    "scenes": Settings(epochs=12, samples=4000, batch=32, augment=mirrored),
    "saliency": Settings(epochs=12, samples=4000, batch=32, augment=mirrored),
    "fusion": Settings(epochs=7, samples=24000),
    "clips": Settings(epochs=14, samples=4000),
}
OWN_SETTINGS = {
    "recurrent_attention": Settings(epochs=6, samples=24000, rate=3e-3),
    "unet": replace(DATA_SETTINGS["scenes"], seed=1),  # from seed 0 it never tells squares and triangles from discs
    "vit": Settings(epochs=6, samples=24000, rate=1.5e-3),
}


def settings_of(entry: Entry) -> Settings:
    """How an entry is trained."""
    return OWN_SETTINGS.get(entry.name, DATA_SETTINGS[entry.data])


def train(name: str, data: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """Train one model on `<data>/<set>/train-<samples>`, judge it there and on `<data>/<set>/test`.

    Weights and record go into `out`. One thread, since the sums of a convolution depend on how several share it.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    began, entry = time.monotonic(), find(name)
    torch.manual_seed(settings.seed)
    make = factory(name)
    module: nn.Module = make(pretrained=False)
    specs = parse_inputs(make.example_inputs, module)  # type: ignore[attr-defined]
    inputs, labels = load(entry, data / entry.data / f"train-{settings.samples}", specs)
    inputs, labels = taken(inputs, labels, torch.randperm(len(labels)))
    losses = fit(module, inputs, labels, entry.task, settings)
    test = load(entry, data / entry.data / "test", specs)
    metrics = evaluate(module, entry.task, *test)
    record = {
        "made_by": f"scripts/train_zoo {name}",
        "data": f"{entry.data} of edgeattn.zoo.data; training and test have no source in common",
        "train_samples": len(labels),
        "test_samples": len(test[1]),
        "seed": settings.seed,
        "epochs": settings.epochs,
        "batch": settings.batch,
        "peak_learning_rate": settings.rate,
        "final_loss": losses[-1],
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "metrics": metrics,
        "train_metrics": evaluate(module, entry.task, inputs, labels),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "pillow", "scikit-learn", "scikit-image")},
        },
    }
    _save(module, out / f"{name}.safetensors", record)
    figures = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
    print(f"{name}: {figures}; {time.monotonic() - began:.0f} s", flush=True)
    return record


def load(entry: Entry, folder: Path, specs: Sequence[TensorSpec]) -> tuple[tuple[Tensor, ...], Labels]:
    """The samples of a folder, read as a user's are: inputs in the order of `specs`, and labels."""
    recipe = ROOT / "calibration" / f"{entry.data}.toml"
    prefer: Literal["boxes", "masks"] = "boxes" if entry.task == "detection" else "masks"
    samples = list(open_data(folder, specs, load_recipe(recipe) if recipe.is_file() else None, prefer=prefer))
    feeds = tuple(torch.from_numpy(np.concatenate([sample.feeds[spec.name] for sample in samples])) for spec in specs)
    labels = [torch.as_tensor(sample.label) for sample in samples]
    return feeds, labels if entry.task == "detection" else torch.stack(labels)


@torch.inference_mode()
def evaluate(module: nn.Module, task: str, inputs: tuple[Tensor, ...], labels: Labels) -> dict[str, float]:
    """The figures of the task, over all samples."""
    metric = task_named(task)()
    for start in range(0, len(labels), TEST_BATCH):
        batch, truth = taken(inputs, labels, torch.arange(start, min(start + TEST_BATCH, len(labels))))
        wanted = [int(label) if label.ndim == 0 else label.numpy() for label in truth]
        metric.add(module(*batch).numpy(), wanted)
    return {name: float(value) for name, value in metric.result().items()}


def write_sets(names: Iterable[str], folder: Path) -> None:
    """Write the data sets that these models need, anew: `<folder>/<set>/{train-<samples>,test}`.

    Raises:
        UsageError: there are files in their places, and the folder is not `DATA`: they may be anybody's.
    """
    entries = [find(name) for name in names]
    for name in dict.fromkeys(entry.data for entry in entries):
        if folder == DATA:
            shutil.rmtree(folder / name, ignore_errors=True)
        print(write_data(name, folder / name / "test", "test", TEST_SAMPLES), flush=True)
    for name, count in dict.fromkeys((entry.data, settings_of(entry).samples) for entry in entries):
        print(write_data(name, folder / name / f"train-{count}", "train", count), flush=True)


def _save(module: nn.Module, path: Path, record: dict[str, Any]) -> None:
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    files.write_atomic(path, save(state))
    files.write_json(path.with_suffix(".json"), {**record, "weights_sha256": files.sha256_file(path)})


def main(arguments: Sequence[str]) -> None:
    """Train the models named, or all."""
    own = [name for name, entry in MODELS.items() if not entry.weights]
    parser = argparse.ArgumentParser(prog="train_zoo", description="Train the models of the zoo, all unless named.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(own))
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--jobs", type=int, default=cores, help=f"how many train at a time (default: {cores}, as cores)"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for weights and records")
    parser.add_argument("--data", type=Path, default=DATA, help="folder to write the data sets into")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(own):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(own)}")
    names = options.names or own
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        write_sets(names, options.data)
    except UsageError as err:
        parser.error(str(err))
    if min(options.jobs, len(names)) == 1:
        for name in names:
            train(name, options.data, options.out, settings_of(find(name)))
        return
    # Spawned, not forked: a fork would inherit the threads that PyTorch has already started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        jobs = [pool.submit(train, name, options.data, options.out, settings_of(find(name))) for name in names]
        for job in jobs:
            job.result()


if __name__ == "__main__":
    main(sys.argv[1:])
