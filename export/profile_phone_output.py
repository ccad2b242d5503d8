"""What the programs that time files on a phone print, and what its sensors say: text to figures.

`benchmark_model` says the median and the 95th percentile, and older ones only the mean; what stands in for a figure is in `Timed.warnings`.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

from mcompress.export.profile_jobs import statistics
from mcompress.export.profile_throttle import Reading

COUNT_LINE = re.compile(r"^.*?\bcount=(?P<count>\d+)(?P<rest>[^\n]*)$", re.MULTILINE)
FIGURE = re.compile(r"\b(first|curr|min|max|avg|std|p5|median|p95)=([0-9.eE+-]+)")
INIT = re.compile(r"Inference timings in us: Init: ([0-9.eE+-]+)")
OVERALL = re.compile(r"Overall peak memory footprint \(MB\) via periodic monitoring: ([0-9.eE+-]+)")
ITERATION = re.compile(r"Iteration \d+ of \d+: ([0-9.]+) ms")
EXECUTED = re.compile(r"Model executed successfully (\d+) time\(s\) in ([0-9.]+) ms")
LOADED = re.compile(r"Model loaded in ([0-9.]+) ms")
SENSORS = r"""
show() { for path in "$@"; do [ -r "$path" ] && { read -r value < "$path"; } 2>/dev/null && echo "$path=$value"; done; }
show /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq
show /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq
show /sys/class/thermal/cooling_device*/type /sys/class/thermal/cooling_device*/cur_state
show /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp
show /sys/class/thermal/thermal_zone*/trip_point_*_type /sys/class/thermal/thermal_zone*/trip_point_*_temp
dumpsys thermalservice 2>/dev/null | sed -n 's/^Thermal Status: /status=/p'
:
"""
"""No process per file: a phone has hundreds of sensors, and starting `cat` for each takes seconds."""
STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's PowerManager.THERMAL_STATUS_*, as `dumpsys thermalservice` numbers them; from light on, the system may slow the phone down."""


@dataclass(frozen=True)
class Timed:
    """What a program said. Milliseconds."""

    p50: float
    p90: float
    mean: float
    shortest: float
    """Below 0 where the program's clock was set back."""
    cv: float
    n: int
    load: float
    samples: tuple[float, ...]
    peak_memory_mb: float | None
    warnings: tuple[str, ...]


def parse_benchmark(said: str) -> Timed | None:
    """The output of `benchmark_model`; the last `count=` line is the measurement, the first one the warm-up. None if there is no such line."""
    lines = [found for found in COUNT_LINE.finditer(said) if "avg=" in found["rest"] or "curr=" in found["rest"]]
    before_operators = said.find("Operator-wise Profiling Info")
    lines = [found for found in lines if before_operators < 0 or found.start() < before_operators]
    if not lines:
        return None
    figures = {name: float(value) / 1e3 for name, value in FIGURE.findall(lines[-1]["rest"])}
    count = int(lines[-1]["count"])
    mean = figures.get("avg", figures.get("curr", 0.0))  # when all are alike, it prints the last alone
    if count < 1 or mean <= 0:
        return None
    warnings = []
    p50, p90 = figures.get("median"), figures.get("p95")
    if p50 is None:
        p50 = mean
        warnings.append("p50 is the mean: this benchmark_model says no percentiles")
    if p90 is None:
        p90 = max(figures.get("max", mean), p50)
        warnings.append("p90 is the largest time: this benchmark_model says no percentiles")
    else:
        warnings.append("p90 is the 95th percentile: benchmark_model does not say the 90th")
    init, overall = INIT.search(said), OVERALL.search(said)
    load = float(init[1]) / 1e3 if init else 0.0
    memory = float(overall[1]) * (1 << 20) / 1e6 if overall else None
    return Timed(p50, p90, mean, figures.get("min", mean), figures.get("std", 0.0) / mean, count, load, (), memory, tuple(warnings))


