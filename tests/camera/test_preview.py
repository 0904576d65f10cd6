from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import edgeattn.camera
from edgeattn.camera.frame import Frame
from edgeattn.camera.outlets import Result
from edgeattn.camera.sinks.metrics import serve_metrics
from edgeattn.camera.sinks.overlay import Overlay
from edgeattn.camera.sinks.preview import MOST_VIEWERS, Preview
from edgeattn.camera.timing import Meter
from edgeattn.images import Recipe
from tests.browser import browser, needs_chromium
from tests.cameras import SIDE, Ticking, gray, mean_session

RECIPE = Recipe((SIDE, SIDE))


class Camera:
    uri = "cam:"


class Drawing:
    """An overlay that counts what it draws."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, result: Result) -> Image.Image:
        self.count += 1
        return Image.fromarray(result.frame.image)


@pytest.fixture
def drawing() -> Drawing:
    return Drawing()


@pytest.fixture
def preview(drawing: Drawing) -> Iterator[Preview]:
    preview = Preview(("127.0.0.1", 0), drawing, Meter([Camera()]).snapshot)  # type: ignore[arg-type]
    yield preview
    preview.close()


def result(level: int, size: tuple[int, int] = (48, 64)) -> Result:
    return Result(Frame(gray(level, size), level, 0.0, 0.0, "cam:"), {}, None, {"age": level / 1000})


def fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as err:
        return err.code, err.read()


def parts(stream: IO[bytes]) -> Iterator[int]:
    """The gray level of each picture of a stream, as it comes."""
    while True:
        assert stream.readline() == b"--frame\r\n"
        head = {}
        while line := stream.readline().strip():
            name, _, value = line.partition(b": ")
            head[name] = value
        picture = Image.open(io.BytesIO(stream.read(int(head[b"Content-Length"]))))
        yield round(float(np.asarray(picture.convert("L")).mean()))
        assert stream.readline() == b"\r\n"


def test_a_viewer_sees_the_newest_picture_and_those_that_follow(preview: Preview) -> None:
    for level in (10, 20, 30):
        preview(result(level))
    with urllib.request.urlopen(f"{preview.url}stream/0", timeout=5) as answer:
        assert answer.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
        seen = parts(answer)
        assert next(seen) == 30
        for level in (90, 140, 200):
            preview(result(level))
            assert next(seen) == level


def test_nothing_is_drawn_while_nobody_looks_and_once_for_all_who_do(preview: Preview, drawing: Drawing) -> None:
    for level in range(100):
        preview(result(level))
    assert drawing.count == 0
    for _ in range(3):
        status, jpeg = fetched(f"{preview.url}frame/0.jpg")
        assert status == 200
        assert Image.open(io.BytesIO(jpeg)).size == (64, 48)
    assert drawing.count == 1


def test_before_the_first_frame_there_is_a_gray_picture(preview: Preview, drawing: Drawing) -> None:
    assert Image.open(io.BytesIO(fetched(f"{preview.url}frame/0.jpg")[1])).size == (320, 180)
    assert drawing.count == 0


def test_a_viewer_who_does_not_read_holds_up_nobody(preview: Preview) -> None:
    host, port = preview.url.removeprefix("http://").rstrip("/").split(":")
    idle = socket.socket()
    idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    idle.connect((host, int(port)))
    idle.sendall(b"GET /stream/0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)  # as large as a JPEG gets
    longest = 0.0
    with urllib.request.urlopen(f"{preview.url}stream/0", timeout=5) as answer:
        for index in range(30):
            began = time.perf_counter()
            preview(Result(Frame(noise, index, 0.0, 0.0, "cam:"), {}, None, {"age": 0.0}))
            longest = max(longest, time.perf_counter() - began)
            time.sleep(0.01)
        preview(result(77))
        assert 77 in (level for level, _ in zip(parts(answer), range(40), strict=False))
    assert longest < 0.1
    idle.close()


def test_a_ninth_viewer_is_sent_away_and_may_come_when_another_leaves(preview: Preview) -> None:
    preview(result(1))
    viewers = [urllib.request.urlopen(f"{preview.url}stream/0", timeout=5) for _ in range(MOST_VIEWERS)]
    for viewer in viewers:
        assert next(parts(viewer)) == 1
    status, why = fetched(f"{preview.url}stream/0")
    assert (status, why) == (503, b"8 viewers are looking already\n")
    viewers[0].close()
    deadline = time.monotonic() + 5
    for level in range(2, 100):
        preview(result(level))  # the next picture tells that the viewer has left
        time.sleep(0.02)
        if preview._seats:
            break
    assert time.monotonic() < deadline
    with urllib.request.urlopen(f"{preview.url}stream/0", timeout=5) as answer:
        assert answer.status == 200
    for viewer in viewers:
        viewer.close()


def test_the_numbers_are_the_pipelines(preview: Preview) -> None:
    preview(result(50))
    found = json.loads(fetched(f"{preview.url}stats.json")[1])
    assert found["sources"][0]["age_ms"] == pytest.approx(50)
    assert found["stages"]["inference"]["p50_ms"] is None


def test_closing_ends_the_streams(drawing: Drawing) -> None:
    preview = Preview(("127.0.0.1", 0), drawing, Meter([Camera()]).snapshot)  # type: ignore[arg-type]
    preview(result(5))
    with urllib.request.urlopen(f"{preview.url}stream/0", timeout=5) as answer:
        seen = parts(answer)
        assert next(seen) == 5
        preview.close()
        preview(result(6))
        assert answer.read().count(b"--frame") <= 2


def test_names_of_sources_are_text(drawing: Drawing) -> None:
    class Hostile:
        uri = "<script>alert(1)</script>\"'"

    preview = Preview(("127.0.0.1", 0), drawing, Meter([Hostile()]).snapshot)  # type: ignore[arg-type]
    connection = http.client.HTTPConnection(*preview.url.removeprefix("http://").rstrip("/").split(":"))  # type: ignore[arg-type]
    connection.request("GET", "/")
    answer = connection.getresponse()
    text = answer.read().decode()
    preview.close()
    connection.close()
    assert text.count("<script>") == 1
    assert "unsafe-inline" not in str(answer.getheader("Content-Security-Policy"))


class Pausing(Ticking):
    """A source that can stand still."""

    def __init__(self, uri: str) -> None:
        super().__init__(1 / 20, uri=uri)
        self.paused = threading.Event()

    def read(self, timeout: float) -> Frame | None:
        if self.paused.is_set():
            time.sleep(0.05)
            return None
        return super().read(timeout)


def test_a_picture_that_cannot_be_drawn_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(result: Result) -> Image.Image:
        raise KeyError("gate/weights")

    preview = Preview(("127.0.0.1", 0), broken, Meter([Camera()]).snapshot)  # type: ignore[arg-type]
    preview(result(1))
    with pytest.raises(http.client.RemoteDisconnected):
        urllib.request.urlopen(f"{preview.url}frame/0.jpg", timeout=5)
    preview.close()
    assert capsys.readouterr().err == "edgeattn: a page cannot be served: KeyError: 'gate/weights'\n"


@needs_chromium
def test_many_sources_move_too(tmp_path: Path, drawing: Drawing) -> None:
    cameras = [type("Camera", (), {"uri": f"cam:{index}"})() for index in range(7)]
    preview = Preview(("127.0.0.1", 0), drawing, Meter(cameras).snapshot)  # type: ignore[arg-type]
    with browser(tmp_path) as tab:
        tab.open(preview.url)
        tab.evaluate(
            "window.seen = []; [...document.images].forEach((view, i) => view.addEventListener('load', () => {"
            "const d = document.createElement('canvas').getContext('2d'); d.drawImage(view, 0, 0);"
            "window.seen[i] = d.getImageData(3, 3, 1, 1).data[0]; }))"
        )
        for level in (40, 200):
            for index in range(7):
                frame = Frame(gray(level + index), level, 0.0, 0.0, f"cam:{index}")
                preview(Result(frame, {}, None, {"age": 0.01}))
            expected = [level + index for index in range(7)]
            deadline = time.monotonic() + 10
            while tab.evaluate("window.seen") != expected:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert tab.complaints == []
    preview.close()


@needs_chromium
def test_the_page_moves_and_agrees_with_the_metrics(tmp_path: Path) -> None:
    source = Pausing("tick:<b>")
    pipeline = edgeattn.camera.open(source, mean_session(), recipe=RECIPE)
    preview = Preview(("127.0.0.1", 0), Overlay(RECIPE, pipeline.stats), pipeline.stats)
    pipeline.attach(preview)
    metrics = serve_metrics(("127.0.0.1", 0), pipeline.stats)
    with pipeline, browser(tmp_path) as tab:
        tab.see(width=390, height=800)  # a phone
        tab.open(preview.url)
        tab.evaluate(
            "window.grab = () => { const c = document.createElement('canvas'), v = document.images[0];"
            "c.width = 7; c.height = 5; c.getContext('2d').drawImage(v, 0, 0, 7, 5);"
            "return c.getContext('2d').getImageData(6, 4, 1, 1).data[0]; }"
        )
        levels = {tab.evaluate("new Promise(r => setTimeout(() => r(grab()), 150))") for _ in range(8)}
        assert len(levels) >= 4
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        assert tab.evaluate("document.querySelector('figcaption').textContent") == "tick:<b>: live"
        source.paused.set()
        tab.evaluate("new Promise(r => setTimeout(r, 1500))")  # for the page to ask once more
        shown = {
            name: tab.evaluate(f"document.getElementById('{name}').textContent")
            for name in ("results", "frames", "p50")
        }
        text = fetched(f"{metrics.url}metrics")[1].decode()
        samples = {item.name: item for found in text_string_to_metric_families(text) for item in found.samples}
        for name in ("results", "frames"):
            assert float(shown[name]) == samples[f"edgeattn_camera_{name}_total"].value > 8
        assert shown["p50"] == f"{1000 * pipeline.stats().stages['age'].quantile(0.5):.1f}"
        assert len(tab.evaluate("document.getElementById('ages').getAttribute('points')").split()) > 3
        assert tab.complaints == []
    metrics.close()
