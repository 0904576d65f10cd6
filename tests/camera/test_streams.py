"""Real streams on loopback: MJPEG over HTTP and RTSP, and servers that refuse, change, stop, die and come back."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import socket
import socketserver
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from edgeattn.camera.frame import Frame, Source
from edgeattn.camera.sources import open_source
from edgeattn.camera.sources.gstreamer import PYTHON, has_bindings
from edgeattn.camera.sources.pattern import read_clock
from edgeattn.errors import UsageError

pytest.importorskip("av")
RTSP_SERVER = Path(__file__).parents[2] / "scripts" / "_rtsp_server.py"
# In a process of its own: PyAV opens an output without letting other threads run.
PUBLISHER = """
import sys, time, av
from edgeattn.camera.sources import open_source
source = open_source("test:?fps=30&size=320x240")
for attempt in range(100):
    try:
        out = av.open(sys.argv[1], "w", format="rtsp", options={"rtsp_transport": "tcp"})
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10"}
        out.start_encoding()
        break
    except OSError:
        time.sleep(0.1)
while True:
    out.mux(stream.encode(av.VideoFrame.from_ndarray(source.read(1).image, format="rgb24")))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def jpeg(width: int, height: int = 48) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (0, 0, 200)).save(content, "JPEG")
    return content.getvalue()


