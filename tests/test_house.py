"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgeattn
from edgeattn import errors
from edgeattn.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgeattn"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module may import those on lines above its own, and those to the left of it on its line.
ORDER = re.findall(
    r"\w+",
    """
    errors
    tensors batches files tolerance images metrics weights
    validate
    graph engine reports interpreter sizes normalise
    ops kernels
    nn model export fuse costs
    backends lowering inspect
    folding folders data precision
    profile run parity
    zoo
    calibrate alone build_report build search doctor
    maps bisect camera deploy
    cli __main__
""",
)

HEAVY = {"torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda", "polygraphy", "triton"} | {
    "cv2", "av", "ray", "sklearn", "skimage", "PIL", "safetensors",
}  # fmt: skip
# Modules that are about such a package, and are themselves imported only where they are used.
ABOUT = {"torch": ("nn/", "zoo/", "ops/", "export/remedies.py"), "triton": ("kernels/",)}


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """Full names of what an import statement may bind: `from a import b` is `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not those in functions or under TYPE_CHECKING."""
    for node in body:
        yield node
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not typing_only and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from run_at_import(getattr(node, part, []))


# Imports


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_follow_the_arrows(file: Path) -> None:
    own = file.relative_to(PACKAGE).with_suffix("").parts
    if own == ("__init__",):  # the face of the package, which fetches names when they are used
        return
    assert own[0] in ORDER, f"{own[0]} has no place yet: give it one in ORDER"
    known = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES}
    for node in ast.walk(tree_of(file)):
        for name in imported(node):
            package, *rest = name.split(".")
            if package == "edgeattn" and rest and rest[0] in known and rest[0] != own[0]:
                assert ORDER.index(rest[0]) < ORDER.index(own[0]), f"{name_of(file)}:{node.lineno} imports {name}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", ["backends", "ops"])
def test_backends_and_ops_do_not_import_each_other(package: str) -> None:
    table = importlib.import_module(f"edgeattn.{package}")
    homes = table.BACKENDS.values() if package == "backends" else [op.find.__module__ for op in table.ALL_OPS]
    stems = {home.rpartition(".")[2].removesuffix("_search") for home in homes}

    def owner(stem: str) -> str | None:
        return max((home for home in stems if stem == home or stem.startswith(f"{home}_")), key=len, default=None)

    for file in (PACKAGE / package).glob("*.py"):
        names = {name for node in ast.walk(tree_of(file)) for name in imported(node)}
        neighbours = {name.split(".")[2] for name in names if name.startswith(f"edgeattn.{package}.")}
        owners = {owner(stem) for stem in neighbours} - {None}
        assert file.stem == "__init__" or owners <= {owner(file.stem)}, file


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_heavy_packages_are_imported_where_they_are_used(file: Path) -> None:
    for node in run_at_import(tree_of(file).body):
        for name in imported(node):
            package = name.partition(".")[0]
            allowed = name_of(file).startswith(ABOUT.get(package, ()))
            assert package not in HEAVY or allowed, f"{name_of(file)}:{node.lineno} imports {package} when imported"


def loaded_after(statement: str) -> set[str]:
    """The top-level packages that a fresh process holds after a statement."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_edgeattn_imports_nothing_heavy() -> None:
    assert not loaded_after("import edgeattn") & (HEAVY | {"numpy", "onnx", "onnx_ir", "rich"})


def test_every_public_name_is_where_the_package_says() -> None:
    assert len(edgeattn.__all__) <= 20
    assert sorted(edgeattn.__all__) == list(edgeattn.__all__)
    for name in edgeattn.__all__:
        assert getattr(edgeattn, name) is not None


# Size and words


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 400
    longest = 100 if "kernels" in file.parts else 60
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= longest, f"{node.name} is longer than {longest} lines"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_public_names_are_documented(file: Path) -> None:
    tree = tree_of(file)
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


# Errors


def drawn_tree() -> Iterator[tuple[str, str, str | None, int | None]]:
    """(name, parent, second base, exit code) of each line of the drawing in `errors`."""
    parents: list[str] = []
    for line in str(errors.__doc__).splitlines():
        if match := re.match(r"    ([│├└─ ]*)(\w+)(?:\((\w+)\))?\s{2,}(?:(\d+)\s+)?\w", line):
            depth = len(match[1]) // 4
            parents[depth:] = [match[2]]
            yield match[2], parents[depth - 1] if depth else "Exception", match[3], match[4] and int(match[4])


def test_error_tree_is_the_one_drawn() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.EdgeAttnError)
    }
    drawn = {name: (parent, other, code) for name, parent, other, code in drawn_tree()}
    assert set(drawn) == set(classes) <= set(errors.__all__)
    for name, (parent, other, code) in drawn.items():
        assert [base.__name__ for base in classes[name].__bases__] == [parent, *([other] if other else [])]
        assert code is None or classes[name].exit_code == code


# Scripts and README


def test_scripts_can_be_run() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        if path.is_file() and not path.name.startswith("_"):
            assert os.access(path, os.X_OK), f"chmod +x {path}"
            assert path.read_text().startswith("#!/usr/bin/env "), path


def readme_commands() -> Iterator[list[str]]:
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if words := line.partition(" #")[0].split():
                yield words


def test_readme_names_commands_and_files_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = list(readme_commands())
    assert ["scripts/quickstart"] in commands
    assert ["scripts/test"] in commands
    for program, *words in commands:
        if program == "edgeattn":
            with pytest.raises(SystemExit):
                main([words[0], "--help"])
            usage = capsys.readouterr().out
            for flag in (word for word in words[1:] if word.startswith("--")):
                assert flag in usage, f"edgeattn {words[0]} has no {flag}"
        elif program.startswith("scripts/"):
            assert (ROOT / program).is_file(), program


def test_readme_shows_every_command() -> None:
    shown = {words[1] for words in readme_commands() if words[0] == "edgeattn"}
    assert {module.__name__.rpartition(".")[2] for module in COMMANDS} <= shown


def test_readme_tree_names_what_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"^([\w./]+/[\w./]*|[\w.]+\.(?:py|toml|md))\s{2,}", text, re.MULTILINE):
        assert (ROOT / path).exists(), path
