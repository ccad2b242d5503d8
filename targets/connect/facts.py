"""What a device says about itself: the script that asks, and how its answer is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mcompress.errors import UsageError

MOST_THREADS = 256
"""More are a slip of the finger: no phone has a tenth of them."""
MOST_PROCESSORS = 4096
FACTS = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
say machine "$(uname -m)"; say kernel "$(uname -sr)"
if command -v getprop >/dev/null 2>&1; then
  say android "$(getprop ro.build.version.release)"; say maker "$(getprop ro.product.manufacturer)"; say phone "$(getprop ro.product.model)"
  say soc "$(getprop ro.soc.model)"; say platform "$(getprop ro.board.platform)"
fi
if [ -r /proc/device-tree/model ]; then say tree "$(tr -d '\000' < /proc/device-tree/model)"; fi
if [ -r /proc/device-tree/compatible ]; then say compatible "$(tr '\000' ' ' < /proc/device-tree/compatible)"; fi
if [ -r /etc/os-release ]; then say release "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release | tr -d '"')"; fi
if [ -r /proc/cpuinfo ]; then
  say cpu "$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | sed -n 1p)"
  say family "$(sed -n 's/^cpu family[^:]*: *//p' /proc/cpuinfo | sed -n 1p)"
  say generation "$(sed -n 's/^model[^a-z:]*: *//p' /proc/cpuinfo | sed -n 1p)"
  say hardware "$(sed -n 's/^Hardware[^:]*: *//p' /proc/cpuinfo | sed -n 1p)"
fi
if [ -r /proc/meminfo ]; then say memory_kib "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"; fi
for core in /sys/devices/system/cpu/cpu[0-9]*; do
  [ -d "$core" ] && say "core${core##*/cpu}" "$(cat "$core/cpufreq/cpuinfo_max_freq" 2>/dev/null)"
done
say allowed "$(sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status 2>/dev/null)"
say governor "$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null)"
if command -v sw_vers >/dev/null 2>&1; then
  say macos "$(sw_vers -productVersion)"; say tree "$(sysctl -n hw.model)"; say cpu "$(sysctl -n machdep.cpu.brand_string)"
  say memory_bytes "$(sysctl -n hw.memsize)"; say count "$(sysctl -n hw.ncpu)"
fi
:
"""
"""A POSIX shell script that prints what the device says about itself, one `key=value` a line; runs on Linux, Android (toybox) and macOS."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says about itself; None where it does not."""

    model: str
    """For example `Google Pixel 8`, `Raspberry Pi 5 Model B Rev 1.0`; the processor's name where there is nothing better."""
    processor: str
    """What tells machines apart that are not equally fast. On x86 the processor's name, family and model: a rented machine often has no other name
    than `AMD EPYC`; on macOS the processor's name; elsewhere `model`."""
    soc: str | None
    """For example `SM8250`, as the device says it."""
    names: tuple[tuple[str, str], ...]
    """(what, text) of everything that the device calls itself by, the surest first: `("SoC", "SM8250")`, `("platform", "kona")`."""
    os: str
    """For example `Android 14`, `Debian GNU/Linux 12 (bookworm)`."""
    machine: str
    """For example `aarch64`, `x86_64`."""
    cores_khz: tuple[int | None, ...]
    """Highest clock of each processor core, kHz; None where the system does not say."""
    memory_mb: float | None
    """Main memory, 10^6 bytes."""
    governor: str | None
    """Frequency governor of the first core, for example `schedutil`."""
    allowed: tuple[int, ...] | None = None
    """Numbers of the processors that a process there may use: a container, or whoever starts it, may leave it few. None where the system does not
    say."""