def pictures(client: socket.socket, *images: bytes, fps: float = 50) -> None:
    """Answer a request with a multipart stream of JPEGs."""
    client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=edge\r\n\r\n")
    for image in images:
        client.sendall(b"--edge\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(image), image))
        time.sleep(1 / fps)


@contextlib.contextmanager
def server(answer: Callable[[int, socket.socket], object]) -> Iterator[str]:
    """A server on loopback that gives its n-th connection to `answer`; its address, without a scheme."""
    count = iter(range(10**6))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(65536)
                answer(next(count), self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads, made.block_on_close = True, False
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{made.server_address[1]}/stream"
        made.shutdown()


def until(source: Source, wanted: Callable[[Frame], bool], seconds: float = 30) -> Frame:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        frame = source.read(0.1)
        if frame is not None and wanted(frame):
            return frame
    raise AssertionError(f"nothing of the kind in {seconds} s")


@pytest.fixture
def said() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def watch(said: list[tuple[str, str]]) -> Iterator[Callable[[str], Source]]:
    made: list[Source] = []

    def open_and_listen(uri: str) -> Source:
        made.append(open_source(uri, on_state=lambda *words: said.append(words)))
        return made[-1]

    yield open_and_listen
    for source in made:
        source.close()


Watch = Callable[[str], Source]


def test_a_stream_may_change_its_size(watch: Watch) -> None:
    with server(lambda _, client: pictures(client, *[jpeg(64)] * 25, *[jpeg(80, 32)] * 500)) as address:
        source = watch(f"http://{address}")
        assert until(source, lambda _: True).image.shape == (48, 64, 3)
        changed = until(source, lambda frame: frame.image.shape != (48, 64, 3))
        assert changed.image.shape == (32, 80, 3)
        assert changed.epoch == 0


def test_the_end_of_a_stream_is_a_fault_and_credentials_are_nowhere(watch: Watch, said: list[tuple[str, str]]) -> None:
    with server(lambda _, client: pictures(client, *[jpeg(64)] * 10)) as address:
        source = watch(f"http://user:geheim@{address}?token=geheim")
        frame = until(source, lambda frame: frame.epoch == 1)
    assert [state for state, _ in said] == ["connecting", "live", "backoff", "connecting", "live"]
    assert frame.source == source.uri == f"http://{address}?token=***"
    assert "geheim" not in f"{said} {frame} {source!r}"


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_a_refused_password_is_not_tried_again_nor_shown(watch: Watch, scheme: str) -> None:
    asked = []

    def refuse(number: int, client: socket.socket) -> None:
        asked.append(number)
        answer = (
            b'%s/1.0 401 Unauthorized\r\nCSeq: %d\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
        )
        for cseq in (1, 2, 3):
            client.sendall(answer % (scheme.upper().encode(), cseq))
            client.recv(65536)

    with server(refuse) as address:
        source = watch(f"{scheme}://user:geheim@{address}")
        with pytest.raises(UsageError, match="refuses the user or the password") as caught:
            until(source, lambda _: True)
        assert "geheim" not in repr(caught.value)
        tried = len(asked)
        time.sleep(0.8)
        assert len(asked) == tried


def test_a_stalled_stream_is_noticed_and_opened_anew(watch: Watch, said: list[tuple[str, str]]) -> None:
    released = threading.Event()

    def stall_at_first(number: int, client: socket.socket) -> None:
        pictures(client, *[jpeg(64)] * (10 if number == 0 else 500))
        released.wait(30)

    with server(stall_at_first) as address:
        began = time.monotonic()
        until(watch(f"http://{address}#stall=0.6"), lambda frame: frame.epoch == 1)
        assert 0.6 <= time.monotonic() - began < 10
        released.set()
    assert [state for state, _ in said] == ["connecting", "live", "stale", "backoff", "connecting", "live"]


def test_garbage_and_silence_are_faults(watch: Watch, said: list[tuple[str, str]]) -> None:
    with server(lambda _, client: client.sendall(os.urandom(5000))) as address:
        assert watch(f"http://{address}").read(1.2) is None
    assert [state for state, _ in said][:3] == ["connecting", "backoff", "connecting"]


def test_rtsp_from_a_sender_that_comes_to_us(watch: Watch) -> None:
    uri = f"rtsp://127.0.0.1:{free_port()}/in"
    source = watch(f"{uri}#listen=1")
    source.read(0)
    sender = subprocess.Popen([sys.executable, "-c", PUBLISHER, uri], stderr=subprocess.DEVNULL)
    try:
        frames = [until(source, lambda _: True) for _ in range(30)]
    finally:
        sender.kill()
        sender.wait()
    times = [read_clock(frame.image) for frame in frames]
    ages = [frame.decoded_at - shown for frame, shown in zip(frames, times, strict=True) if shown is not None]
    assert len(ages) == 30
    assert 0 < statistics.median(ages) < 1


@contextlib.contextmanager
def rtsp_server(port: int, size: tuple[int, int] = (320, 240)) -> Iterator[subprocess.Popen[str]]:
    words = [PYTHON, str(RTSP_SERVER), *map(str, (port, *size, 30))]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    with child, child.stdout:
        if not child.stdout.readline():
            pytest.skip("no RTSP server: python3-gi or gir1.2-gst-rtsp-server-1.0 is not installed")
        yield child
        child.kill()


needs_gi = pytest.mark.skipif(not has_bindings(), reason="the system's Python has no gi with GStreamer")


@needs_gi
@pytest.mark.slow
@pytest.mark.parametrize("options", ["transport=tcp", "transport=udp", "decoder=pyav", "decoder=pyav&transport=udp"])
def test_a_killed_rtsp_server_is_found_again(watch: Watch, said: list[tuple[str, str]], options: str) -> None:
    port = free_port()
    source = watch(f"rtsp://127.0.0.1:{port}/test#stall=1&{options}")
    with rtsp_server(port) as child:
        until(source, lambda _: True)
        child.kill()
        while source.state != "backoff":  # type: ignore[attr-defined]
            source.read(0.1)
    with rtsp_server(port, (640, 240)):
        again = until(source, lambda frame: frame.epoch == 1)
    assert again.image.shape == (240, 640, 3)
    assert [state for state, _ in said].count("live") == 2


@needs_gi
@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["pyav", "gstreamer"])
def test_a_stopped_rtsp_server_is_stale_and_found_again(
    watch: Watch, said: list[tuple[str, str]], decoder: str
) -> None:
    port = free_port()
    source = watch(f"rtsp://127.0.0.1:{port}/test#stall=1.5&decoder={decoder}")
    with rtsp_server(port) as child:
        until(source, lambda _: True)
        child.send_signal(signal.SIGSTOP)
        while source.state != "backoff":  # type: ignore[attr-defined]
            source.read(0.1)
        child.send_signal(signal.SIGCONT)
        until(source, lambda frame: frame.epoch == 1)
    assert [state for state, _ in said][:4] == ["connecting", "live", "stale", "backoff"]


@needs_gi
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gst-launch-1.0") is None, reason="gst-launch-1.0 is not installed")
@pytest.mark.parametrize("user", ["", "user:geheim@"])
def test_rtsp_through_gstreamer(watch: Watch, user: str) -> None:
    port = free_port()
    with rtsp_server(port):
        source = watch(f"rtsp://{user}127.0.0.1:{port}/test#decoder=gstreamer")
        frames = [until(source, lambda _: True) for _ in range(10)]
    assert all(frame.image.shape == (240, 320, 3) for frame in frames)
    times = [read_clock(frame.image) for frame in frames]
    assert all(shown is not None and shown < frame.decoded_at for frame, shown in zip(frames, times, strict=True))
