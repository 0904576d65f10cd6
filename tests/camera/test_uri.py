"""Names of sources, and no password in anything that is said of them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.camera.sources import open_source
from edgeattn.camera.uri import Uri, parse
from edgeattn.cli import main
from edgeattn.errors import InputError, UsageError, redact


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("csi://0", Uri("csi", "0", "csi://0")),
        ("csi://1?width=64&height=48&fps=29.97", Uri("csi", "1", "csi://1?width=64&height=48&fps=29.97",
                                                    {"width": 64, "height": 48, "fps": 29.97})),
        ("v4l2:///dev/video0", Uri("v4l2", "/dev/video0", "v4l2:///dev/video0")),
        ("/dev/video3", Uri("v4l2", "/dev/video3", "v4l2:///dev/video3")),
        ("v4l2:///dev/v4l/by-id/usb-Cam_1-index0?codec=mjpeg",
         Uri("v4l2", "/dev/v4l/by-id/usb-Cam_1-index0", "v4l2:///dev/v4l/by-id/usb-Cam_1-index0?codec=mjpeg",
             {"codec": "mjpeg"})),
        ("RTSP://cam:554/live?channel=1&subtype=0", Uri("rtsp", "RTSP://cam:554/live?channel=1&subtype=0",
                                                        "RTSP://cam:554/live?channel=1&subtype=0")),
        ("rtsp://u:p%40@[::1]/x#transport=udp&stall=9", Uri("rtsp", "rtsp://u:p%40@[::1]/x", "rtsp://[::1]/x",
                                                            {"transport": "udp", "stall": 9.0})),
        ("file:///a/b%20c.mp4", Uri("file", "/a/b c.mp4", "/a/b c.mp4")),
        ("videos/a.mp4", Uri("file", "videos/a.mp4", "videos/a.mp4")),
        ("test:", Uri("test", "", "test:")),
        ("test:?size=320x240&frames=9&live=0", Uri("test", "", "test:?size=320x240&frames=9&live=0",
                                                   {"size": (320, 240), "frames": 9, "live": False})),
    ],
)  # fmt: skip
def test_forms(text: str, uri: Uri) -> None:
    assert parse(text) == uri


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("csi://0?widht=640", "did you mean 'width'?"),
        ("csi://0?width=0", "expected a whole number from 16 to 16384"),
        ("csi://0?width=", "expected a whole number"),
        ("csi://0?width=640", "width and height go together"),
        ("csi://front", "csi://0"),
        ("v4l2://video0", "v4l2:///dev/video0"),
        ("v4l2:///dev/video0 ! filesink location=x", "v4l2:///dev/video0"),
        ("rstp://cam/x", "did you mean 'rtsp'?"),
        ("rtsp:///x", "without a host"),
        ("rtsp://cam:port/x", "without a host"),
        ("rtsp://cam/x#transport=quic", "expected tcp or udp"),
        ("rtsp://cam/x#fps=30", "option 'fps' is unknown"),
        ("test:?fps=nan", "expected a number from 0.01 to 1000"),
        ("test:?size=16x16", "at least 128x64"),
        ("test:pattern", "nothing but options"),
        ("file://", "the path"),
        ("", "the path"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+$") as caught:
        parse(text)
    assert said in str(caught.value)


def test_a_path_that_exists_is_one_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rtsp:x?y=1#z.mp4").touch()
    assert parse("rtsp:x?y=1#z.mp4") == Uri("file", "rtsp:x?y=1#z.mp4", "rtsp:x?y=1#z.mp4")


PASSWORDS = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: f"Q7#k{text}k#7Q")
QUIETER = ("Q7", "7Q")


def shown(text: str) -> str:
    try:
        uri = parse(text)
    except UsageError as err:
        return f"{err!r} {err.__cause__!r}"
    return f"{uri!r} {uri.public}"


@given(PASSWORDS, st.sampled_from(["rtsp", "rtsps", "http", "https", "rtmp"]), st.booleans())
def test_no_password_is_shown_however_it_is_written(password: str, scheme: str, encoded: bool) -> None:
    written = quote(password, safe="") if encoded else password
    said = shown(f"{scheme}://admin:{written}@10.0.0.7:554/live?token=Q7secret&channel=1#bad=1")
    assert not any(part in said for part in QUIETER), said


def opened(text: str) -> str:
    try:
        return open_source(text).uri
    except (UsageError, InputError) as err:
        return str(err)


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://cam/x?password=geh/geheim",
        "rtsp://cam/x?code=geheim",
        "rtsp://cam/x?passwd[]='geheim'",
        "rtsp://cam/user=admin_password=a/geheim_channel=1",
        "rtsp//admin:geheim@cam/x",
        " rtsp://admin:geheim@cam/x",
        "'rtsp://admin:geheim@cam/x'",
        "admin:geheim@cam:554/x",
        "file://admin:geheim@cam/x",
    ],
)
def test_no_secret_is_shown_in_a_query_or_by_a_slip(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "geheim" not in opened(text)
    with pytest.raises(SystemExit):
        main(["camera", "m.engine", "--sorce", text])
    assert "geheim" not in capsys.readouterr().err


def test_what_tells_two_cameras_of_a_recorder_apart_is_shown() -> None:
    uri = parse("rtsp://admin:geheim@cam/realmonitor?channel=2&subtype=0&size=640x480&id=a8f3")
    assert uri.public == "rtsp://cam/realmonitor?channel=2&subtype=0&size=640x480&id=***"
    assert uri.secret
    assert not parse("rtsp://cam/x?channel=2").secret
    assert parse("rtsp://cam/x?code=geheim").secret


def test_an_encoded_password_reaches_the_server_as_it_is() -> None:
    assert parse("rtsp://u:p%40%2F@cam/x").target == "rtsp://u:p%40%2F@cam/x"


def test_redact_leaves_the_rest_of_a_text() -> None:
    text = "open 'rtsp://u:p@ss/w?rd@cam/x?user=me&password=b&fps=3': refused, http://cam/y?sessionkey=1 too"
    assert redact(text) == "open 'rtsp://cam/x?user=***&password=***&fps=3': refused, http://cam/y?sessionkey=*** too"
