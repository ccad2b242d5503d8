"""How far a device's estimates are off, as `mcompress device validate` tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from mcompress.errors import UsageError
from mcompress.targets.connect.host import this_machine
from mcompress.targets.device import HOST, Device, Unit
from mcompress.targets.device_files import load_device
from mcompress.targets.validation import Check, Validation


@dataclass(frozen=True)
class UnitValidation:
    """The checks of one precision of file on one unit."""

    device: Device
    unit: Unit
    precision: str
    checked: Validation

    @property
    def source(self) -> str:
        """Who measured, with which runtime, when."""
        source = self.device.sources[self.checked.source]
        return f"{source.text} ({source.runtime}, {source.date})"

    @property
    def elsewhere(self) -> str | None:
        """Set where the constants are those of another machine than this."""
        return self.device.elsewhere(self.unit)

    @property
    def checks(self) -> list[Check]:
        """The networks, the largest error last."""
        return sorted(self.checked.checks, key=lambda check: abs(check.error))

    def as_json(self) -> dict[str, JsonValue]:
        """Everything that is known, errors as fractions of the measured latency."""
        return {
            "device": self.device.name,
            "unit": self.unit.name,
            "precision": self.precision,
            "how": self.checked.how,
            "source": self.source,
            "elsewhere": self.elsewhere,
            "summary": self.checked.summary.model_dump(mode="json"),
            "checks": [{**check.model_dump(mode="json"), "error": check.error} for check in self.checks],
        }

    def lines(self) -> list[str]:
        """The same for people."""
        summary = self.checked.summary
        shares = ", ".join(
            f"{name}: {_percent(share)}"
            for name, share in (("within 10 %", summary.within_10), ("20 %", summary.within_20), ("25 %", summary.within_25))
        )
        rank = "" if summary.rank_correlation is None else f", rank correlation {summary.rank_correlation:.3f}"
        errors = f"median {_percent(summary.median)}, mean {_percent(summary.mean)}, largest {_percent(summary.largest)}"
        return [
            f"{self.device.name} {self.unit.name} {self.precision}: {self.checked.how}, {summary.networks} networks, {self.source}",
            *([f"  {self.elsewhere}"] if self.elsewhere else ()),
            f"  error: {errors}; {shares} of them{rank}",
            *(f"  {c.network:<36} {c.measured_ms:>10.3f} ms {c.estimated_ms:>10.3f} ms {c.error:>+8.1%}" for c in self.checks),
        ]


def unit_validations(name: str, unit: str | None) -> tuple[UnitValidation, ...]:
    """One per unit and precision of file that has been validated. Raises `UsageError` where nothing has."""
    device = load_device(name)
    units = [device.unit(unit)] if unit else list(device.units.values())
    found = tuple(UnitValidation(device, one, precision, checked) for one in units for precision, checked in one.validation.items())
    if not found:
        place = place_of(device, units)
        which = f"{device.name} {unit}" if unit else device.name
        raise UsageError(f"{which} has not been validated; measure on it with: mcompress device validate {name} --on {place}")
    return found


def place_of(device: Device, units: Sequence[Unit]) -> str:
    """Through what the device is reached, as far as it can be known."""
    if device.name == HOST or this_machine() in {machine for one in units for machine in device.measured_on(one)}:
        return "host"
    return "adb" if device.os == "android" else "ssh:HOST"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
