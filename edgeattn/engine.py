"""An engine on disk: the plan exactly as its backend wrote it, and beside it what edgeattn knows of it.

`model.engine` is what `trtexec --loadEngine` (or OpenVINO, or ONNX Runtime) accepts; `model.engine.json` is the
sidecar. The sidecar names the plan by its hash, so a plan that was changed or swapped is noticed before a backend
deserialises it: a plan is code, and deserialising one is running it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeattn import files
from edgeattn.errors import EngineMismatchError, InputError, one_line, quote
from edgeattn.tensors import ShapeRange, TensorSpec

SIDECAR_FORMAT = 1
MAX_SIDECAR_BYTES = 2**24
TRUST_HINT = "if you know where it comes from, pass --trust"


@dataclass(frozen=True)
class Precision:
    """What was asked of an engine and what is in it.

    `asked` is a dtype name. `weights` counts bytes of stored weights per dtype, `compute` counts layers per dtype
    they compute in, as the built engine reports them. `notes` says in words whatever differs, and what stayed high.
    """

    asked: str
    weights: Mapping[str, int] = field(default_factory=dict)
    compute: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sidecar:
    """What is known of a plan: see each field; serialised as `model.engine.json`."""

    backend: str
    backend_version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Mapping[str, ShapeRange]
    precision: Precision
    plan_sha256: str = ""
    plan_bytes: int = 0
    graph: Mapping[str, Any] = field(default_factory=dict)  # name, sha256, path of the ONNX it was built from
    targets: tuple[str, ...] = ()  # compute capabilities (`sm_87`), or `cpu`
    platform: str = ""  # such as `linux-x86_64`
    config: Mapping[str, Any] = field(default_factory=dict)  # the build's settings
    rebuild: str = ""  # the command that builds it again
    verified: Mapping[str, Any] | None = None  # the check after the build, None where it could not run
    edgeattn_version: str = ""
    search: tuple[Mapping[str, Any], ...] = ()  # what `--best` measured it against, itself among them
    calibration: Mapping[str, Any] = field(default_factory=dict)  # where the ranges of an INT8 engine come from
    plugins: tuple[Mapping[str, Any], ...] = ()  # that TensorRT runs attention with, and how they come to it
    provenance: Mapping[str, Any] = field(default_factory=dict)  # attention blocks, nodes, modules, for profiles

    def to_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields, but the provenance: as long as the graph, and for profiles."""
        plain = dataclasses.asdict(dataclasses.replace(self, provenance={}))
        del plain["provenance"]
        return plain


