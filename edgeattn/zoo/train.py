"""Train the zoo's models: `python -m edgeattn.zoo.train [NAME ...]`, all of them without a name.

The data pass through files and recipe exactly as a user's do, so what is trained is what is deployed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeattn import files
from edgeattn.data import batches, load_recipe, open_data
from edgeattn.tensors import TensorSpec
from edgeattn.zoo.cbam_resnet import cbam_resnet_digits
from edgeattn.zoo.data import write_digits

ROOT = Path(__file__).parents[2]
DIGITS = TensorSpec("x", "float32", (1, 1, 32, 32))
SEED, THREADS, EPOCHS, BATCH, PEAK_RATE = 0, 1, 30, 64, 4e-3


def train_cbam_resnet_digits(folder: Path) -> dict[str, Any]:
    """Train `cbam_resnet_digits`; write its weights and their record into `folder`, and return the record."""
    began = time.monotonic()
    train, test = _digits("train"), _digits("test")
    torch.manual_seed(SEED)
    model = cbam_resnet_digits(pretrained=False)
    _fit(model, *train)
    correct = int((_logits(model, test[0]).argmax(1) == test[1]).sum())
    record = {
        "made_by": "scripts/train_zoo cbam_resnet_digits",
        "seed": SEED,
        "epochs": EPOCHS,
        "batch": BATCH,
        "threads": THREADS,
        "peak_learning_rate": PEAK_RATE,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "data": "scikit-learn load_digits; every fifth scan of each class held out for the test",
        "train_images": len(train[1]),
        "test_images": len(test[1]),
        "test_correct": correct,
        "test_top1": correct / len(test[1]),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "pillow", "scikit-learn")},
        },
    }
    _save(model, folder / "cbam_resnet_digits.safetensors", record)
    print(f"top-1 {correct}/{len(test[1])} = {record['test_top1']:.2%} in {time.monotonic() - began:.0f} s")
    return record


TRAINERS = {"cbam_resnet_digits": train_cbam_resnet_digits}


def _digits(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        count = write_digits(folder, split)
        data = open_data(folder, [DIGITS], load_recipe(ROOT / "calibration" / "digits.toml"))
        (_, feeds, labels), *_ = batches(data, count)
    return torch.from_numpy(feeds["x"]), torch.tensor(labels)


def _fit(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """AdamW on one cycle of the learning rate, with small random rotations, shears, scales and shifts."""
    steps = -(-len(images) // BATCH) * EPOCHS
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            loss = F.cross_entropy(model(_jitter(images[chosen])), labels[chosen], label_smoothing=0.1)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            cycle.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.3f}")
    model.eval()


def _jitter(images: Tensor) -> Tensor:
    affine = torch.eye(2, 3) + torch.randn(len(images), 2, 3) * 0.08
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])


def _save(model: nn.Module, path: Path, record: dict[str, Any]) -> None:
    from safetensors.torch import save

    files.write_atomic(path, save({name: value.contiguous() for name, value in model.state_dict().items()}))
    record["weights_sha256"] = files.sha256_file(path)
    files.write_atomic(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())


def main(arguments: Sequence[str]) -> None:
    """Train the models named, or all."""
    parser = argparse.ArgumentParser(prog="train_zoo", description="Train the models of the zoo, all unless named.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TRAINERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for weights and records")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(TRAINERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(TRAINERS)}")
    # The sums of a convolution depend on how it is shared among threads; one is the same everywhere.
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    for name in options.names or TRAINERS:
        print(f"{name}:")
        TRAINERS[name](options.out)


if __name__ == "__main__":
    main(sys.argv[1:])
