"""Cameras and streams through GStreamer, in a child process: the only way to a Jetson's CSI cameras and its decoder.

The child writes raw RGB frames of a fixed size into a pipe. If a driver or a codec crashes, only the child does.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from fractions import Fraction
from threading import Lock

import numpy as np

from edgeattn.camera.frame import EndOfStream, Frame, Source
from edgeattn.camera.sources.libav import OPEN_TIMEOUT_S, open_libav
from edgeattn.camera.uri import Uri
from edgeattn.errors import MissingDependencyError, SourceError, UnsupportedError, one_line, redact

PYTHON = "/usr/bin/python3"  # the system's, which has the system's gi
# A command line is there for every user to read, so a pipeline with a password goes through stdin instead.
_CHILD = """
import signal, sys, gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
signal.signal(signal.SIGINT, signal.SIG_DFL)
Gst.init(None)
pipeline = Gst.parse_launch(sys.stdin.read())
pipeline.set_state(Gst.State.PLAYING)
message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.ERROR | Gst.MessageType.EOS)
sys.exit("ERROR: " + message.parse_error()[0].message if message.type == Gst.MessageType.ERROR else 0)
"""
_NEWEST = "queue leaky=downstream max-size-buffers=1 max-size-bytes=0 max-size-time=0"
_FPS = 30.0
_STOP_S = 1.0
_ANSWER_S = 60.0  # the first question of all makes GStreamer look at all of its plugins
_MAX_SAID = 4096


@functools.cache
def has_element(name: str) -> bool:
    """Whether GStreamer is installed and has an element of this name."""
    return shutil.which("gst-launch-1.0") is not None and _succeeds("gst-inspect-1.0", "--exists", name)


@functools.cache
def has_bindings() -> bool:
    """Whether the system's Python can run GStreamer, which a pipeline with a password needs."""
    program = "import gi; gi.require_version('Gst', '1.0'); from gi.repository import Gst"
    return _succeeds(PYTHON, "-I", "-c", program)


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=_ANSWER_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def open_gstreamer(name: Uri) -> Source:
    """Open a csi, v4l2, rtsp or rtsps source in a GStreamer child.

    A stream that GStreamer cannot decode here is left to PyAV, unless `decoder` says otherwise. Measured on a 30 fps
    RTSP stream, GStreamer's frames are one frame time younger: FFmpeg waits for the next one to know where one ends.

    Raises:
        MissingDependencyError: GStreamer's tools or an element is missing; see `edgeattn camera doctor`.
        UnsupportedError: the stream's codec is neither H.264 nor H.265.
        SourceError: the stream does not answer.
    """
    hardware = has_element("nvv4l2decoder")
    if name.scheme in ("rtsp", "rtsps"):
        return _open_stream(name, hardware)
    pipeline, size = csi_pipeline(name) if name.scheme == "csi" else v4l2_pipeline(name, hardware)
    _check(pipeline, secret=False)
    return GStreamerSource(name, pipeline, size, name.options.get("fps", _FPS))


def _open_stream(name: Uri, hardware: bool) -> Source:
    probe = open_libav(name)  # a pipe of raw frames has no header: who reads it must know their size
    try:
        pipeline = rtsp_pipeline(name, probe.codec, hardware)
        _check(pipeline, secret=name.secret)
        until = time.monotonic() + OPEN_TIMEOUT_S
        while 0 in probe.size:  # not announced: it is in the first key frame
            if time.monotonic() > until:
                raise SourceError(f"{name.public} shows no picture")
            probe.read(0)
    except BaseException as err:
        if isinstance(err, UnsupportedError) and name.options.get("decoder") != "gstreamer":
            return probe
        probe.close()
        raise
    probe.close()
    return GStreamerSource(name, pipeline, probe.size, probe.fps)