@dataclass(frozen=True)
class Engine:
    """A plan in memory with its sidecar: what a backend's `build` returns and its `load` takes."""

    plan: bytes
    sidecar: Sidecar


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a plan stands: `model.engine.json` beside `model.engine`."""
    return path.parent / f"{path.name}.json"


def write_engine(
    engine: Engine, path: Path, finish: Callable[[Engine], Sidecar] = lambda engine: engine.sidecar
) -> Sidecar:
    """Write plan and sidecar so that a kill at any moment leaves a pair that fits.

    `finish` gets the engine as read back from the disk, before it replaces what was there: it returns the sidecar to
    write, completed by what the loaded engine tells, and what it raises keeps the old engine.

    Two files cannot be replaced in one step. So the new sidecar goes first and carries the old one as `previous`:
    whichever plan a reader finds, one of the two describes it.

    Raises:
        EdgeAttnError: the files cannot be written; what was there is untouched.
    """
    with files.staged(path) as part:
        part.write_bytes(engine.plan)
        plan = files.read_bytes(part)
        digest = hashlib.sha256(plan).hexdigest()
        sidecar = dataclasses.replace(engine.sidecar, plan_sha256=digest, plan_bytes=len(plan))
        sidecar = finish(Engine(plan, sidecar))
        _write_sidecar(sidecar, path, previous=_old_record(path))
    _write_sidecar(sidecar, path, previous=None)
    return sidecar


def read_engine(path: str | Path, trust: bool = False) -> Engine:
    """Read a plan and the sidecar that describes it.

    Raises:
        InputError: no such file, no sidecar, or one that describes another plan (unless `trust`, and the sidecar
            at least names the backend).
    """
    path = Path(path)
    plan = files.read_bytes(path)  # once: what is hashed is what is loaded
    return Engine(plan, _sidecar_of(hashlib.sha256(plan).hexdigest(), path, trust))


def read_sidecar(path: str | Path, trust: bool = False) -> Sidecar:
    """Find the record that describes a plan, without loading the plan; see `read_engine` for what it raises."""
    path = Path(path)
    return _sidecar_of(files.sha256_file(path), path, trust)


def _sidecar_of(digest: str, path: Path, trust: bool) -> Sidecar:
    records = _read_records(sidecar_path(path))
    if not records:
        raise InputError(f"{path} has no sidecar {sidecar_path(path).name}: build it with edgeattn build")
    fitting = _describing(records, digest)
    if fitting is None and not trust:
        raise InputError(
            f"{path} is not the plan that its sidecar describes (SHA-256 differs): rebuild it; {TRUST_HINT}"
        )
    return _from_json(fitting or records[0], path)


def this_platform() -> str:
    """Operating system and processor family, such as `linux-x86_64`: a plan does not cross them."""
    return f"{sys.platform}-{platform.machine()}"


def require_match(sidecar: Sidecar, what: str, built: Sequence[str], here: str) -> None:
    """Refuse an engine whose `what` (a version, a compute capability, a platform) is not this machine's.

    Raises:
        EngineMismatchError: `here` is not among `built`; says both, and the command that rebuilds.
    """
    if here not in built:
        raise EngineMismatchError(
            f"the engine was built for {what} {' or '.join(built)}, this is {here}; "
            f"rebuild it here: {one_line(sidecar.rebuild)}"
        )


def _describing(records: Sequence[Mapping[str, Any]], digest: str) -> Mapping[str, Any] | None:
    return next((record for record in records if record.get("plan_sha256") == digest), None)


def _old_record(path: Path) -> Mapping[str, Any] | None:
    try:
        return _describing(_read_records(sidecar_path(path)), files.sha256_file(path))
    except InputError:  # no plan, or a damaged sidecar, which describes nothing and is about to be replaced
        return None


def _write_sidecar(sidecar: Sidecar, path: Path, previous: Mapping[str, Any] | None) -> None:
    record: dict[str, Any] = {"format": SIDECAR_FORMAT, **dataclasses.asdict(sidecar)}
    if previous is not None:
        record["previous"] = {key: value for key, value in previous.items() if key != "previous"}
    files.write_json(sidecar_path(path), record)


def _read_records(path: Path) -> list[dict[str, Any]]:
    if not os.path.exists(path):
        return []
    try:
        record = json.loads(files.read_bytes(path, MAX_SIDECAR_BYTES))
    except (ValueError, RecursionError) as err:
        raise InputError(f"cannot read {path}: {one_line(err)}; build the engine again") from err
    if not isinstance(record, dict) or record.get("format") != SIDECAR_FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{path} is no sidecar of format {SIDECAR_FORMAT} (found {found}); build the engine again")
    return [record, *([record["previous"]] if isinstance(record.get("previous"), dict) else [])]


_FORMS: dict[str, Any] = {
    **dict.fromkeys(("backend", "backend_version", "platform", "rebuild", "plan_sha256", "edgeattn_version"), str),
    **dict.fromkeys(("graph", "config", "calibration", "provenance"), dict),
    "plan_bytes": int,
    "verified": dict | None,
}


def _from_json(record: Mapping[str, Any], path: Path) -> Sidecar:
    known = {item.name for item in dataclasses.fields(Sidecar)}
    try:
        values = {key: value for key, value in record.items() if key in known}
        for name, kind in _FORMS.items():
            if name in record:
                _require(kind, record[name], name)
        values["inputs"] = tuple(_spec_from_json(item) for item in record["inputs"])
        values["outputs"] = tuple(_spec_from_json(item) for item in record["outputs"])
        values["profile"] = {
            name: ShapeRange(*(_items(int, spread[bound], name) for bound in ("min", "opt", "max")))
            for name, spread in record["profile"].items()
        }
        if set(values["profile"]) != {spec.name for spec in values["inputs"]}:
            raise ValueError(f"the inputs have no profile, or one too many: {', '.join(values['profile'])}")
        values["precision"] = _precision_from_json(record["precision"])
        values["targets"] = _items(str, record["targets"], "targets")
        for name in ("search", "plugins"):
            values[name] = _items(dict, record.get(name, []), name)
        if not 0 <= values.get("plan_bytes", 0) < 2**63:
            raise ValueError(f"plan_bytes is {quote(values['plan_bytes'])}")
        return Sidecar(**values)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        why = f"{type(err).__name__}: {one_line(err)}"
        raise InputError(f"{sidecar_path(path)} is damaged ({why}); build it again") from err


def _spec_from_json(item: Mapping[str, Any]) -> TensorSpec:
    name, shape = _require(str, item["name"], "name"), item["shape"]
    dims = None if shape is None else _items(int | str, shape, f"shape of {name}")
    return TensorSpec(name, _require(str, item["dtype"], "dtype"), dims)


def _precision_from_json(item: Mapping[str, Any]) -> Precision:
    for counts in (item["weights"], item["compute"]):
        _items(int, list(_require(dict, counts, "precision").values()), "precision")
    asked, notes = _require(str, item["asked"], "asked"), _items(str, item["notes"], "notes")
    return Precision(asked, item["weights"], item["compute"], notes)


def _items(kind: Any, items: object, what: str) -> tuple[Any, ...]:
    return tuple(_require(kind, item, what) for item in _require(list, items, what))


def _require(kind: Any, value: object, what: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is {quote(value)}")
    return value
