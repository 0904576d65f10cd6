"""What an ONNX file must satisfy before any runtime sees it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgeattn import files


def read_model(path: Path) -> tuple[ir.Model, str]:
    """PLACEHOLDER until hardened."""
    return ir.load(path), files.sha256_file(path)
