from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    """One of `scripts`, as a module."""
    path = next(path for path in (SCRIPTS / f"{name}.py", SCRIPTS / name) if path.is_file())
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        patch.setattr(sys, "dont_write_bytecode", True)
        sys.modules[name] = module  # where its dataclasses look for their annotations
        loader.exec_module(module)
    return module
