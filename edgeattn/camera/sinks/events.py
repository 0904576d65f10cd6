"""Results for other programs: one JSON object a line, to a stream or to a program that is started for it."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TextIO

from edgeattn.camera.outlets import Result
from edgeattn.camera.reconnect import next_delay
from edgeattn.errors import UsageError

_PATIENCE = 2.0  # seconds for the program to read a line
_ENDING = 0.8  # seconds for it to end when its input does, and as long again when it is told to: less than a pipeline's
_STDERR = 2


def line_of(result: Result) -> str:
    """A result as one line of JSON, see `Result.to_json`; any encoding of Unicode holds it."""
    return json.dumps(result.to_json()) + "\n"


class Events:
    """A sink that writes each result to a stream as it comes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def __call__(self, result: Result) -> None:
        """Write one result."""
        self._stream.write(line_of(result))
        self._stream.flush()


class Command:
    """A sink that starts a program, without a shell, and writes it a line for each result on its standard input.

    What the program writes goes to stderr. One that ends is started again, after 0.5 s, then 1 s and so on to 30 s; one
    that does not read for 2 s misses results until it does. Both are told to `warn`, and never hold up a camera.

    Raises:
        UsageError: there is no such program.
    """

    def __init__(self, command: str, warn: Callable[[str], None] | None = None) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as err:
            raise UsageError(f"not a command: {command!r} ({err}); expected a program and its arguments") from err
        if not self._words or shutil.which(self._words[0]) is None:
            raise UsageError(f"there is no program {(self._words or [''])[0]!r} to run; give its path, or install it")
        self._warn = warn or (lambda text: print(f"edgeattn: {text}", file=sys.stderr))
        self._delay = self._began = self._retry_at = 0.0
        self._rest, self._stuck = b"", False  # what is left of a line that went only in part
        self._child: subprocess.Popen[bytes] | None = None
        self._start()

    def __call__(self, result: Result) -> None:
        """Hand over one result."""
        if self._child is None and time.monotonic() >= self._retry_at:
            self._start()
        if self._child is None:
            return
        if self._rest and not self._send(b""):
            return
        if self._send(line_of(result).encode()):
            self._stuck = False

    def close(self) -> None:
        """Let the program read to the end; end it where it does not."""
        if self._child is None:
            return
        self._pipe.close()
        for end in (self._child.terminate, self._child.kill):
            if _waited(self._child):
                return
            end()
        self._child.wait()

    def _start(self) -> None:
        self._began, self._stuck, self._rest = time.monotonic(), False, b""
        try:
            # In a session of its own: Ctrl-C is for us, and the program reads what is left.
            self._child = subprocess.Popen(
                self._words, bufsize=0, stdin=subprocess.PIPE, stdout=_STDERR, start_new_session=True
            )
        except OSError as err:
            self._later(f"cannot start {self._words[0]}: {err.strerror}")
            return
        assert self._child.stdin is not None
        self._pipe = self._child.stdin
        os.set_blocking(self._pipe.fileno(), False)

    def _send(self, data: bytes) -> bool:
        """Write what is left of the line before, then `data`; whether all of it went."""
        self._rest += data
        deadline = time.monotonic() + (0 if self._stuck else _PATIENCE)
        while self._rest:
            ready = select.select([], [self._pipe], [], max(0.0, deadline - time.monotonic()))[1]
            if not ready:
                return self._behind(data)
            try:
                self._rest = self._rest[os.write(self._pipe.fileno(), self._rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._ended()
                return False
        return True

    def _behind(self, data: bytes) -> bool:
        """Forget a line of which nothing went, and say once that the program does not read."""
        if self._rest == data:
            self._rest = b""
        if not self._stuck:
            self._warn(f"{self._words[0]} does not read its results; it misses some")
        self._stuck = True
        return False

    def _ended(self) -> None:
        assert self._child is not None
        self._pipe.close()
        if not _waited(self._child):  # it has only closed its input
            self._child.kill()
        code, self._child = self._child.wait(), None
        self._later(f"{self._words[0]} has ended with exit code {code}")

    def _later(self, why: str) -> None:
        now = time.monotonic()
        self._delay = next_delay(self._delay, now - self._began)
        self._retry_at = now + self._delay
        self._warn(f"{why}; it is started again in {self._delay:.1f} s")


def _waited(child: subprocess.Popen[bytes]) -> bool:
    """Whether a program ends by itself in a while."""
    try:
        child.wait(_ENDING)
    except subprocess.TimeoutExpired:
        return False
    return True
