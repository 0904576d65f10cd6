"""A model repository for NVIDIA Triton Inference Server.

Source: triton-inference-server/common 83adf7c, protobuf/model_config.proto, and the server's page on repositories.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeattn import __version__, files
from edgeattn.camera.results import read_names
from edgeattn.deploy.target import PLUGINS, Deployed, task_of, uses_library
from edgeattn.engine import Engine, Sidecar, read_engine
from edgeattn.errors import EdgeAttnError, UnsupportedError, UsageError, one_line
from edgeattn.folding import folded_recipe
from edgeattn.tensors import TensorSpec

KEPT = 2  # versions of a model: the one that is served and the one before
_BACKENDS = {
    "tensorrt": ("tensorrt", "model.plan", "KIND_GPU"),
    "onnxruntime": ("onnxruntime", "model.onnx", "KIND_CPU"),
}
_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64", "bfloat16": "TYPE_BF16",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
LABELS = "labels.txt"


class Word(str):
    """A value of an enumeration, which stands in the text format without quotes."""


def deploy_triton(
    engine: str | Path,
    repository: str | Path,
    *,
    name: str = "",
    task: str | None = None,
    names: str | Path | None = None,
    trust: bool = False,
) -> Deployed:
    """Put an engine into a model repository, as the next version of the model `name` (by default the engine's stem).

    The new version appears at once and whole, and `config.pbtxt` is replaced last; the version before stays, older
    ones go. The same plan again is no new version. A batch is left to Triton where the engine takes several sizes.

    Raises:
        UsageError: the name is none for a model, or Triton has no backend for the engine.
        UnsupportedError: Triton has no type or shape for one of its tensors.
        EdgeAttnError: the repository cannot be written, or another process writes it.
    """
    engine = Path(engine)
    loaded = read_engine(engine, trust)
    sidecar = loaded.sidecar
    model = name or engine.stem
    if not _NAME.fullmatch(model):
        raise UsageError(f"{model!r} is no name for a model; give one of letters, digits, _, - and . with --name")
    if sidecar.backend not in _BACKENDS:
        raise UsageError(
            f"{engine} is an engine of {sidecar.backend}, which Triton does not load; build with --backend tensorrt on "
            "the server's GPU, or with --backend onnxruntime"
        )
    labels = names is not None and task_of(sidecar, task).task == "classification"
    config = _config(model, sidecar, task_of(sidecar, task).outputs if labels else ())
    folder = Path(repository) / model
    text = f"# {engine.name} (SHA-256 {sidecar.plan_sha256}), written by edgeattn {__version__}.\n{_text(config)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.locked(folder / "config.pbtxt"):
            plan = _place(loaded, folder, _BACKENDS[sidecar.backend][1])
            written = [plan]
            if labels and names is not None:
                files.write_atomic(folder / LABELS, "".join(f"{name}\n" for name in read_names(names)).encode())
                written.append(folder / LABELS)
            files.write_atomic(folder / "config.pbtxt", text.encode())
    except OSError as err:
        raise EdgeAttnError(f"cannot write {folder}: {one_line(err)}") from err
    unused = ["Triton has names of classes for classifiers alone"] if names is not None and not labels else []
    return Deployed("triton", engine, (*written, folder / "config.pbtxt"), (*_notes(sidecar), *unused))


def _notes(sidecar: Sidecar) -> tuple[str, ...]:
    what = (
        "uint8 pixels of resized pictures" if folded_recipe(sidecar.graph) else "pictures as their recipe prepares them"
    )
    library = f"{PLUGINS}: start the server with --backend-config=tensorrt,plugins=LIBRARY"
    return (f"clients send {what}", *([library] if uses_library(sidecar) else []))


def _place(engine: Engine, folder: Path, filename: str) -> Path:
    """The plan as a version of its own, the newest; nothing is written where it is that already."""
    versions = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    newest = folder / str(versions[-1]) / filename if versions else None
    if newest is not None and newest.is_file() and files.sha256_file(newest) == engine.sidecar.plan_sha256:
        return newest
    for old in folder.glob(".*.part"):  # of a writer that was killed: no other one is at work
        shutil.rmtree(old, ignore_errors=True)
    number = versions[-1] + 1 if versions else 1
    part = folder / f".{number}.{os.getpid()}.part"
    try:
        part.mkdir()
        files.write_atomic(part / filename, engine.plan)
        part.rename(folder / str(number))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old_number in versions[: len(versions) + 1 - KEPT]:
        shutil.rmtree(folder / str(old_number), ignore_errors=True)
    return folder / str(number) / filename


def _config(model: str, sidecar: Sidecar, labelled: Sequence[str]) -> dict[str, Any]:
    """The message `ModelConfig`."""
    backend, _, kind = _BACKENDS[sidecar.backend]
    most = _most_in_batch(sidecar)
    outputs = [_tensor(spec, most) for spec in sidecar.outputs]
    for tensor in outputs:
        if tensor["name"] in labelled:
            tensor["label_filename"] = LABELS
    threads = sidecar.config.get("threads")
    limit = {"key": "intra_op_thread_count", "value": {"string_value": str(threads)}}
    return {
        "name": model,
        "backend": backend,
        "max_batch_size": most,
        "input": [_tensor(spec, most) for spec in sidecar.inputs],
        "output": outputs,
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"kind": Word(kind), "count": 1}],
        **({"dynamic_batching": {}} if most > 1 else {}),
        **({"parameters": [limit]} if threads and backend == "onnxruntime" else {}),
    }


def _most_in_batch(sidecar: Sidecar) -> int:
    """The size up to which Triton may put requests together; 0 where the first dimension is not a batch of any size."""
    specs = (*sidecar.inputs, *sidecar.outputs)
    free = all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs)
    bounds = [(spread.min[:1], spread.max[:1]) for spread in sidecar.profile.values()]
    if not free or len(set(bounds)) != 1 or bounds[0][0] != (1,):
        return 0
    return bounds[0][1][0]


def _tensor(spec: TensorSpec, most: int) -> dict[str, Any]:
    if spec.dtype not in _TYPES or spec.shape is None:
        raise UnsupportedError(f"tensor {spec} has no type or shape that Triton knows")
    dims = [dim if isinstance(dim, int) else -1 for dim in spec.shape[1 if most else 0 :]]
    shape: dict[str, Any] = {"dims": dims} if dims else {"dims": [1], "reshape": {"shape": []}}
    return {"name": spec.name, "data_type": Word(_TYPES[spec.dtype]), **shape}


def _text(message: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format; a list of messages or numbers is a repeated field."""
    lines = []
    for name, value in message.items():
        if isinstance(value, list) and not any(isinstance(item, Mapping) for item in value):
            lines.append(f"{indent}{name}: [{', '.join(map(str, value))}]\n")
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{_text(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_quoted(item)}\n")
    return "".join(lines)


def _quoted(value: object) -> str:
    if not isinstance(value, str) or isinstance(value, Word):
        return str(value)
    safe = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in value.encode())
    return f'"{"".join(safe)}"'
