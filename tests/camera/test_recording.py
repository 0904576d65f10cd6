from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeattn.camera.frame import Frame
from edgeattn.camera.outlets import Result
from edgeattn.camera.sinks.recording import Recording
from edgeattn.errors import EdgeAttnError, UsageError
from tests.cameras import gray


def drawn(result: Result) -> Image.Image:
    return Image.fromarray(result.frame.image)


def result(level: int, at: float, size: tuple[int, int] = (48, 64), source: str = "cam:") -> Result:
    return Result(Frame(gray(level, size), 0, at, at, source), {}, None, {"age": 0.0})


def played(path: Path) -> tuple[list[float], list[NDArray[Any]]]:
    """Times in seconds, and pictures."""
    with av.open(str(path)) as video:
        frames = list(video.decode(video=0))
    return [float(frame.time or 0) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def test_a_recording_has_the_pictures_at_the_times_they_were_captured(tmp_path: Path) -> None:
    times = [100.0, 100.03, 100.1, 100.5, 102.25, 102.25, 102.2]  # with a gap, and a clock that never runs back
    recording = Recording(tmp_path / "out.mp4", drawn)
    for index, at in enumerate(times):
        recording(result(30 * index, at))
    recording.close()
    found, pictures = played(tmp_path / "out.mp4")
    assert found == pytest.approx([0, 0.03, 0.1, 0.5, 2.25, 2.25, 2.25], abs=1e-3)
    assert [int(picture.mean()) for picture in pictures] == pytest.approx([30 * i for i in range(7)], abs=3)


def test_sizes_may_change_and_be_odd(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "out.mp4", drawn)
    recording(result(200, 0.0, (33, 65)))
    recording(result(200, 0.1, (33, 65)))
    recording(result(200, 0.2, (64, 32)))  # from now on upright: fitted in, black beside it
    recording.close()
    _, pictures = played(tmp_path / "out.mp4")
    assert [picture.shape for picture in pictures] == [(32, 64, 3)] * 3
    assert pictures[1].min() > 190
    assert pictures[2][:, 28:36].min() > 190
    assert pictures[2][:, :20].max() < 10


def test_each_source_has_its_file(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "out.mp4", drawn)
    for index in range(3):
        recording(result(40, index / 10, source="a"))
        recording(result(160, index / 10, source="b"))
    recording.close()
    for name, level in (("out", 40), ("out-2", 160)):
        pictures = played(tmp_path / f"{name}.mp4")[1]
        assert [int(picture.mean()) for picture in pictures] == pytest.approx([level] * 3, abs=3)


def test_a_recording_plays_after_its_process_was_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from tests.camera.test_recording import Recording, drawn, result\n"
        f"recording = Recording({str(tmp_path / 'out.mp4')!r}, drawn)\n"
        "for index in range(150):\n"
        "    recording(result(index, index / 30))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    times, pictures = played(tmp_path / "out.mp4")
    assert len(times) >= 30
    assert [int(picture.mean()) for picture in pictures] == pytest.approx(range(len(times)), abs=3)


def test_what_cannot_be_recorded_to_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"call it out\.mp4"):
        Recording(tmp_path / "out.avi", drawn)
    with pytest.raises(EdgeAttnError, match="its folder does not exist"):
        Recording(tmp_path / "no" / "out.mp4", drawn)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_an_error_in_words(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    recording = Recording(tmp_path / "out.mp4", lambda _: Image.fromarray(noise))
    (tmp_path / "out.mp4").symlink_to("/dev/full")
    with pytest.raises(EdgeAttnError, match=r"cannot record to .*No space left on device"):  # noqa: PT012
        for index in range(90):
            recording(result(0, index / 30))
        recording.close()


def test_what_comes_from_a_file_plays_at_its_own_rate(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "out.mp4", drawn, {"film": 25.0})
    for index in range(4):
        frame = Frame(gray(0, (48, 64)), index, 100 + index / 1000, 100, "film")
        recording(Result(frame, {}, None, {"age": 0.0}))
    recording.close()
    assert played(tmp_path / "out.mp4")[0] == pytest.approx([0, 0.04, 0.08, 0.12], abs=1e-4)