def parse_runner(said: str, warm_up_s: float) -> Timed | None:
    """The output of `executor_runner`: every iteration (since ExecuTorch 1.4), or the sum alone. The first `warm_up_s` of iterations do not count."""
    loaded = LOADED.search(said)
    load = float(loaded[1]) if loaded else 0.0
    times = [float(text) for text in ITERATION.findall(said)]
    if times:
        passed, first = 0.0, 0
        while first < len(times) - 1 and passed < warm_up_s * 1e3:
            passed += times[first]
            first += 1
        p50, p90, mean, cv = statistics(times[first:])
        return Timed(p50, p90, mean, min(times[first:]), cv, len(times) - first, load, tuple(times[first:]), None, ())
    total = EXECUTED.search(said)
    if not total or int(total[1]) < 1:
        return None
    mean = float(total[2]) / int(total[1])
    unsaid = "p50 and p90 are the mean, warm-up included: this executor_runner says the sum alone"
    return Timed(mean, mean, mean, mean, 0.0, int(total[1]), load, (), None, (unsaid,))


def parse_operators(text: str) -> list[tuple[str, str, float]]:
    """(name, kind, mean ms) of each operator in `benchmark_model`'s profile, as CSV or as the table on its standard output.

    Only the section of the regular runs counts, in run order; the initialisation's own operators do not.
    """
    start = text.find("Operator-wise Profiling Info")
    section = text[max(start, 0) :]
    order = section.find("Run Order")
    section = section[max(order, 0) :]
    end = re.search(r"(Top by Computation Time|Summary by node type|Number of nodes executed)", section)
    rows: list[tuple[str, str, float]] = []
    columns: dict[str, int] = {}
    for line in (section[: end.start()] if end else section).splitlines():
        cells = [cell.strip() for cell in (next(csv.reader(io.StringIO(line)), []) if "," in line and "\t" not in line else line.split("\t"))]
        cells = [cell for cell in cells if cell] if "\t" in line else cells
        names = [cell.strip("[]").lower() for cell in cells]
        if "avg_ms" in names or "avg ms" in names:
            columns = {"kind": names.index("node type"), "ms": names.index("avg_ms" if "avg_ms" in names else "avg ms"), "name": names.index("name")}
            continue
        if columns and len(cells) > max(columns.values()):
            try:
                rows.append((cells[columns["name"]], cells[columns["kind"]], float(cells[columns["ms"]])))
            except ValueError:
                continue
    return rows


def parse_sensors(text: str) -> tuple[Reading, int]:
    """Lines `path=value` -> a reading; CPU zones and cooling devices of processors only, because a phone has a hundred others."""
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    reading = Reading(clock_khz={}, limit_khz={}, top_khz={}, throttle_count={}, cooling={}, zones_mc={}, trips_mc={})
    files = {"scaling_cur_freq": reading.clock_khz, "scaling_max_freq": reading.limit_khz, "cpuinfo_max_freq": reading.top_khz}
    for path, value in said.items():
        parts = path.split("/")
        number = value.strip()
        if not number.lstrip("-").isdigit() or len(parts) < 3:
            continue
        kind = said.get("/".join([*parts[:-1], "type"]), "").lower()
        if parts[-1] in files:
            files[parts[-1]][parts[-3]] = int(number)
        elif parts[-1] == "cur_state" and ("cpu" in kind or "processor" in kind):
            reading.cooling[f"{parts[-2]} {kind}"] = int(number)
        elif parts[-1] == "temp" and "cpu" in kind:
            reading.zones_mc[f"{parts[-2]} {kind}"] = int(number)
        elif parts[-1].startswith("trip_point_") and "cpu" in kind and said.get(path.replace("_temp", "_type")) == "passive":
            reading.trips_mc[f"{parts[-2]} {kind}"] = int(number)
    status = said.get("status", "").strip()
    return reading, int(status) if status.isdigit() else -1


def hot(reading: Reading, status: int) -> str:
    """Why a phone should rest before a measurement; empty if it need not."""
    if 0 < status < len(STATUS):
        return f"Android's thermal status is {STATUS[status]}"
    for name, trip in reading.trips_mc.items():
        if 0 < trip <= reading.zones_mc.get(name, 0):
            return f"{name} is at {reading.zones_mc[name] / 1e3:.0f} degrees, its limit is {trip / 1e3:.0f}"
    return ""
