"""Files are whole or absent, whatever happens to their writer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeattn import files
from edgeattn.errors import EdgeAttnError, InputError, UsageError

OLD, NEW = b"old" * 1000, b"new" * 1000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    path.write_bytes(OLD)
    return path


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


def in_a_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"import sys; from pathlib import Path; from edgeattn import files\n{code}"]
    return subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_new_bytes_replace_the_old_ones_and_nothing_else_stays(target: Path) -> None:
    files.write_atomic(target, NEW)
    assert target.read_bytes() == NEW
    assert names(target) == ["m.engine"]


def test_reader_sees_the_old_bytes_until_the_new_ones_are_whole(target: Path) -> None:
    with files.staged(target) as part:
        part.write_bytes(NEW)
        assert target.read_bytes() == OLD
    assert target.read_bytes() == NEW


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failing_writer_leaves_the_old_file(target: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with files.staged(target) as part:
            part.write_bytes(NEW)
            raise error

    with pytest.raises(error):
        write()
    assert target.read_bytes() == OLD
    assert names(target) == ["m.engine"]


def test_killed_writer_leaves_the_old_file_and_the_next_one_sweeps(target: Path) -> None:
    code = """with files.staged(Path(sys.argv[1])) as part:
        part.write_bytes(b"half")
        print("ready", flush=True)
        import time; time.sleep(60)"""
    with in_a_process(code, target) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert target.read_bytes() == OLD
        files.write_atomic(target, NEW)
        assert len(names(target)) == 2, "a living writer's part is not swept"
        writer.kill()
    assert target.read_bytes() == NEW
    files.write_atomic(target, OLD)
    assert names(target) == ["m.engine"]


def test_names_that_look_like_patterns_are_swept_too(tmp_path: Path) -> None:
    dead = tmp_path / ".m[1].onnx.4194304.part"  # beyond the largest process id
    dead.write_bytes(b"half")
    files.write_atomic(tmp_path / "m[1].onnx", NEW)
    assert names(dead) == ["m[1].onnx"]


def test_full_disk_leaves_the_old_file(target: Path) -> None:
    code = """import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_atomic(Path(sys.argv[1]), b"new" * 1000)
except files.EdgeAttnError as err:
    print(err)"""
    printed, _ = in_a_process(code, target).communicate()
    assert "untouched" in printed
    assert target.read_bytes() == OLD
    assert names(target) == ["m.engine"]


@pytest.mark.parametrize(
    "name",
    ["none/m.engine", "file/m.engine", "n" * 300, "a\0b", "/"],
    ids=["no-folder", "file", "long-name", "zero-byte", "root"],
)
def test_path_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    with pytest.raises(EdgeAttnError, match="cannot write"):
        files.write_atomic(path, NEW)
    with pytest.raises(EdgeAttnError, match="cannot write"), files.locked(path):
        pass
    assert names(tmp_path / "file") == ["file"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_only_regular_files_are_replaced(make: object, tmp_path: Path) -> None:
    path = tmp_path / "m"
    make(path)  # type: ignore[operator]
    mode = path.stat().st_mode
    with pytest.raises(EdgeAttnError, match="is a folder, a pipe or a device"):
        files.write_atomic(path, NEW)
    assert path.stat().st_mode == mode


def test_link_stays_and_its_target_is_replaced(target: Path) -> None:
    link = target.with_name("latest")
    link.symlink_to(target.name)
    files.write_atomic(link, NEW)
    assert link.is_symlink()
    assert target.read_bytes() == NEW


@pytest.mark.parametrize("make", [os.link, os.symlink, None], ids=["hard-link", "link", "itself"])
def test_output_that_is_a_source_is_refused(make: Callable[[Path, Path], None] | None, target: Path) -> None:
    output = target.with_name("other") if make else target.parent / "x" / ".." / target.name
    if make:
        make(target, output)
    with pytest.raises(UsageError, match="would overwrite"):
        files.output_file(output, target.with_name("absent"), target)
    assert files.output_file(target.with_name("new"), target) == Path(os.path.realpath(target.with_name("new")))


def test_json_holds_a_name_that_is_no_text(tmp_path: Path) -> None:
    value = {"name": os.fsdecode(b"\xff\n"), "word": "ü"}
    files.write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_bytes()) == value
    assert "ü" in (tmp_path / "x.json").read_text(encoding="utf-8")


# Locks


def test_second_writer_is_refused_while_the_first_lives(target: Path) -> None:
    code = """with files.locked(Path(sys.argv[1])):
        print("ready", flush=True)
        import time; time.sleep(60)"""
    with in_a_process(code, target) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(EdgeAttnError, match="being written by another process"), files.locked(target):
            pass
        holder.send_signal(signal.SIGKILL)
    with files.locked(target):
        pass
    assert names(target) == ["m.engine"]


def test_locks_of_different_files_do_not_meet(target: Path) -> None:
    with files.locked(target), files.locked(target.with_name("other")):
        pass


def _count_alone(path: Path, rounds: int) -> int:
    """Take the lock again and again; whoever holds it must find the counter as it left it."""
    done = 0
    while done < rounds:
        with contextlib.suppress(EdgeAttnError), files.locked(path):
            value = int(path.read_text())
            time.sleep(0.0005)
            path.write_text(str(value + 1))
            done += 1
        time.sleep(0.0005)
    return done


def test_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "counter"
    path.write_text("0")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(_count_alone, [(path, 40)] * 3)
    assert path.read_text() == "120"


# Reading


def test_hash_is_the_one_of_hashlib(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    contents = [bytes(range(256)) * 5000, b""]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert files.sha256_file(paths[0]) == hashlib.sha256(contents[0]).hexdigest()
    assert files.sha256_file(paths[1]) == hashlib.sha256().hexdigest()
    assert files.sha256_files(paths, start=b"x") == hashlib.sha256(b"x" + contents[0]).hexdigest()


@pytest.mark.parametrize("read", [files.read_bytes, files.sha256_file], ids=["bytes", "hash"])
@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "zero-byte"])
def test_what_is_no_regular_file_is_refused_at_once(kind: str, read: object, tmp_path: Path) -> None:
    paths = {"folder": tmp_path, "pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "zero-byte": Path("a\0b")}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError):
        read(paths.get(kind, tmp_path / "none"))  # type: ignore[operator]


def test_reading_leaves_no_open_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(InputError):
            files.read_bytes(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 1 << 40)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="expected at most 1000"):
        files.read_bytes(path, 1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000
