from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeattn.cli import main, options, output
from edgeattn.graph import save_graph
from edgeattn.metrics import TASKS
from edgeattn.reports import text
from tests.clock import few_rounds
from tests.graphs import self_attention


def with_package() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_graph(self_attention().graph, tmp_path / "model.onnx")
    return Path("model.onnx")


@pytest.fixture
def engine(model: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["build", str(model), "--backend", "onnxruntime", "-q"]) == 0
    capsys.readouterr()
    return Path("model.engine")


def test_build_ends_with_a_verdict_and_writes_two_files(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(model), "--fp16", "--backend", "onnxruntime", "-v"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "PASSED: model.engine says what model.onnx says"
    assert "overhead" in err
    assert {path.name for path in Path().iterdir()} == {"model.onnx", "model.engine", "model.engine.json"}


def test_int8_calibrates_or_takes_what_was_calibrated(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    for number in range(4):
        x = np.random.default_rng(number).standard_normal((1, 7, 8)).astype(np.float32)
        np.savez(f"data/{number}.npz", x=x)
    asked = ["build", str(model), "--int8", "--backend", "onnxruntime", "-q"]
    assert main([*asked, "--data", "data", "--keep", "que*"]) == 0
    out, _ = capsys.readouterr()
    assert "INT8: 2 MatMul" in out
    assert "MatMul 'query': kept high as asked" in out
    assert "dB against the graph on 4 samples" in out
    assert main(["calibrate", str(model), "--data", "data", "-o", "ranges.json", "-q"]) == 0
    assert main([*asked, "--ranges", "ranges.json", "--dry-run"]) == 0
    assert "INT8: 3 MatMul" in capsys.readouterr().out
    save_graph(self_attention(seed=1).graph, model)
    assert main([*asked, "--ranges", "ranges.json"]) == 5
    assert "the ranges are stale" in capsys.readouterr().err


def test_the_best_is_chosen_before_everybodys_eyes(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_rounds(monkeypatch)
    assert main(["build", str(model), "--best", "--backend", "onnxruntime"]) == 0
    assert "chosen: the next takes" in capsys.readouterr().out
    assert main(["build", str(model), "--best", "--backend", "onnxruntime", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sidecar"]["search"]
    assert [row["ms"] > 0 for row in rows] == [True] * 3
    assert json.loads(Path("model.engine.json").read_text())["search"] == rows


def test_json_stands_alone_on_stdout_wherever_the_flag_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--json", str(model), "--backend", "onnxruntime"]) == 0
    assert json.loads(capsys.readouterr().out)["sidecar"]["backend"] == "onnxruntime"
    assert main(["inspect", "--json", "model.engine"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "engine"
    assert main(["inspect", str(model), "--json", "graph.json"]) == 0
    assert json.loads(Path("graph.json").read_text())["operators"]["MatMul"] == 5


def test_trtexec_names_are_understood(model: Path) -> None:
    words = (
        "--saveEngine=a.engine --minShapes=x:1x7x8 --optShapes=x:2x7x8 --maxShapes=x:4x7x8 --memPoolSize=workspace:64"
    )
    assert main(["build", str(model), "--backend", "onnxruntime", "-q", *words.split()]) == 0
    sidecar = json.loads(Path("a.engine.json").read_text())
    assert sidecar["profile"]["x"] == {"min": [1, 7, 8], "opt": [2, 7, 8], "max": [4, 7, 8]}
    assert sidecar["config"]["workspace"] == 64 << 20


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["build", "absent.onnx"], 5, "absent.onnx"),
        (["build", "model.onnx", "--backend", "onnxruntime", "--shapes", "x:1x9x9"], 2, "does not admit"),
        (["inspect", "text.onnx"], 5, "text.onnx"),
        (["run", "model.onnx", "--input", "x.npz"], 5, "no sidecar"),
        (["parity", "absent.engine", "--against", "model.onnx", "--random"], 5, "absent.engine"),
        (["export", "absent.py:net", "-o", "x.onnx", "--input", "1x3"], 5, "absent.py"),
        (["build", ""], 5, "it is a folder"),
        (["build", "a\nb.onnx"], 5, r"a\nb.onnx"),
        (["build", "model.onnx", "-o", "/"], 1, "cannot write /"),
        (["build", "model.onnx", "-o", "model.onnx"], 2, "would overwrite model.onnx"),
        (["build", "model.onnx", "-o", "none/m.engine"], 1, "its folder does not exist"),
        (["build", "model.onnx", "--json", "model.engine.json"], 2, "would overwrite"),
        (["build", "model.onnx", "--precision", "int4"], 2, "known: fp32, fp16, bf16, int8"),
        (["build", "model.onnx", "--int8"], 2, "give --data DIR with real samples, or --ranges FILE"),
        (["build", "model.onnx", "--best", "--int8"], 2, "leave --int8, --ranges and --keep out"),
        (
            ["build", "model.onnx", "--int8", "--ranges", "r.json", "--calibration-method", "mse"],
            2,
            "found by a method",
        ),
        (["build", "model.onnx", "--int8", "--recipe", "r.toml"], 2, "give their folder with --data"),
        (["build", "model.onnx", "--keep", "nothing*"], 2, "has no node or module 'nothing*'"),
        (["build", "model.onnx", "--backend", "openvino", "--target", "sm_87"], 4, "not for sm_87"),
        (["build", "model.onnx", "--best", "--target", "sm_87"], 2, "leave targets"),
        (["build", "model.onnx", "--best", "--dry-run"], 2, "leave --dry-run out"),
        (["build", "model.onnx", "--max-builds", "3"], 2, "about the search: give --best"),
        (["build", "model.onnx", "--fp16", "--max-drop", "top1=1%"], 2, "give --data DIR"),
        (["build", "model.onnx", "--best", "--task", "detection"], 2, "give --data DIR"),
        (["build", "model.onnx", "--data", "d", "--max-drop", "top1=1%", "--no-check"], 2, "leave --no-check out"),
        (["build", "model.onnx", "--shapes", "x:1x7x8", "--max-shapes", "x:2x7x8"], 2, "--shapes is"),
        (["build", "model.onnx", "--max-shapes", "x:99999999999x7x8"], 2, "at most 2147483647 elements"),
        (["inspect", "."], 5, "it is a folder"),
        (["inspect", "n" * 5000], 5, "File name too long"),
        (["inspect", "model.onnx", "--json", "none/x.json"], 1, "its folder does not exist"),
        (["export", "net.py:net", "-o", "net.py", "--input", "1x3"], 2, "would overwrite net.py"),
        (["run", "m.engine", "--input", "x.npz", "--output", "x.npz"], 2, "would overwrite x.npz"),
        (["parity", "m.engine", "--against", "model.onnx", "--random", "--html", "m.engine"], 2, "would overwrite"),
        (["parity", "m.engine", "--against", "model.onnx", "--random", "--limit", "3"], 2, "--limit, --recipe"),
        (["parity", "m.engine", "--against", "model.onnx", "--random", "--task", "detection"], 2, "and --task"),
    ],
)
def test_bad_input_gets_one_line_and_its_exit_code(
    model: Path, words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.onnx").write_text("this is no model")
    before = sorted(Path().iterdir())
    assert main(words) == code
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("edgeattn: error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in err
    assert not out
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["build"],
        ["nonsense"],
        ["build", "m.onnx", "--workspace", "2"],
        ["build", "m", "--fp"],
        ["build", "m.onnx", "--best", "--fp16"],
        ["run", "m.engine", "--input", "x.npz", "--top", "-1"],
        ["parity", "m.engine", "--against", "m.onnx", "--random", "--seed", "-1"],
        ["parity", "m.engine", "--against", "m.onnx", "--data", "d", "--limit", "0"],
        ["parity", "m.engine", "--against", "m.onnx", "--data", "d", "--max-drop", "top1=1%,top1=2%"],
        ["parity", "m.engine", "--against", "m.onnx", "--data", "d", "--task", "driving"],
    ],
)
def test_wrong_usage_is_exit_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_every_task_can_be_asked_for() -> None:
    assert tuple(TASKS) == options.TASKS


def test_settings_come_from_command_line_then_environment_then_file(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def built_with(*words: str) -> dict[str, object]:
        assert main(["build", str(model), "-q", "--json", *words]) == 0
        sidecar = json.loads(capsys.readouterr().out)["sidecar"]
        return {"backend": sidecar["backend"], "precision": sidecar["precision"]["asked"]}

    Path("edgeattn.toml").write_text('[build]\nbackend = "onnxruntime"\nprecision = "fp16"\nno-check = true\n')
    assert built_with() == {"backend": "onnxruntime", "precision": "float16"}
    monkeypatch.setenv("EDGEATTN_BUILD_PRECISION", "fp32")
    assert built_with() == {"backend": "onnxruntime", "precision": "float32"}
    assert built_with("--fp16", "--backend", "openvino") == {"backend": "openvino", "precision": "float16"}


def test_an_unknown_setting_names_the_nearest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.toml").write_text('[build]\nworkspce = "2GiB"\n')
    assert main(["build", str(model), "--config", "own.toml"]) == 2
    assert "did you mean 'workspace'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("build = 3", "expected a table [build]"),
        ("[biuld]\nquiet = true", "did you mean 'build'?"),
        ("[build]\nopt-level = 9", "9 is not one of 0, 1"),
        ("[build]\nbackend = 'tpu'", "'tpu' is not one of auto"),
        ("[build]\noutput = ['a', 'b']", "expected one value"),
        ("[build]\ndebug = true", "no option 'debug'"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(
    model: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("edgeattn.toml").write_text(text)
    assert main(["build", str(model)]) == 2
    assert said in capsys.readouterr().err
    assert main(["inspect", str(model)]) == (0 if text.startswith("[build]") else 2)


def test_settings_mean_what_the_options_mean(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("edgeattn.toml").write_text('[build]\nworkspace = "2GiB"\njson = true\nbackend = "onnxruntime"\n')
    assert main(["build", str(model), "-q", "--no-check"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["sidecar"]["config"]["workspace"] == 2 << 30
    assert made["notes"] == ["workspace is a setting of TensorRT: not used"]


def test_names_that_are_no_text_can_be_built_and_shown(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"\xff \n.engine")
    assert main(["build", str(model), "-o", name, "--backend", "onnxruntime", "-q"]) == 0
    assert main(["inspect", name]) == 0
    capsys.readouterr()
    assert main(["inspect", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == name


@pytest.mark.parametrize(
    ("err", "code", "said"),
    [
        (ModuleNotFoundError("No module named 'rich'", name="rich"), 4, "package rich cannot be imported"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyError("a\nb"), 1, "unexpected KeyError"),
    ],
)
def test_what_nobody_foresaw_is_one_line_as_well(
    err: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise err

    monkeypatch.setattr("edgeattn.inspect.inspect_file", fail)
    assert main(["inspect", "m.onnx"]) == code
    assert said in capsys.readouterr().err
    with pytest.raises(type(err)):
        main(["inspect", "m.onnx", "--debug"])


def test_a_closed_stream_is_no_fault(model: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m edgeattn build model.onnx --backend onnxruntime >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=with_package(), check=False).returncode == 0
    assert main(["inspect", "model.engine"]) == 0


def test_sigterm_cleans_up_as_ctrl_c_does(model: Path) -> None:
    code = """
import os, signal, sys
from edgeattn import files
from edgeattn.cli import main
def stopped(*_, **__):
    with files.staged(files.Path("x")) as part:
        part.touch()
        os.kill(os.getpid(), signal.SIGTERM)
import edgeattn.inspect
edgeattn.inspect.inspect_file = stopped
sys.argv[1:] = ["inspect", "model.onnx"]
sys.exit(main())"""
    assert subprocess.run([sys.executable, "-c", code], env=with_package(), check=False).returncode == 130
    assert [path.name for path in Path().iterdir()] == ["model.onnx"]


def test_run_takes_arrays_as_they_are(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).standard_normal((3, 7, 8)).astype(np.float32)
    np.savez("x.npz", x=x)
    assert main(["run", str(engine), "--input", "x.npz", "--output", "y.npz"]) == 0
    with np.load("y.npz") as found:
        np.testing.assert_allclose(found["y"], self_attention().compute({"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_run_says_name_expected_and_got(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("x.npz", x=np.zeros((9, 7, 8), np.float32))
    assert main(["run", str(engine), "--input", "x.npz"]) == 5
    assert "input 'x': expected shape 1x7x8 .. 1x7x8 .. 8x7x8, got 9x7x8" in capsys.readouterr().err


def test_parity_against_the_graph_passes_and_writes_every_form(
    engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["parity", str(engine), "--against", "model.onnx", "--random", "--no-latency"]
    assert main([*words, "--json", "r.json", "--html", "r.html", "--junit", "r.xml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASSED")
    assert json.loads(Path("r.json").read_text())["passed"] is True
    assert "<html" in Path("r.html").read_text()
    assert "<testsuite" in Path("r.xml").read_text()


def test_parity_against_another_model_exits_3(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_graph(self_attention(seed=5).graph, "other.onnx")
    assert main(["parity", str(engine), "--against", "other.onnx", "--random", "--no-latency"]) == 3
    assert "FAILED: " in capsys.readouterr().out


def test_a_swapped_plan_is_refused_before_it_is_loaded(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.write_bytes(engine.read_bytes() + b"\0")
    assert main(["run", str(engine), "--input", "x.npz"]) == 5
    assert "SHA-256 differs" in capsys.readouterr().err


def test_an_interrupt_exits_130(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeattn.build.build_engine", interrupt)
    assert main(["build", str(model)]) == 130


WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript", "safetensors", "triton"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from edgeattn.cli import main

for words in sys.argv[1:]:
    code = main(words.split())
    if code:
        sys.exit(f"{words} ended with {code}")
"""


def test_a_file_is_built_inspected_run_and_checked_without_torch(model: Path) -> None:
    np.savez("x.npz", x=np.zeros((1, 7, 8), np.float32))
    words = (
        "build model.onnx --fp16 -q",
        "inspect model.onnx",
        "inspect model.engine",
        "run model.engine --input x.npz",
        "parity model.engine --against model.onnx --random --no-latency",
        "doctor",
    )
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_line_too_long_for_the_terminal_goes_on_below_its_last_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := io.StringIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    rows = [["note", "one two three four five six seven"], ["a name as long as this is", "stays on its line"]]
    output.emit(text.table(rows[:1]) + "\n" + text.table(rows[1:]) + "\n" + "-" * 40, None)
    assert terminal.getvalue().splitlines() == [
        "note  one two three four five",
        "      six seven",
        "a name as long as this is  stays on its line",
        "-" * 30,
    ]
