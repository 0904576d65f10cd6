from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn import __version__
from edgeattn.profile import machine
from edgeattn.profile.energy import meter


def test_the_environment_names_versions_and_processor() -> None:
    found = machine.environment()
    assert found["edgeattn"] == __version__
    assert found["numpy"] == np.__version__
    assert int(found["cores"]) >= 1
    assert all(isinstance(value, str) and value for value in found.values())


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_clocks_heat_and_load_are_read(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 1_500_000,
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 2_500_000,
            "sys/class/thermal/thermal_zone0/temp": 41_000,
            "sys/class/thermal/thermal_zone1/temp": 63_500,
            "proc/loadavg": "0.25 0.1 0.0 1/99 7",
        },
    )
    assert machine.conditions(root=root) == {"cpu_mhz": "2000", "temperature_c": "64", "load": "0.25"}


def test_a_machine_that_tells_nothing_has_no_conditions_and_no_meter(tmp_path: Path) -> None:
    assert machine.conditions(root=tmp_path) == {}
    assert meter(gpu=False, root=tmp_path) is None


def test_the_gpus_own_words_are_read_where_there_is_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$1" in *clocks*) echo "1410, 9501, 54, 71.25, P0";; *) echo "71.25";; esac\n',
        encoding="utf-8",
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = machine.conditions("tensorrt", tmp_path)
    assert found["gpu_clocks_sm"] == "1410"
    assert found["gpu_power_draw"] == "71.25"
    power = meter(gpu=True, root=tmp_path)
    assert power is not None
    assert power.between(power.read(), power.read(), 2.0) == pytest.approx(142.5)


def test_tegrastats_is_stopped_after_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text("#!/bin/sh\necho 'RAM 2411/7620MB GR3D_FREQ 87%'\nexec sleep 60\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("shutil.which", lambda name: str(tool) if name == "tegrastats" else None)
    assert machine.conditions("tensorrt", tmp_path) == {"tegrastats": "RAM 2411/7620MB GR3D_FREQ 87%"}


def test_the_processors_counter_may_wrap(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "sys/class/powercap/intel-rapl:0/energy_uj": 9_000_000,
            "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 10_000_000,
            "sys/class/powercap/intel-rapl:0:0/energy_uj": 5_000_000,
        },
    )
    power = meter(gpu=False, root=root)
    assert power is not None
    before = power.read()
    assert before == 9.0  # the core's part is within the package's
    write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": 500_000})
    assert power.between(before, power.read(), 1.0) == pytest.approx(1.5)


@pytest.mark.parametrize("total", [True, False])
def test_a_jetsons_rails_are_volts_times_amperes(total: bool, tmp_path: Path) -> None:
    rails = ("VDD_IN" if total else "VDD_SOC", "VDD_CPU_GPU_CV")
    files: dict[str, object] = {"sys/class/hwmon/hwmon3/name": "ina3221", "sys/class/hwmon/hwmon2/name": "thermal"}
    for number, (label, millivolts, milliamperes) in enumerate(zip(rails, (5000, 5000), (1200, 400), strict=True), 1):
        files[f"sys/class/hwmon/hwmon3/in{number}_label"] = label
        files[f"sys/class/hwmon/hwmon3/in{number}_input"] = millivolts
        files[f"sys/class/hwmon/hwmon3/curr{number}_input"] = milliamperes
    power = meter(gpu=True, root=write(tmp_path, files))
    assert power is not None
    assert power.read() == pytest.approx(6.0 if total else 8.0)
    assert power.between(6.0, 8.0, 0.5) == pytest.approx(3.5)


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    root = write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "secret"})
    assert meter(gpu=False, root=root) is None
