"""What `device fit` and `device validate` are asked to measure, how it is measured, and whether the machine is the device that it is said to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcompress.environment import today
from mcompress.errors import UsageError
from mcompress.export.profile import Programs
from mcompress.export.suite.running import Quality, Setting
from mcompress.export.suite.writer import Number
from mcompress.targets.connect import Connection, DeviceFacts, Pinned, pinned, threads_text
from mcompress.targets.device import HOST, Device, Unit
from mcompress.targets.device_files import shipped_device
from mcompress.targets.identity import contradiction
from mcompress.targets.speeds import Source


@dataclass(frozen=True)
class Wanted:
    """What to fit or to validate, and where to keep what is measured."""

    name: str
    """Name of the device in its file."""
    known: Device | None
    """The device as it is so far: its facts stay, the unit's speeds are replaced. None for a new one."""
    on: str
    """`host`, `adb[:SERIAL]` or `ssh:HOST`."""
    folder: Path
    unit: str = "cpu"
    threads: int | None = None
    """None: one for a fit, those of the fit for a validation."""
    cpus: tuple[int, ...] | None = None
    """None: the fastest where they are not all alike, those of the fit for a validation."""
    seconds: float = 600.0
    """For everything together."""
    share: float = 1.0
    """Of the suite."""
    programs: Programs | None = None
    """Pushed to phones; None takes them from the environment."""


@dataclass(frozen=True)
class How:
    """How files are measured on one device."""

    threads: int
    on: Pinned

    @classmethod
    def of(cls, connection: Connection, facts: DeviceFacts, threads: int, cpus: tuple[int, ...] | None) -> How:
        """Pinned to `cpus`, or to the fastest processors where they are not all alike."""
        return cls(threads, pinned(facts, connection.name, threads, cpus))

    def setting(self, facts: DeviceFacts, number: Number) -> Setting:
        """For the journal of the measurements."""
        return Setting(device=f"{facts.model}, {facts.os}, {facts.machine}", number=number, threads=self.threads, cpus=self.on.cpus)

    def source(self, text: str, facts: DeviceFacts, runtime: str, qualities: Mapping[Number, Quality], fitted_to: tuple[str, ...] = ()) -> Source:
        """The source of what was measured so, dated by its last measurement."""
        day = max((quality.days[1] for quality in qualities.values()), default=today())
        return Source(
            text=text, date=day, runtime=runtime, machine=facts.processor, threads=self.threads, cpus=self.on.cpus or (), fitted_to=fitted_to
        )

    def may_stay(self, wanted: Wanted, facts: DeviceFacts, number: Number) -> bool:
        """Whether the known device has speeds of a precision that go with what is measured now: not of another machine, nor with other threads."""
        unit = None if wanted.known is None else wanted.known.units.get(wanted.unit)
        if wanted.known is None or unit is None or number not in unit.speeds:
            return False
        sources = [wanted.known.sources[record.source] for record in unit.speeds[number].records().values()]
        machines = {source.machine for source in sources if source.machine is not None}
        settings = {(source.threads, source.cpus) for source in sources if source.threads is not None}
        return machines <= {facts.processor} and settings <= {(self.threads, self.on.cpus or ())}

    def __str__(self) -> str:
        because = f" ({self.on.because})" if self.on.because else ""
        return f"{threads_text(self.threads, self.on.cpus or ())}{because}"


def as_fitted(device: Device, unit: Unit, wanted: Wanted) -> tuple[int, tuple[int, ...] | None]:
    """Threads and processors of the fit; estimates with others would be compared with what they are not about. Raises `UsageError`."""
    cited = (device.sources[record.source] for place, record in unit.records() if place.startswith("speeds."))
    fitted = next(((source.threads, source.cpus) for source in cited if source.threads is not None), None)
    if fitted is None or fitted[0] is None:
        return wanted.threads or 1, wanted.cpus
    threads, cpus = fitted
    if wanted.threads not in (None, threads) or (wanted.cpus is not None and set(wanted.cpus) != set(cpus)):
        asked = threads_text(wanted.threads or threads, cpus if wanted.cpus is None else wanted.cpus)
        raise UsageError(
            f"{device.name} was fitted with {threads_text(threads, cpus)}, and would be measured with {asked}: leave --threads and --cpus out, or "
            "fit it as it is to be measured, with mcompress device fit"
        )
    return threads, cpus or None


def check_asked(wanted: Wanted) -> None:
    """Raise `UsageError` for a unit that is not measured, and for `host` anywhere else."""
    if wanted.unit != "cpu":
        raise UsageError(f"--unit is {wanted.unit}; files are measured on the cpu only. Leave --unit out")
    if wanted.name == HOST and wanted.on != "host":
        raise UsageError(
            f"{HOST} is the machine on which mcompress runs, and --on is {wanted.on}; measure with --on host, or give that machine a name of its "
            f"own, for example: mcompress device fit my_machine --on {wanted.on}"
        )


def check_machine(wanted: Wanted, device: Device | None, facts: DeviceFacts, *, fitting: bool) -> None:
    """What one machine measures is never said of another, whatever it is reached through. Raises `UsageError`."""
    device = device or shipped_device(wanted.name)  # a new file may have the name of a device that ships
    if device is None or (fitting and device.name == HOST):
        return
    system = system_of(facts)
    fitted_on = device.measured_on(device.units[wanted.unit]) if wanted.unit in device.units else ()
    own = f"mcompress device fit {HOST if device.name == HOST and wanted.on == 'host' else 'my_machine'} --on {wanted.on}"
    if fitted_on and facts.processor not in fitted_on:
        raise UsageError(
            f"{device.name} was measured on {', '.join(fitted_on)}, and {wanted.on} is {facts.processor}: measure on that machine, or fit this one "
            f"with: {own}"
        )
    why = None if fitted_on and shipped_device(device.name) is None else contradiction(device, facts)
    if device.os != system or why:
        raise UsageError(
            f"{device.name} is {device.title} ({device.os}), and {wanted.on} is {facts.model} ({system})"
            f"{f'; {why}' if why else ''}: measure on {device.name} itself, or give the machine a name of its own, for example: {own}"
        )


def system_of(facts: DeviceFacts) -> Literal["android", "linux", "macos"]:
    """As a device file names it."""
    lower = facts.os.lower()
    return "android" if "android" in lower else "macos" if "mac" in lower else "linux"


def qualities_text(found: Mapping[Number, Quality]) -> str:
    """How good the measurements are, per precision of the files."""
    return "; ".join(f"{number}: {quality}" for number, quality in found.items())
