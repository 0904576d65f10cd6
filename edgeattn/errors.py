"""Every error that edgeattn raises, and the exit code each one becomes.

    EdgeAttnError                                   1  the work failed
    ├── UsageError(ValueError)                      2  a call or a flag that cannot be meant
    ├── GateError                                   3  a promise was checked and does not hold
    ├── UnsupportedError(NotImplementedError)       4  this machine, backend or version cannot
    │   ├── MissingDependencyError(ImportError)        a package is not installed
    │   └── EngineMismatchError                        the engine was built for something else
    ├── InputError(ValueError)                      5  a file or a tensor from outside is refused
    ├── ExportError                                 1  PyTorch could not be exported faithfully
    ├── BuildError                                  1  a backend could not build the graph
    ├── InferenceError                              1  a backend failed while it ran
    └── SourceError                                 1  a camera or stream cannot be opened, or was lost

A message says what happened, what was expected, and what to do next. Errors of other libraries
are wrapped once, where they are called, with ``from``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = [
    "BuildError",
    "EdgeAttnError",
    "EngineMismatchError",
    "ExportError",
    "GateError",
    "InferenceError",
    "InputError",
    "MissingDependencyError",
    "SourceError",
    "UnsupportedError",
    "UsageError",
    "did_you_mean",
    "first_cause",
    "one_line",
    "quote",
    "redact",
]

_LONGEST_LINE = 400
_LONGEST_NAME = 100
# Where in its own sources ONNX Runtime or OpenVINO raised: a path, a line, and often a long C++ signature.
_SOURCE_PLACE = re.compile(r"/\S+\.(?:cc|h):\d+ [^()]*\([^()]*\) (?:const )?|Exception from \S+\.[ch]pp:\d+: ?")

# All up to the last @, since passwords hold any character, slashes and question marks too; a slip may lack the colon.
_USER = re.compile(r"(\b[a-z][a-z0-9+.-]*:(?://)?|//)\S*@", re.I)
# Who knows what the values in a query are for; but those of a channel or a size are short numbers.
_VALUE = re.compile(r"([?&;][^=&;\s]*=)(?!\d{1,4}(?:x\d{1,4})?(?:[&;\s'\"]|$))[^&\s]*")
_SECRET = re.compile(r"([\w-]*(?:pass|pwd|token|secret|auth|sig|key|user|login|cred|pin)[\w-]*=)[^&\s]+", re.I)


class EdgeAttnError(Exception):
    """The root: catch this to catch everything edgeattn raises on purpose."""

    exit_code = 1


class UsageError(EdgeAttnError, ValueError):
    """A call or a flag that cannot be meant: it contradicts itself or the model."""

    exit_code = 2


class GateError(EdgeAttnError):
    """A promise (parity, accuracy, precision) was checked and does not hold."""

    exit_code = 3


class UnsupportedError(EdgeAttnError, NotImplementedError):
    """This machine, backend or version cannot do it; `reasons` lists every obstacle."""

    exit_code = 4

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join([message, *self.reasons]))


class MissingDependencyError(UnsupportedError, ImportError):
    """A package is not installed; the message names the extra that brings it."""


class EngineMismatchError(UnsupportedError):
    """An engine was built for another version, device or platform than this one."""


class InputError(EdgeAttnError, ValueError):
    """A file or a tensor from outside is refused: corrupt, hostile, or of the wrong form."""

    exit_code = 5


class ExportError(EdgeAttnError):
    """PyTorch could not be exported, or the exported graph says something else."""


class BuildError(EdgeAttnError):
    """A backend could not build an engine from a valid graph."""


class InferenceError(EdgeAttnError):
    """A backend failed while it ran an engine."""


class SourceError(EdgeAttnError):
    """A camera or a stream cannot be opened, or was lost; it may come back."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, or else all of them."""
    import difflib

    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"


def one_line(err: BaseException | str) -> str:
    """The text of another library's error on one line, of bearable length, without control characters and C++."""
    words = _SOURCE_PLACE.sub("", " ".join(str(err).split())) or type(err).__name__
    text = "".join(char if char.isprintable() else "?" for char in words)
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 3] + "..."


def first_cause(err: BaseException) -> BaseException:
    """The error that began a chain of `raise ... from`: onnx_ir wraps one for each level it was in."""
    while err.__cause__ is not None:
        err = err.__cause__
    return err


def quote(name: object) -> str:
    """A name from a foreign file as a message may show it: escaped, and cut where nobody would read on."""
    text = repr(name if isinstance(name, str | bytes) else str(name))
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 3] + "..."


def redact(text: str) -> str:
    """The text without what may be secret in its URLs: `user:password@`, and the values that may be of a query."""
    return _SECRET.sub(r"\1***", _VALUE.sub(r"\1***", _USER.sub(r"\1", text)))
