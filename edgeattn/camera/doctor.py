"""Which sources this machine can open, and what to do about the rest."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeattn.camera.sources.gstreamer import has_bindings, has_element
from edgeattn.camera.sources.libav import need_av
from edgeattn.errors import MissingDependencyError
from edgeattn.reports.text import table

_ARGUS = Path("/tmp/argus_socket")
_TEGRA = Path("/etc/nv_tegra_release")
_JETSON = "nvidia-l4t-gstreamer"
# Element -> the Debian package that brings it, and the sources that need it.
_ELEMENTS = {
    "fdsink": ("gstreamer1.0-tools", "csi"),
    "videoconvert": ("gstreamer1.0-plugins-base", "csi"),
    "nvarguscamerasrc": (_JETSON, "csi"),
    "nvvidconv": (_JETSON, "csi"),
    "nvv4l2decoder": (_JETSON, "hardware decoding"),
    "v4l2src": ("gstreamer1.0-plugins-good", "hardware decoding"),
    "rtspsrc": ("gstreamer1.0-plugins-good", "rtsp, a frame earlier"),
    "h264parse": ("gstreamer1.0-plugins-bad", "rtsp, a frame earlier"),
    "avdec_h264": ("gstreamer1.0-libav", "rtsp, a frame earlier"),
}
_CLOSED_PORT = "127.0.0.1:1"


@dataclass(frozen=True)
class Check:
    """One thing that sources need: whether it is there, what was found, and what to do where it is not."""

    name: str
    needed_for: str
    ok: bool
    found: str
    advice: str = ""


@dataclass(frozen=True)
class CameraHealth:
    """What `diagnose` found."""

    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """Whether videos and streams can be read, for which PyAV is enough."""
        return self.checks[0].ok

    def __str__(self) -> str:
        rows = [(check.name, check.needed_for, check.found, check.advice) for check in self.checks]
        return table(rows, header=("what", "for", "found", "what to do"))

    def to_json(self) -> dict[str, Any]:
        """Plain values under the field names."""
        return {"usable": self.usable, "checks": [asdict(check) for check in self.checks]}


def diagnose() -> CameraHealth:
    """Look at everything that sources need; an obstacle is a line in the answer, never an exception."""
    return CameraHealth((*_libav(), *_gstreamer(), _argus(), *_devices()))


def _libav() -> list[Check]:
    try:
        av = need_av()
    except MissingDependencyError:
        return [Check("PyAV", "files, rtsp, v4l2, http", False, "not installed", "pip install 'edgeattn[camera]'")]
    checks = [Check("PyAV", "files, rtsp, v4l2, http", True, str(av.__version__))]
    advice = "install PyAV's own wheel (pip install --force-reinstall av), whose FFmpeg has it"
    for name, needed_for in (("rtsp", "rtsp"), ("video4linux2,v4l2", "v4l2")):
        there = name in av.formats_available
        checks.append(Check(f"FFmpeg's {name}", needed_for, there, *(["there"] if there else ["missing", advice])))
    for name, needed_for in (("tcp", "rtsp"), ("udp", "rtsp over udp"), ("http", "http"), ("tls", "rtsps, https")):
        there = _has_protocol(av, name)
        checks.append(Check(f"FFmpeg's {name}", needed_for, there, *(["there"] if there else ["missing", advice])))
    return checks


def _has_protocol(av: Any, name: str) -> bool:
    """Whether FFmpeg speaks a protocol. PyAV lists none, but an unknown one fails otherwise than a closed port."""
    try:
        av.open(f"{name}://{_CLOSED_PORT}?timeout=1", format="rawvideo", timeout=1).close()
    except av.error.ProtocolNotFoundError:
        return False
    except (av.FFmpegError, OSError, ValueError):
        pass
    return True


def _gstreamer() -> list[Check]:
    checks = []
    for name, (package, needed_for) in _ELEMENTS.items():
        there = has_element(name)
        advice = "comes with JetPack, and in its containers" if package == _JETSON else f"apt install {package}"
        if package == _JETSON and not _TEGRA.exists():
            advice = "only on a Jetson"
        checks.append(Check(f"GStreamer's {name}", needed_for, there, *(["there"] if there else ["missing", advice])))
    there = has_bindings()
    packages = "apt install python3-gi gir1.2-gstreamer-1.0"
    found = ["there"] if there else ["missing", packages]
    return [*checks, Check("GStreamer for Python", "rtsp with a password, a frame earlier", there, *found)]


def _argus() -> Check:
    if _ARGUS.exists():
        return Check("argus daemon", "csi", True, str(_ARGUS))
    advice = "systemctl restart nvargus-daemon; in a container, mount /tmp/argus_socket into it"
    return Check("argus daemon", "csi", False, "no socket", advice if _TEGRA.exists() else "only on a Jetson")


def _devices() -> list[Check]:
    devices = sorted(Path("/dev").glob("video*"))
    if not devices:
        advice = "plug a camera in; in a container, add --device /dev/video0"
        return [Check("/dev/video*", "v4l2", False, "no device", advice)]
    checks = []
    for device in devices:
        allowed = os.access(device, os.R_OK | os.W_OK)
        advice = 'usermod -aG video "$USER", and log in again'
        found = ["there"] if allowed else ["not allowed", advice]
        checks.append(Check(str(device), "v4l2", allowed, *found))
    return checks
