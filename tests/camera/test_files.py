"""Video files and folders of images: every picture, upright, in RGB; and what damaged ones do."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeattn.camera.frame import EndOfStream, Frame, Source
from edgeattn.camera.sources import open_source
from edgeattn.camera.sources.pattern import read_clock
from edgeattn.errors import InputError

av = pytest.importorskip("av")

Images = Sequence[np.ndarray[Any, Any]]
COLOURS = [(255, 0, 0), (0, 200, 0), (0, 0, 255), (250, 250, 10), (128, 128, 128)]


def read_all(source: Source) -> list[Frame]:
    found = []
    try:
        while (frame := source.read(5)) is not None:
            found.append(frame)
    except EndOfStream:
        pass
    return found


def pattern(count: int, size: str = "160x128") -> list[Frame]:
    return read_all(open_source(f"test:?live=0&frames={count}&size={size}"))


def write(path: Path, images: Images, codec: str = "libx264", pixels: str = "yuv420p", **options: str) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.options = pixels, options
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def flat(colour: tuple[int, int, int], height: int = 48, width: int = 64) -> np.ndarray[Any, Any]:
    return np.full((height, width, 3), colour, np.uint8)


@pytest.mark.parametrize(("suffix", "options"), [("mp4", {"bf": "2", "g": "12"}), ("mkv", {"preset": "ultrafast"})])
def test_every_frame_of_a_video_comes_once_in_its_order(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    frames = pattern(40)
    source = open_source(write(tmp_path / f"v.{suffix}", [frame.image for frame in frames], crf="30", **options))
    assert (source.live, source.fps) == (False, 25)
    found = read_all(source)
    assert [frame.index for frame in found] == list(range(40))
    assert [read_clock(frame.image) for frame in found] == [read_clock(frame.image) for frame in frames]
    assert all(frame.captured_at <= frame.decoded_at for frame in found)
    with pytest.raises(EndOfStream):
        source.read(5)


@pytest.mark.parametrize("pixels", ["bgr0", "gray", "yuv444p", "yuv420p10le", "yuva420p"])
def test_any_pixel_format_becomes_rgb(tmp_path: Path, pixels: str) -> None:
    images = [
        flat((level, level, level)) if pixels == "gray" else flat(colour) for level, colour in enumerate(COLOURS, 99)
    ]
    found = read_all(open_source(write(tmp_path / "v.mkv", images, "ffv1", pixels)))
    assert len(found) == len(images)
    for frame, image in zip(found, images, strict=True):
        assert frame.image.dtype == np.uint8
        assert frame.image.shape == image.shape
        assert np.abs(frame.image.astype(int) - image).max() <= 3


def test_odd_sizes_and_irregular_times(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mkv"), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 35, 17, "bgr0"
        for index, pts in enumerate([0, 1, 7, 8, 30]):
            picture = av.VideoFrame.from_ndarray(flat(COLOURS[index], 17, 35), format="rgb24").reformat(format="bgr0")
            picture.pts = pts
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    found = read_all(open_source(tmp_path / "v.mkv"))
    assert [tuple(frame.image[8, 17]) for frame in found] == COLOURS
    assert all(frame.image.shape == (17, 35, 3) for frame in found)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotated_videos_are_upright(tmp_path: Path, matrix: tuple[int, ...], turns: int) -> None:
    frame = pattern(1)[0].image
    path = write(tmp_path / "v.mp4", [frame], crf="10")
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # of a version 0 track header: its matrix, in 16.16 and 2.30 fixed point
    a, b, c, d = (int(value * 65536).to_bytes(4, "big", signed=True) for value in matrix)
    zero = bytes(4)
    path.write_bytes(content[:at] + a + b + zero + c + d + zero + content[at + 24 :])
    upright = read_all(open_source(path))[0].image
    assert np.abs(upright.astype(int) - np.rot90(frame, turns)).mean() < 5


def test_size_changes_in_mid_stream(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{size}.h264", [f.image for f in pattern(5, size)]) for size in ("160x128", "192x64")]
    (tmp_path / "both.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = [frame.image.shape for frame in read_all(open_source(tmp_path / "both.h264"))]
    assert shapes == [(128, 160, 3)] * 5 + [(64, 192, 3)] * 5


def test_a_truncated_video_gives_what_is_left_of_it(tmp_path: Path) -> None:
    content = write(tmp_path / "v.mkv", [frame.image for frame in pattern(40)], g="5").read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 2])
    assert 5 < len(read_all(open_source(tmp_path / "half.mkv"))) < 35


def test_damaged_packets_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", [frame.image for frame in pattern(40)], g="5", bf="0", preset="ultrafast")
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    middle = begin + (content.index(b"moov") - begin) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(content)
    source = open_source(path)
    found = read_all(source)
    assert 10 < len(found) < 40
    assert source.corrupt > 0  # type: ignore[attr-defined]
    assert found[-1].index >= len(found)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("v.mp4", b"", "cannot read"), ("v.mp4", b"\0" * 5000, "cannot read"), ("v.mkv", b"no video" * 99, "cannot read")],
)
def test_what_is_no_video_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        open_source(tmp_path / name)


def test_sound_without_pictures_and_missing_files_are_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with pytest.raises(InputError, match="no video stream"):
        open_source(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"no such video.*missing\.mp4"):
        open_source(tmp_path / "missing.mp4")


def test_a_file_cannot_make_us_open_addresses(tmp_path: Path) -> None:
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "v.m3u8").write_text(playlist)
    with pytest.raises(InputError):
        open_source(tmp_path / "v.m3u8")


def test_a_closed_video_ends(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "v.mp4", [frame.image for frame in pattern(3)]))
    source.read(5)
    source.close()
    source.close()
    with pytest.raises(EndOfStream):
        source.read(5)


def test_images_come_by_name_each_of_its_own_size_upright_and_in_rgb(tmp_path: Path) -> None:
    Image.new("L", (5, 3), 7).save(tmp_path / "b.png")
    Image.new("RGBA", (4, 9), (1, 2, 3, 0)).save(tmp_path / "a.png")
    turned = Image.new("RGB", (8, 2), (90, 90, 90))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "c.jpg", exif=turned.getexif())
    (tmp_path / "d.png").write_bytes(b"\x89PNG broken")
    Image.fromarray(np.full((2, 2), 65535, np.uint16)).save(tmp_path / "e.png")
    (tmp_path / "notes.txt").touch()
    source = open_source(tmp_path)
    found = read_all(source)
    assert [(frame.index, frame.image.shape) for frame in found] == [
        (0, (9, 4, 3)), (1, (3, 5, 3)), (2, (8, 2, 3)), (4, (2, 2, 3)),
    ]  # fmt: skip
    assert [frame.image[0, 0].tolist() for frame in found] == [[1, 2, 3], [7, 7, 7], [90, 90, 90], [255, 255, 255]]
    assert (source.live, source.corrupt) == (False, 1)  # type: ignore[attr-defined]


def test_folders_without_an_image_that_can_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image in"):
        open_source(tmp_path)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"a\.png"):
        open_source(tmp_path).read(5)
    Image.new("RGB", (3, 3)).save(tmp_path / "one.png")
    assert len(read_all(open_source(tmp_path / "one.png"))) == 1


def test_a_video_may_have_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "film.mp4", [frame.image for frame in pattern(2)]).rename("12:30 100%d.mp4")
    assert len(read_all(open_source("12:30 100%d.mp4"))) == 2
