"""What the doctor of cameras finds."""

from __future__ import annotations

import json
import sys

import pytest

from edgeattn.camera.doctor import Check, diagnose
from edgeattn.camera.sources.gstreamer import has_bindings, has_element


def checks() -> dict[str, Check]:
    return {check.name: check for check in diagnose().checks}


def test_what_is_there_is_found_and_what_is_missing_has_advice() -> None:
    health = diagnose()
    assert all(check.found for check in health.checks)
    assert all(bool(check.advice) != check.ok for check in health.checks)
    document = json.loads(json.dumps(health.to_json()))
    assert [entry["name"] for entry in document["checks"]] == [check.name for check in health.checks]
    assert all(check.name in str(health) for check in health.checks)


def test_protocols_are_asked_of_ffmpeg_itself() -> None:
    av = pytest.importorskip("av")
    from edgeattn.camera.doctor import _has_protocol

    assert _has_protocol(av, "tcp")
    assert not _has_protocol(av, "nosuchprotocol")


def test_without_pyav_nothing_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    health = diagnose()
    assert not health.usable
    assert "edgeattn[camera]" in health.checks[0].advice


def test_without_gstreamer_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("edgeattn.camera.sources.gstreamer.PYTHON", "/nonexistent")
    for cached in (has_element, has_bindings):
        cached.cache_clear()
    try:
        found = checks()
    finally:
        for cached in (has_element, has_bindings):
            cached.cache_clear()
    assert found["GStreamer's rtspsrc"].advice == "apt install gstreamer1.0-plugins-good"
    assert "python3-gi" in found["GStreamer for Python"].advice