def csi_pipeline(name: Uri) -> tuple[str, tuple[int, int]]:
    """The pipeline for a sensor on a Jetson, up to RGB, and its frames' (w, h)."""
    width, height, rate = _format(name)
    flip = name.options.get("flip", 0)
    size = (height, width) if flip % 2 else (width, height)
    camera = f"nvarguscamerasrc sensor-id={name.target}"
    caps = f"video/x-raw(memory:NVMM),width={width},height={height},framerate={rate},format=NV12"
    to_memory = f"nvvidconv flip-method={flip} ! video/x-raw,format=BGRx"
    return f"{camera} ! {caps} ! {to_memory} ! {_NEWEST} ! videoconvert", size


def v4l2_pipeline(name: Uri, hardware: bool) -> tuple[str, tuple[int, int]]:
    """The pipeline for a V4L2 device, up to RGB, and its frames' (w, h)."""
    width, height, rate = _format(name)
    codec = name.options.get("codec", "mjpeg")
    kind, software, fast = {
        "mjpeg": ("image/jpeg", "jpegdec", "nvv4l2decoder mjpeg=1"),
        "h264": ("video/x-h264", "h264parse ! avdec_h264", "h264parse ! nvv4l2decoder disable-dpb=1"),
        "yuyv422": ("video/x-raw,format=YUY2", "identity", "identity"),
        "nv12": ("video/x-raw,format=NV12", "identity", "identity"),
    }[codec]
    to_memory = "nvvidconv ! video/x-raw,format=BGRx ! " if hardware and fast != "identity" else ""
    camera = f"v4l2src device={name.target} ! {kind},width={width},height={height},framerate={rate}"
    return f"{camera} ! {fast if hardware else software} ! {to_memory}{_NEWEST} ! videoconvert", (width, height)


def rtsp_pipeline(name: Uri, codec: str, hardware: bool) -> str:
    """The pipeline for a stream, up to RGB.

    Raises:
        UnsupportedError: the stream's codec is neither H.264 nor H.265.
    """
    codec = {"hevc": "h265"}.get(codec, codec)
    if codec not in ("h264", "h265"):
        raise UnsupportedError(f"{name.public} is {codec}, expected h264 or hevc; add #decoder=pyav")
    url = name.target.replace("\\", "%5C").replace('"', "%22")
    camera = f'rtspsrc location="{url}" latency=0 drop-on-latency=true protocols={name.options.get("transport", "tcp")}'
    fast = "nvv4l2decoder disable-dpb=1 ! nvvidconv ! video/x-raw,format=BGRx"
    decoder = fast if hardware else f"avdec_{codec} output-corrupt=false"
    return f"{camera} ! rtp{codec}depay ! {codec}parse ! {decoder} ! {_NEWEST} ! videoconvert ! videoscale"


def _format(name: Uri) -> tuple[int, int, str]:
    """Width, height and frame rate as GStreamer writes it."""
    fps = name.options.get("fps", _FPS)
    rate = Fraction(round(fps * 1.001) * 1000, 1001)  # of NTSC: 29.97 is 30000/1001
    if fps == int(fps) or abs(float(rate) - fps) > 0.005:
        rate = Fraction(fps).limit_denominator(1000)
    return name.options.get("width", 1280), name.options.get("height", 720), f"{rate.numerator}/{rate.denominator}"


