"""What the device says about heat and clocks."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional, TypedDict


class Reading(TypedDict):
    """One look at the device's sensors; whatever it does not have is left out of the dictionaries."""

    clock_khz: Dict[str, int]
    limit_khz: Dict[str, int]
    top_khz: Dict[str, int]
    throttle_count: Dict[str, int]
    cooling: Dict[str, int]
    zones_mc: Dict[str, int]
    trips_mc: Dict[str, int]
    firmware: Optional[int]


def read_sensors(root: Path) -> Reading:
    """Clocks, their limits, throttle counters, cooling devices, temperatures and trip points below `root` (/sys)."""
    reading: Reading = {
        "clock_khz": {}, "limit_khz": {}, "top_khz": {}, "throttle_count": {}, "cooling": {}, "zones_mc": {}, "trips_mc": {}, "firmware": None,
    }  # fmt: skip
    for core in root.glob("devices/system/cpu/cpu[0-9]*"):
        for numbers, name in (
            (reading["clock_khz"], "scaling_cur_freq"),
            (reading["limit_khz"], "scaling_max_freq"),
            (reading["top_khz"], "cpuinfo_max_freq"),
        ):
            _keep(numbers, core.name, core / "cpufreq" / name)
        for name in ("core_throttle_count", "package_throttle_count"):
            _keep(reading["throttle_count"], core.name + " " + name, core / "thermal_throttle" / name)
    for device in root.glob("class/thermal/cooling_device*"):
        kind = _text(device / "type")
        if kind.startswith(("cpufreq", "Processor", "thermal-cpufreq", "cpu", "devfreq", "thermal-devfreq")):
            _keep(reading["cooling"], device.name + " " + kind, device / "cur_state")
    for zone in root.glob("class/thermal/thermal_zone*"):
        name = zone.name + " " + _text(zone / "type")
        _keep(reading["zones_mc"], name, zone / "temp")
        trips = [trip for trip in zone.glob("trip_point_*_type") if _text(trip) == "passive"]
        for trip in trips:
            _keep(reading["trips_mc"], name, trip.with_name(trip.name.replace("_type", "_temp")))
    bits = _text(root / "devices/platform/soc/soc:firmware/get_throttled")
    if bits:
        reading["firmware"] = int(bits, 16)
    return reading


def hot(reading: Reading) -> str:
    """Why the device should rest before a measurement; empty if it need not."""
    for name, state in reading["cooling"].items():
        if state > 0:
            return "%s is at state %d" % (name, state)
    for name, trip in reading["trips_mc"].items():
        if trip > 0 and reading["zones_mc"].get(name, 0) >= trip:
            return "%s is at %.0f degrees, its limit is %.0f" % (name, reading["zones_mc"][name] / 1e3, trip / 1e3)
    bits = reading["firmware"] or 0
    if bits & 0xF:
        return "the firmware says that it throttles (bits %#x)" % bits  # Raspberry Pi: vcgencmd get_throttled
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # many sensors exist and refuse to be read
        return ""


def _keep(numbers: Dict[str, int], name: str, path: Path) -> None:
    text = _text(path)
    if text.lstrip("-").isdigit():
        numbers[name] = int(text)