def parse_facts(text: str) -> DeviceFacts:
    """What `FACTS` printed; a line that is empty or comes twice changes nothing."""
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if value.strip() and key not in said:
            said[key] = value.strip()
    cores: list[int | None] = []
    numbered = sorted(int(key[4:]) for key in (line.partition("=")[0] for line in text.splitlines()) if re.fullmatch(r"core\d+", key))
    for number in numbered:
        clock = said.get(f"core{number}", "")
        cores.append(int(clock) if clock.isdigit() else None)
    if not cores and said.get("count", "").isdigit():
        cores = [None] * int(said["count"])
    phone = " ".join(part for part in (said.get("maker"), said.get("phone")) if part)
    kib, size = said.get("memory_kib", ""), said.get("memory_bytes", "")
    system = f"Android {said['android']}" if "android" in said else f"macOS {said['macos']}" if "macos" in said else said.get("release")
    model = phone or said.get("tree") or said.get("cpu") or said.get("hardware") or said.get("machine", "unknown")
    called = (
        ("SoC", said.get("soc")),
        ("device tree", said.get("compatible")),
        ("model", said.get("tree")),
        ("model", phone or None),
        ("platform", said.get("platform")),
        ("hardware", said.get("hardware")),
    )
    numbers = f" (family {said['family']}, model {said['generation']})" if {"cpu", "family", "generation"} <= said.keys() else ""
    return DeviceFacts(
        model=model,
        processor=said["cpu"] + numbers if numbers or {"cpu", "macos"} <= said.keys() else model,
        soc=said.get("soc") or said.get("platform") or said.get("hardware"),
        names=tuple((what, text) for what, text in called if text),
        os=system or said.get("kernel", "unknown"),
        machine=said.get("machine", "unknown"),
        cores_khz=tuple(cores),
        memory_mb=int(kib) * 1024 / 1e6 if kib.isdigit() else int(size) / 1e6 if size.isdigit() else None,
        governor=said.get("governor"),
        allowed=_numbers(said.get("allowed", "")),
    )


def parse_cpus(text: str | None) -> tuple[int, ...] | None:
    """`0,1` or `4-7` -> numbers. Raises `UsageError`."""
    if text is None:
        return None
    found = _numbers(text)
    if found is None:
        raise UsageError(f"--cpus is '{text}'; it must be numbers of processors, for example 0,1 or 4-7")
    return found


def _numbers(text: str) -> tuple[int, ...] | None:
    """`0,4-7` -> numbers of processors; None for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) >= MOST_PROCESSORS or int(last or first) < int(first):
            return None
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Pinned:
    """The processors that a measurement may use; None leaves the choice to the system."""

    cpus: tuple[int, ...] | None
    because: str = ""


def pinned(facts: DeviceFacts, device: str, threads: int, cpus: tuple[int, ...] | None) -> Pinned:
    """The processors that were asked for; the fastest of those that may be used where they are not all alike; else none. `device` is for messages.

    Raises `UsageError` for a number of threads that is none or above `MOST_THREADS`, for processors that the device does not have, and for fewer of
    them than threads.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads is {threads}; it must be at least 1 and at most {MOST_THREADS}")
    if cpus is not None:
        named = ",".join(map(str, cpus))
        absent = [number for number in cpus if number >= len(facts.cores_khz)] if facts.cores_khz else []
        if absent:
            missing, last = ",".join(map(str, absent)), len(facts.cores_khz) - 1
            raise UsageError(f"--cpus names {missing}, which {device} does not have; choose among 0-{last}, or leave --cpus out")
        if len(cpus) < threads:
            raise UsageError(
                f"--threads is {threads}, and --cpus is {named}: {threads} threads would wait for one another on {len(cpus)} "
                f"processor{'s' if len(cpus) > 1 else ''}; name at least {threads} processors, or give --threads {len(cpus)}"
            )
        return Pinned(cpus, "as asked")
    clocks = [(clock or 0, number) for number, clock in enumerate(facts.cores_khz) if facts.allowed is None or number in facts.allowed]
    if len({clock for clock, _ in clocks}) < 2 or threads > len(clocks):
        return Pinned(None)
    fastest = sorted(sorted(clocks, reverse=True)[:threads], key=lambda pair: pair[1])
    return Pinned(tuple(number for _, number in fastest), "the fastest of unequal ones")


def threads_text(threads: int, cpus: Sequence[int]) -> str:
    """`2 threads on processors 6, 7`."""
    pinned_to = f" on processor{'s' if len(cpus) > 1 else ''} {', '.join(map(str, cpus))}" if cpus else ""
    return f"{threads} thread{'s' if threads > 1 else ''}{pinned_to}"