class GStreamerSource:
    """A child that runs a pipeline, and the frames of `size` (w, h) that it writes.

    `captured_at` is when a frame's first byte came out of the child. Reading may time out in mid-frame, and go on.
    """

    live = True

    def __init__(self, name: Uri, pipeline: str, size: tuple[int, int], fps: float | None = None) -> None:
        self.uri = name.public
        self.fps = fps
        self._width, self._height = size
        self._stride = (self._width * 3 + 3) // 4 * 4  # GStreamer's rows begin at multiples of four
        self._pipe, sink = os.pipe()
        with suppress(OSError):  # the system's limit; a full pipe only costs the child more turns
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, min(1 << 20, self._stride * self._height))
        caps = f"video/x-raw,format=RGB,width={self._width},height={self._height}"
        try:
            self._child = _start(f"{pipeline} ! {caps} ! fdsink fd={sink} sync=false", sink, name.secret)
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(sink)
        assert self._child.stdout is not None
        self._messages = self._child.stdout
        os.set_blocking(self._messages.fileno(), False)
        self._said = b""
        self._index = 0
        self._buffer, self._filled, self._first = self._empty(), 0, 0.0
        self._closed = False
        self._busy = Lock()

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._child.pid

    def read(self, timeout: float) -> Frame | None:
        """The next frame, or None where it was not complete within `timeout` seconds.

        Raises:
            EndOfStream: the source was closed.
            SourceError: the child ended; with its last words.
        """
        deadline = time.monotonic() + timeout
        with self._busy:
            while self._filled < len(self._buffer):
                if self._closed:
                    raise EndOfStream(self.uri)
                if not self._fill(deadline - time.monotonic()):
                    return None
            rows = np.frombuffer(self._buffer, np.uint8).reshape(self._height, self._stride)[:, : self._width * 3]
            image = np.ascontiguousarray(rows).reshape(self._height, self._width, 3)
            self._buffer, self._filled = self._empty(), 0
            self._index += 1
            return Frame(image, self._index - 1, self._first, time.monotonic(), self.uri)

    def close(self) -> None:
        """End the child: by asking, and after a second by force."""
        self._closed = True
        for number in (signal.SIGINT, signal.SIGCONT):  # a stopped one takes its signals when it goes on
            self._child.send_signal(number)
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        with self._busy:  # a reader has seen the end of the pipe
            if not self._messages.closed:
                self._messages.close()
                os.close(self._pipe)

    def _empty(self) -> bytearray:
        return bytearray(self._stride * self._height)

    def _fill(self, left: float) -> bool:
        """Take what the child has written; whether there was anything before the time was over."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        poll.register(self._messages, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(max(0.0, left) * 1000)]
        if self._messages.fileno() in ready:
            self._said = (self._said + (self._messages.read(_MAX_SAID) or b""))[-_MAX_SAID:]
        if self._pipe in ready:
            count = os.readv(self._pipe, [memoryview(self._buffer)[self._filled :]])
            if count == 0:
                raise EndOfStream(self.uri) if self._closed else SourceError(f"{self.uri}: {self._last_words()}")
            self._first = time.monotonic() if self._filled == 0 else self._first
            self._filled += count
        return bool(ready)

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_STOP_S)
        text = (self._said + (self._messages.read() or b"")).decode(errors="replace")
        lines = [line for line in text.splitlines() if "ERROR" in line] or text.splitlines()[-1:]
        code = self._child.returncode
        ended = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        said = redact(one_line(" ".join(lines))) if lines else "no word"
        return f"the GStreamer child {ended}: {said}"


def _check(pipeline: str, secret: bool) -> None:
    """Refuse a pipeline that this machine cannot run, or not in private."""
    elements = re.findall(r"(?:^|! )([a-z][a-z0-9_]*)(?= |$)", pipeline)
    if missing := [element for element in dict.fromkeys(elements) if not has_element(element)]:
        what = f"GStreamer has no {', '.join(missing)}" if has_element("fdsink") else "GStreamer is not installed"
        raise MissingDependencyError(f"{what}; `edgeattn camera doctor` says what brings it")
    if secret and not has_bindings():
        raise MissingDependencyError(
            "a password would stand on GStreamer's command line; apt install python3-gi gir1.2-gstreamer-1.0, or add "
            "#decoder=pyav"
        )


def _start(pipeline: str, sink: int, secret: bool) -> subprocess.Popen[bytes]:
    """Run a pipeline that writes to the descriptor `sink`, through stdin where it holds a secret."""
    # Not stdout: NVIDIA's camera library talks there.
    command = [PYTHON, "-I", "-c", _CHILD] if secret else ["gst-launch-1.0", "-q", *pipeline.split(" ")]
    if shutil.which("setpriv"):  # a child that waits for a silent stream would not notice that we were killed
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if secret else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        pass_fds=(sink,),
        start_new_session=True,  # Ctrl-C is for us; we end it
    )
    if child.stdin:
        with suppress(BrokenPipeError):  # it has ended, and says why
            child.stdin.write(pipeline.encode())
            child.stdin.close()
    return child
