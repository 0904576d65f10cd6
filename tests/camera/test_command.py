from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from edgeattn.cli import main
from edgeattn.engine import write_engine
from tests.cameras import gray, mean_engine

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_engine(mean_engine(), tmp_path / "m.engine")
    return "m.engine"


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(gray(index, (20, 30 + index))).save(folder / f"{index}.png")
    return str(folder)


def test_events_are_one_object_a_line_and_the_summary_is_apart(
    engine: str, pictures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("names.txt").write_text("red\ngreen\nblue\n")
    words = ["camera", "--json", engine, "--source", pictures, "--classes", "names.txt"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["index"] for event in events] == list(range(5))
    assert {event["result"]["classes"][0]["label"] for event in events} <= {"red", "green", "blue"}
    assert set(events[0]["stages"]) == {"capture", "decode", "preprocess", "wait", "inference", "postprocess"}
    assert "5 results of 5 frames" in err


def test_events_go_to_a_file_and_to_a_command(engine: str, pictures: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["camera", engine, "--source", pictures, "--json", "events.json", "--on-result", "sed s/^/heard:/"]
    assert main(words) == 0
    lines = Path("events.json").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(5))
    out, err = capfd.readouterr()
    assert out == ""
    heard = [line.removeprefix("heard:") for line in err.splitlines() if line.startswith("heard:")]
    assert [json.loads(line)["index"] for line in heard] == list(range(5))


def test_it_ends_when_it_was_told_to(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["camera", engine, "--source", "test:?fps=200", "--frames", "7", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 7
    began = time.monotonic()
    assert main(["camera", engine, "--source", "test:", "--source", "test:?fps=20", "--duration", "0.3"]) == 0
    assert time.monotonic() - began < 3


def served_at(line: str) -> str:
    """What is served at the address that a line ends in."""
    with urllib.request.urlopen(line.rstrip().rpartition(" ")[2], timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_where_it_says_until_a_signal_ends_it_in_order(engine: str, ending: signal.Signals) -> None:
    pipe = subprocess.PIPE
    words = ["camera", engine, "--source", "test:?fps=50", "--json", "--preview", ":0", "--metrics", ":0"]
    command = [sys.executable, "-m", "edgeattn", *words]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        metrics, page = (served_at(child.stderr.readline()) for _ in range(2))
        assert "edgeattn_camera_frames_total" in metrics
        assert "<html" in page
        first = json.loads(child.stdout.readline())
        began = time.monotonic()
        child.send_signal(ending)
        out, err = child.stdout.read(), child.stderr.read()  # what is buffered here already among it
        assert time.monotonic() - began < 5
    assert child.returncode == 130
    indices = [first["index"], *(json.loads(line)["index"] for line in out.splitlines())]
    assert indices == sorted(set(indices))
    assert err.splitlines()[-1] == "edgeattn: interrupted"
    assert f"{len(indices)} results of" in err
    assert "left behind" not in err


def test_a_reader_that_leaves_ends_it_without_a_word(engine: str) -> None:
    words = f"{sys.executable} -m edgeattn camera {engine} --source test:?fps=100 --json | head -n 2"
    done = subprocess.run(words, shell=True, check=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=20)
    assert len(done.stdout.splitlines()) == 2
    assert "rror" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        ([], "no source was given", 2),
        (["--source", "tset:"], "did you mean 'test'", 2),
        (["--source", "nothing.mp4"], "no such video", 5),
        (["--source", "test:", "--task", "detection"], "detection is read from", 2),
        (["--source", "test:", "--attention"], "no attention map", 2),
        (["--source", "test:", "--preview", "here"], "not an address", 2),
        (["--source", "test:", "--on-result", "no-such-program"], "there is no program", 2),
        (["--source", "test:", "--record", "out.avi"], "out.mp4", 2),
        (["--source", "test:", "--classes", "none.txt"], "none.txt", 5),
    ],
)
def test_what_cannot_be_meant_is_refused_on_one_line(
    words: list[str], said: str, code: int, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["camera", engine, *words]) == code
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("edgeattn: error: ")
    assert said in err[-1]


@pytest.mark.parametrize("words", [["--record", "a.mp4"], ["--record", "b.mp4"], ["--json", "a.mp4.json"]])
def test_no_source_is_overwritten(words: list[str], engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["a.mp4", "b-2.mp4", "file://a.mp4.json"]
    for name in ("a.mp4", "b-2.mp4", "a.mp4.json"):
        Path(name).write_text("film")
    given = [word for source in sources for word in ("--source", source)]
    assert main(["camera", engine, *given, *words]) == 2
    assert "would overwrite" in capsys.readouterr().err
    assert [Path(name).read_text() for name in ("a.mp4", "b-2.mp4", "a.mp4.json")] == ["film"] * 3


@pytest.mark.parametrize(
    "words", [["--max-age", "-1"], ["--batch-wait", "x"], ["--frames", "0"], ["--duration", "inf"]]
)
def test_numbers_that_cannot_be_meant_are_wrong_usage(words: list[str], engine: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["camera", engine, "--source", "test:", *words])
    assert caught.value.code == 2


def test_the_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["camera", "doctor"]) == 0
    assert "PyAV" in capsys.readouterr().out
    assert main(["camera", "doctor", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks[0]["name"] == "PyAV"
