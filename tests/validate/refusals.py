"""Model files, and the one line by which one is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgeattn.errors import InputError
from edgeattn.validate.reading import read_model


def write(proto: onnx.ModelProto | bytes, path: Path) -> Path:
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_model(path)
    message = str(caught.value)
    assert message.isprintable(), "one line, and nothing that a terminal obeys"
    assert str(path) in message
    assert len(message) < 800
    return message
