"""An RTSP server of a test pattern that tells the time as `edgeattn.camera.sources.pattern` draws it: for bench_camera.

It runs in the system's Python, which has GStreamer's bindings and may lack numpy:

    /usr/bin/python3 _rtsp_server.py PORT WIDTH HEIGHT FPS

Prints a line when it listens. WIDTH is a multiple of 32.
"""

import itertools
import os
import sys
import threading
import time
import zlib

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    "( appsrc name=pictures is-live=true do-timestamp=true format=time "
    "caps=video/x-raw,format=RGB,width={width},height={height},framerate={fps}/1 "
    "! videoconvert ! video/x-raw,format=I420 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} bitrate=4000 "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )"
)


def clock(width, height):
    """The upper eighth of a picture: 32 by 2 cells, 40 bits of milliseconds and 24 of their CRC."""
    stamp = int(time.monotonic() * 1000).to_bytes(5, "big")
    bits = f"{int.from_bytes(stamp + (zlib.crc32(stamp) & 0xFFFFFF).to_bytes(3, 'big'), 'big'):064b}"
    lines = [
        b"".join((b"\xff" if bit == "1" else b"\0") * (3 * width // 32) for bit in bits[at : at + 32]) for at in (0, 32)
    ]
    rows = height // 8
    return b"".join(lines[row * 2 // rows] for row in range(rows))


def play(source, gone, width, height, fps):
    """Push pictures, each when it is due, until the viewer has left."""
    ramp = bytes(column * 256 // width for column in range(width) for _ in range(3)) * 2
    began = time.monotonic()
    for index in itertools.count():
        time.sleep(max(0, began + index / fps - time.monotonic()))
        if gone.is_set():
            return
        if source.get_state(0).state == Gst.State.PLAYING:  # before, it has no clock to stamp a picture with
            left = 3 * (4 * index % width)
            picture = clock(width, height) + ramp[left : left + 3 * width] * (height - height // 8)
            source.emit("push-buffer", Gst.Buffer.new_wrapped(picture))


def main():
    """Serve until killed, or until whoever started it has gone."""
    port, *size = sys.argv[1:]
    width, height, fps = map(int, size)
    Gst.init(None)
    server, factory = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory()
    server.set_service(port)
    server.set_address("127.0.0.1")
    factory.set_launch(PIPELINE.format(width=width, height=height, fps=fps))

    def configure(_, media):
        source = media.get_element().get_by_name_recurse_up("pictures")
        left = threading.Event()
        media.connect("unprepared", lambda _: left.set())
        threading.Thread(target=play, args=(source, left, width, height, fps), daemon=True).start()

    factory.connect("media-configure", configure)
    server.get_mount_points().add_factory("/test", factory)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    print("listening", flush=True)
    parent = os.getppid()
    GLib.timeout_add_seconds(1, lambda: os.getppid() == parent or os._exit(0))
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
