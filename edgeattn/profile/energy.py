"""What a board says of its power: the energy that its processor counts, or what its rails or its GPU draw."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "meter"]

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "SYS5V")  # of Jetson boards: what all of the module draws


@dataclass(frozen=True)
class Meter:
    """A way to read energy: `watts` now, or `joules` so far, which start again at `wraps`."""

    source: str
    watts: Callable[[], float] | None = None
    joules: Callable[[], float] | None = None
    wraps: float = 0.0

    def read(self) -> float:
        """The value that two readings of make an energy."""
        read = self.joules or self.watts
        return read() if read else 0.0

    def between(self, before: float, after: float, seconds: float) -> float:
        """Joules between two readings."""
        if self.joules is None:
            return (before + after) / 2 * seconds
        return after - before + (self.wraps if after < before else 0.0)


def meter(gpu: bool, root: Path = Path("/")) -> Meter | None:
    """The meter that fits best: the module's rails on a Jetson, else the GPU's where it works, else the processor's.

    None where the board has none, or does not let this user read it.
    """
    candidates = (_rails, _nvidia_smi if gpu else _rapl)
    for candidate in candidates:
        found = candidate(root)
        try:
            if found is not None and found.read() >= 0:
                return found
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
    return None


def _rapl(root: Path) -> Meter | None:
    packages = sorted(root.glob("sys/class/powercap/intel-rapl:[0-9]"))
    if not packages:
        return None

    def joules() -> float:
        return sum(int((package / "energy_uj").read_text()) for package in packages) / 1e6

    try:
        wraps = int((packages[0] / "max_energy_range_uj").read_text()) / 1e6
    except (OSError, ValueError):
        wraps = 0.0
    return Meter("RAPL, the processor's packages", joules=joules, wraps=wraps)


def _rails(root: Path) -> Meter | None:
    """INA sensors: millivolts and milliamperes of each channel, or microwatts."""
    rails: dict[str, Callable[[], float]] = {}
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if not _text(folder / "name").startswith("ina"):
            continue
        for path in sorted(folder.glob("power*_input")):
            rails[str(path)] = lambda path=path: int(path.read_text()) / 1e6  # type: ignore[misc]
        for volts in sorted(folder.glob("in[0-9]_input")):
            number = volts.name[2]
            amperes = folder / f"curr{number}_input"
            if amperes.exists():
                label = _text(folder / f"in{number}_label") or str(volts)
                rails[label] = lambda v=volts, a=amperes: int(v.read_text()) * int(a.read_text()) / 1e6  # type: ignore[misc]
    total = next((rails[name] for name in TOTAL_RAILS if name in rails), None)
    if total is not None:
        return Meter("INA3221, the whole module", watts=total)
    return Meter("INA sensors, all rails", watts=lambda: sum(read() for read in rails.values())) if rails else None


def _nvidia_smi(_: Path) -> Meter | None:
    if shutil.which("nvidia-smi") is None:
        return None

    def watts() -> float:
        query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0"]
        return float(subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout)

    return Meter("nvidia-smi, the GPU", watts=watts)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
