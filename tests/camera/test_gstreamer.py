"""The GStreamer child: its frames, its end, and what stands on its command line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgeattn.camera.frame import EndOfStream, Frame
from edgeattn.camera.sources.gstreamer import (
    GStreamerSource,
    csi_pipeline,
    has_bindings,
    has_element,
    open_gstreamer,
    rtsp_pipeline,
    v4l2_pipeline,
)
from edgeattn.camera.uri import parse
from edgeattn.errors import MissingDependencyError, SourceError, UnsupportedError

pytestmark = pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="gst-launch-1.0 is not installed")
MOVING = "videotestsrc is-live=true pattern=ball ! video/x-raw,framerate=30/1 ! videoconvert ! videoscale"
RED = "videotestsrc num-buffers=3 pattern=red ! videoconvert ! videoscale"


@pytest.fixture
def start() -> Iterator[Callable[..., GStreamerSource]]:
    made = []

    def make(pipeline: str, size: tuple[int, int] = (64, 48), uri: str = "csi://0") -> GStreamerSource:
        made.append(GStreamerSource(parse(uri), pipeline, size))
        return made[-1]

    yield make
    for source in made:
        source.close()


Start = Callable[..., GStreamerSource]


def drain(source: GStreamerSource) -> None:
    while True:
        source.read(60)


def first_frame(source: GStreamerSource) -> Frame:
    frame = source.read(20)
    assert frame is not None
    return frame


@pytest.mark.parametrize("size", [(64, 48), (37, 23), (641, 31)])
def test_frames_of_any_width_are_whole_and_the_end_is_an_error_of_a_live_source(
    start: Start, size: tuple[int, int]
) -> None:
    source = start(RED, size)
    for index in range(3):
        frame = first_frame(source)
        assert frame.image.shape == (size[1], size[0], 3)
        assert (frame.image == [255, 0, 0]).all()
        assert frame.index == index
        assert frame.captured_at <= frame.decoded_at
    with pytest.raises(SourceError, match="ended with 0"):
        source.read(20)


def test_a_killed_child_is_a_lost_source(start: Start) -> None:
    source = start(MOVING)
    first_frame(source)
    os.kill(source.pid, signal.SIGKILL)
    with pytest.raises(SourceError, match="SIGKILL"):
        drain(source)


def test_a_stopped_child_is_silent_and_goes_on_where_it_was(start: Start) -> None:
    source = start(MOVING)
    first_frame(source)
    os.kill(source.pid, signal.SIGSTOP)
    while source.read(0.3):
        pass
    assert source.read(0.2) is None
    os.kill(source.pid, signal.SIGCONT)
    assert first_frame(source).image.shape == (48, 64, 3)


@pytest.mark.parametrize("stopped", [False, True])
def test_close_wakes_a_reader_and_leaves_no_process(start: Start, stopped: bool) -> None:
    source = start(MOVING)
    first_frame(source)
    if stopped:
        os.kill(source.pid, signal.SIGSTOP)
    threading.Timer(0.2, source.close).start()
    began = time.monotonic()
    with pytest.raises(EndOfStream):
        drain(source)
    source.close()
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(source.pid, 0)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_child_does_not_outlive_us() -> None:
    program = f"""
import os, signal
from edgeattn.camera.sources.gstreamer import GStreamerSource
from edgeattn.camera.uri import parse
source = GStreamerSource(parse("csi://0"), {MOVING!r}, (64, 48))
source.read(20)
os.kill(source.pid, signal.SIGSTOP)  # it will write no more
print(source.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.strip().isdecimal()
    status = Path("/proc", done.stdout.strip(), "status")
    deadline = time.monotonic() + 20
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_child_says_why_it_ended(start: Start) -> None:
    pipeline, size = v4l2_pipeline(parse("v4l2:///dev/video99?width=64&height=48"), hardware=False)
    with pytest.raises(SourceError, match=r"ended with \d+: ERROR.*/dev/video99"):
        start(pipeline, size).read(20)


@pytest.mark.skipif(has_element("nvarguscamerasrc"), reason="this is a Jetson")
def test_missing_elements_are_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"no nvarguscamerasrc, nvvidconv; .*camera doctor"):
        open_gstreamer(parse("csi://0"))


def test_gstreamer_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    has_element.cache_clear()
    try:
        with pytest.raises(MissingDependencyError, match="not installed"):
            open_gstreamer(parse("csi://0"))
    finally:
        has_element.cache_clear()


def test_jetson_pipelines_decode_in_hardware_and_keep_only_the_newest() -> None:
    csi, size = csi_pipeline(parse("csi://1?width=1920&height=1080&fps=29.97&flip=1"))
    assert size == (1080, 1920)
    assert csi.startswith(
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=30000/1001"
    )
    assert "nvvidconv flip-method=1 ! video/x-raw,format=BGRx" in csi
    usb, _ = v4l2_pipeline(parse("v4l2:///dev/video2?codec=mjpeg"), hardware=True)
    assert "image/jpeg,width=1280,height=720,framerate=30/1 ! nvv4l2decoder mjpeg=1 ! nvvidconv" in usb
    rtsp = rtsp_pipeline(parse("rtsp://cam/x#transport=udp"), "hevc", hardware=True)
    assert "rtph265depay ! h265parse ! nvv4l2decoder disable-dpb=1 ! nvvidconv" in rtsp
    assert "protocols=udp" in rtsp
    assert all("leaky=downstream max-size-buffers=1 " in pipeline for pipeline in (csi, usb, rtsp))


def test_a_stream_that_never_shows_a_picture_is_given_up_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dark:
        codec, size, closed = "h264", (0, 0), False

        def read(self, timeout: float) -> None:
            time.sleep(0.01)

        def close(self) -> None:
            self.closed = True

    dark = Dark()
    monkeypatch.setattr("edgeattn.camera.sources.gstreamer.open_libav", lambda name: dark)
    monkeypatch.setattr("edgeattn.camera.sources.gstreamer.OPEN_TIMEOUT_S", 0.1)
    with pytest.raises(SourceError, match="rtsp://cam/x shows no picture"):
        open_gstreamer(parse("rtsp://cam/x#decoder=gstreamer"))
    assert dark.closed


def test_an_address_cannot_leave_its_quotes() -> None:
    pipeline = rtsp_pipeline(parse('rtsp://cam/x"!filesink!location="y\\'), "h264", hardware=False)
    assert 'location="rtsp://cam/x%22!filesink!location=%22y%5C" ' in pipeline
    with pytest.raises(UnsupportedError, match="vp9"):
        rtsp_pipeline(parse("rtsp://cam/x"), "vp9", hardware=False)


@pytest.mark.skipif(not has_bindings(), reason="the system's Python has no gi with GStreamer")
@pytest.mark.parametrize("uri", ["rtsp://user:geheim@127.0.0.1:1/x", "rtsp://127.0.0.1:1/x?code=geheim"])
def test_a_password_is_on_no_command_line_and_in_no_error(start: Start, uri: str) -> None:
    source = start(f'videotestsrc name="geheim" is-live=true ! {MOVING.partition("! ")[2]}', uri=uri)
    first_frame(source)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert b"geheim" not in process.read_bytes() or int(process.parent.name) == os.getpid()
    lost = start(f"{rtsp_pipeline(parse(uri), 'h264', hardware=False)} ! videoconvert", uri=uri)
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:1/x\S*: the GStreamer child") as caught:
        lost.read(20)
    assert "geheim" not in repr(caught.value)
