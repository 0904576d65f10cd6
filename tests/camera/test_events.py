from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from edgeattn.camera import pipeline
from edgeattn.camera.frame import Frame
from edgeattn.camera.outlets import Result
from edgeattn.camera.results import Classes
from edgeattn.camera.sinks import events
from edgeattn.camera.sinks.events import Command, Events
from edgeattn.errors import UsageError
from tests.cameras import gray


def result(index: int, name: str = "a") -> Result:
    now = time.monotonic()
    frame = Frame(gray(0), index, now, now, "cam:")
    return Result(frame, {}, Classes(((0, 1.0),), (name,)), {"age": 0.01, "inference": 0.002})


def program(folder: Path, code: str) -> str:
    path = folder / "program with a space.py"
    path.write_text(code)
    return f"{sys.executable} '{path}'"


def test_an_event_is_one_line_whatever_the_names_hold() -> None:
    stream = io.StringIO()
    sink = Events(stream)
    sink(result(3, "line\nbreak \u2028 \udcff"))
    sink(result(4))
    first, second = (json.loads(line) for line in stream.getvalue().encode("ascii").splitlines())
    assert (first["index"], second["index"]) == (3, 4)
    assert first["result"]["classes"][0]["label"] == "line\nbreak \u2028 \udcff"
    assert first["age_ms"] == pytest.approx(10)
    assert abs(first["captured_at"] - time.time()) < 5


def test_a_program_gets_every_result_on_its_standard_input(tmp_path: Path) -> None:
    got = tmp_path / "got"
    warnings: list[str] = []
    command = Command(
        program(tmp_path, f"import sys; open({str(got)!r}, 'w').write(sys.stdin.read())"), warnings.append
    )
    for index in range(2000):
        command(result(index))
    command.close()
    assert [json.loads(line)["index"] for line in got.read_text().splitlines()] == list(range(2000))
    assert warnings == []


def test_a_program_that_dies_is_said_and_started_again(tmp_path: Path) -> None:
    got = tmp_path / "got"
    code = f"import sys; line = sys.stdin.readline(); open({str(got)!r}, 'a').write(line); sys.exit(7)"
    warnings: list[str] = []
    command = Command(program(tmp_path, code), warnings.append)
    deadline = time.monotonic() + 10
    index = 0
    while time.monotonic() < deadline and (not got.exists() or len(got.read_text().splitlines()) < 2):
        command(result(index))
        index += 1
        time.sleep(0.01)
    command.close()
    numbers = [json.loads(line)["index"] for line in got.read_text().splitlines()]
    assert numbers[0] == 0
    assert numbers[1] > 1
    assert "has ended with exit code 7; it is started again in 0.5 s" in warnings[0]


def test_a_program_that_does_not_read_is_said_and_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PATIENCE", 0.3)
    warnings: list[str] = []
    got = tmp_path / "got"
    code = (
        "import os, sys, time\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        f"open({str(got)!r}, 'w').writelines(sys.stdin)\n"
    )
    command = Command(program(tmp_path, code), warnings.append)
    began = time.monotonic()
    for index in range(2000):  # far more than a pipe holds
        command(result(index))
    assert 0.2 < time.monotonic() - began < 1.5
    assert len(warnings) == 1
    assert "does not read its results; it misses some" in warnings[0]
    (tmp_path / "go").touch()
    time.sleep(0.2)
    for index in range(2000, 2010):
        command(result(index))
        time.sleep(0.01)
    command.close()
    numbers = [json.loads(line)["index"] for line in got.read_text().splitlines()]  # all of them whole
    assert numbers == sorted(numbers)
    assert numbers[-1] == 2009
    assert 100 < len(numbers) < 2000


def test_a_program_that_does_not_end_is_ended_before_the_pipeline_gives_up(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    command = Command(program(tmp_path, code))
    began = time.monotonic()
    command.close()
    assert time.monotonic() - began < pipeline._GRACE
    assert command._child is not None
    assert command._child.returncode is not None


def test_ctrl_c_in_a_terminal_is_not_for_the_program(tmp_path: Path) -> None:
    command = Command(program(tmp_path, "import time; time.sleep(60)"), lambda text: None)
    assert command._child is not None
    assert os.getpgid(command._child.pid) != os.getpgid(0)
    command.close()


def test_no_shell_sees_the_command(tmp_path: Path) -> None:
    command = Command(f"cat ; touch {tmp_path / 'made'}", lambda text: None)
    command.close()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["", "no-such-program-here --x", "/", "'open"])
def test_what_cannot_be_started_is_refused_at_once(text: str) -> None:
    with pytest.raises(UsageError, match=r"there is no program|not a command"):
        Command(text)
