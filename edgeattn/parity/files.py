"""Check an engine file against its original, on a folder of samples or on random input."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeattn.backends import open_session
from edgeattn.batches import at_opt, batch_size
from edgeattn.data import Dataset, batches, load_recipe, open_data
from edgeattn.engine import Sidecar, read_sidecar
from edgeattn.files import sha256_file
from edgeattn.folding import feeding_recipe, folded_recipe
from edgeattn.parity.check import check_parity
from edgeattn.parity.evidence import Evidence
from edgeattn.parity.reference import Reference, load_reference, on_pixels
from edgeattn.tensors import TensorSpec

if TYPE_CHECKING:
    from edgeattn.parity.report import ParityReport

__all__ = ["compare_files", "samples_for", "spread"]

PICTURES = 6


def compare_files(
    engine: str | Path,
    against: str,
    *,
    weights: Path | None = None,
    data: Path | None = None,
    recipe: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    task: str | None = None,
    max_drop: Mapping[str, float] | None = None,
    latency: bool = True,
    trust: bool = False,
    pictures: int = PICTURES,
    rebuilds: Sequence[Path] = (),
) -> ParityReport:
    """Check an engine file against `model.onnx` or `FILE.py:FACTORY`, on a folder of samples or on random input.

    A `limit` takes samples from all over the folder, which may be sorted by class. As many as `pictures` with the
    largest errors are shown, and as many that are decided otherwise.
    `rebuilds` are further engines from the same graph, which run on the same samples: how far builds spread.

    Raises:
        EdgeAttnError: as `open_session`, `load_reference`, `open_data` and `check_parity` say.
    """
    sidecar = read_sidecar(engine, trust)
    reference = load_reference(against, weights)
    if folded := folded_recipe(sidecar.graph):
        reference = on_pixels(reference, folded)
    with contextlib.ExitStack() as opened:
        session = opened.enter_context(open_session(engine, trust))
        dataset = spread(samples_for(sidecar, data, recipe, task), limit) if data else None
        size = batch_size(at_opt(session.profile), session.profile)
        report = check_parity(
            session,
            reference,
            batches(dataset, size) if dataset else None,
            sidecar.precision.asked,
            seed=seed,
            task=task,
            max_drop=max_drop,
            latency=latency,
            compared={
                **_compared(engine, sidecar, reference, weights),
                **(_on(dataset, data, sidecar, recipe) if dataset and data else {}),
            },
            evidence=Evidence(pictures, dataset.recipe, task or "") if dataset else None,
            rebuilds=[(read_sidecar(path).plan_sha256, opened.enter_context(open_session(path))) for path in rebuilds],
        )
    skipped = {"skipped files": "; ".join(dataset.bad)} if dataset and dataset.bad else {}
    return replace(report, compared={**report.compared, **skipped})


def _compared(engine: str | Path, sidecar: Sidecar, reference: Reference, weights: Path | None) -> dict[str, str]:
    """What stands against what, in words; without what there is not."""
    said = {
        "engine": f"{engine} ({sidecar.backend} {sidecar.backend_version})",
        "engine sha256": sidecar.plan_sha256,
        "graph sha256": str(sidecar.graph.get("sha256", "")),
        "reference sha256": reference.sha256,
        "weights": str(weights or ""),
        "weights sha256": sha256_file(weights) if weights else "",
    }
    return {name: value for name, value in said.items() if value}


def _on(dataset: Dataset, data: Path, sidecar: Sidecar, recipe: Path | None) -> dict[str, str]:
    """What they were compared on, in words; arrays have no recipe."""
    by = recipe or ("in the engine" if folded_recipe(sidecar.graph) else "from the input's shape")
    return {"data": str(data), **({"recipe": str(by)} if dataset.recipe else {})}


def samples_for(sidecar: Sidecar, data: Path, recipe: Path | None = None, task: str | None = None) -> Dataset:
    """A folder of samples for an engine, at its optimal shapes; boxes are preferred to masks where it detects.

    Raises:
        EdgeAttnError: as `load_recipe`, `feeding_recipe` and `open_data` say.
    """
    specs = [TensorSpec(spec.name, spec.dtype, sidecar.profile[spec.name].opt) for spec in sidecar.inputs]
    boxes = task == "detection" if task else any(_is_detection(spec) for spec in sidecar.outputs)
    chosen = feeding_recipe(sidecar.graph, load_recipe(recipe) if recipe else None)
    return open_data(data, specs, chosen, prefer="boxes" if boxes else "masks")


def spread(dataset: Dataset, limit: int | None) -> Dataset:
    """As many samples from all over a folder, which may be sorted by class."""
    if limit is None or limit >= len(dataset):
        return dataset
    return replace(dataset, files=[dataset.files[number * len(dataset) // limit] for number in range(limit)], bad=[])


def _is_detection(spec: TensorSpec) -> bool:
    return spec.shape is not None and len(spec.shape) == 3 and spec.shape[2] == 6
