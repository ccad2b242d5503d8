"""A stand-in machine: clocks that jump when told to, and a /sys whose sensors say what they are told. Neither can be had for real in a test."""

from __future__ import annotations

from pathlib import Path

from mcompress.export.agent.protocol import Rules
from mcompress.export.agent.stopwatch import Clocks

MS = 1_000_000


class FakeMachine:
    """Clocks that move when a query runs, and as told between queries."""

    def __init__(self) -> None:
        self.monotonic_ns = self.wall_ns = self.processor_ns = 10**12
        self.clocks = Clocks(lambda: self.monotonic_ns, lambda: self.wall_ns, lambda: self.processor_ns)

    def work(self, ns: int, *, wall_ns: int | None = None, processor_ns: int | None = None) -> None:
        self.monotonic_ns += ns
        self.wall_ns += ns if wall_ns is None else wall_ns
        self.processor_ns += ns if processor_ns is None else processor_ns


def rules(**changed: float) -> Rules:
    """Rules for the agent: 20 queries or a second."""
    base = {"min_queries": 20, "min_seconds": 1.0, "max_seconds": 10.0, "warm_up_s": 0.01, "cool_down_s": 0.0, **changed}
    return Rules(**base)  # type: ignore[typeddict-item]


def sensors(root: Path, *, temp: int = 40_000, state: int = 0, limit: int = 2_000_000, count: int = 3) -> Path:
    """A /sys with one core, one zone and one cooling device."""
    files = {
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": limit,
        "devices/system/cpu/cpu0/cpufreq/scaling_max_freq": limit,
        "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": 2_000_000,
        "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": count,
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": temp,
        "class/thermal/thermal_zone0/trip_point_0_type": "passive",
        "class/thermal/thermal_zone0/trip_point_0_temp": 85_000,
        "class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "class/thermal/cooling_device0/cur_state": state,
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n", encoding="ascii")
    return root
