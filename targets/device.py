"""Devices: compute units, what they can run, and how fast they are. One YAML file per device, in `targets/devices/` or anywhere else."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mcompress.errors import TargetError
from mcompress.targets import document as yaml_document
from mcompress.targets.operators import Kind, Runtime
from mcompress.targets.problems import describe, show
from mcompress.targets.speeds import (
    BYTES,
    KINDS,
    MULTIPLYING,
    Boundary,
    Facts,
    FilePrecision,
    Name,
    Positive,
    PrecisionName,
    Record,
    Source,
    Speeds,
)
from mcompress.targets.validation import Validation

__all__ = [
    "BYTES", "MULTIPLYING", "Device", "DeviceHead", "FilePrecision", "PrecisionName", "Unit", "device_heads", "list_devices", "load_device",
    "parse_device",
]  # fmt: skip


_FOLDER = resources.files("mcompress.targets") / "devices"


HOST = "host"
"""The device that is the machine on which mcompress runs, whichever that is."""
DEVICE_SUFFIXES = (".yaml", ".yml")
"""By which the name of a file is told from the name of a device."""


def _all_kinds(value: object) -> object:
    if isinstance(value, str) and value != "all":
        raise ValueError(f"it is {value!r}; it must be a list of kinds of operators, or all")
    return KINDS if value == "all" else value


Kinds = Annotated[tuple[Kind, ...], BeforeValidator(_all_kinds)]


class Unit(Facts):
    """One compute unit: what it can run, at which precision it really computes, and its speed."""

    name: str = ""
    """The key under `units`; it need not be repeated."""
    title: str
    runs: dict[FilePrecision, Kinds] = Field(min_length=1)
    """Precision of the file -> kinds of operators that the unit takes (`all` for every kind); the others go to `fallback_unit`."""
    computes_in: dict[FilePrecision, PrecisionName]
    """Precision of the file -> precision of arithmetic and memory on the unit: a GPU runs INT8 files in FP16."""
    capability: Record | None = None
    """How it is known what the unit runs and computes in; None where the file does not say."""
    fallback_unit: Name | None = None
    fuses: Runtime | None = None
    """The runtime whose operators compute only some activations (`targets.operators.FUSES`); None for one that computes all of them."""
    boundary: Boundary
    speeds: dict[PrecisionName, Speeds] = Field(min_length=1)
    """By the precision that is computed in."""
    validation: dict[FilePrecision, Validation] = Field(default_factory=dict)
    """By the precision of the file."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for file, kinds in self.runs.items():
            if file not in self.computes_in:
                raise ValueError(f"it runs {file} files, but computes_in does not say in which precision")
            computed = self.computes_in[file]
            if computed not in self.speeds:
                raise ValueError(f"it computes {file} files in {computed}, but speeds has only {', '.join(self.speeds)}")
            missing = [kind for kind in kinds if kind in MULTIPLYING and self.speeds[computed].speed(kind) is None]
            if missing:
                raise ValueError(f"it runs {file} files, but speeds.{computed}.operators has no {', '.join(missing)}")
        return self

    @property
    def channel_alignment(self) -> int:
        """The number of channels that every precision of the unit processes without waste: the largest group."""
        return max(speeds.alignment.outputs for speeds in self.speeds.values())

    def takes(self, kind: Kind, precision: FilePrecision) -> bool:
        """Whether an operator of this kind runs here in a file of this precision."""
        return kind in self.runs.get(precision, ())

    def band(self, precision: FilePrecision) -> str:
        """How far estimates may be off, in words."""
        if precision in self.validation:
            return self.validation[precision].band
        same = [file for file in self.validation if self.computes_in.get(file) == self.computes_in.get(precision)]
        return f"{self.validation[same[0]].band}, with {same[0]} files that the unit computes in the same way" if same else "not validated"

    def records(self) -> Iterator[tuple[str, Record]]:
        """Every record of constants with its place below the unit."""
        yield "boundary", self.boundary
        if self.capability is not None:
            yield "capability", self.capability
        for precision, speeds in self.speeds.items():
            yield from ((f"speeds.{precision}.{place}", record) for place, record in speeds.records().items())


class MemoryLimit(Record):
    """What one app may use, 10^6 bytes."""

    limit_mb: Positive


class Device(Facts):
    """A phone, a board or a computer."""

    name: Name
    title: str
    aliases: tuple[Name, ...] = ()
    os: Literal["android", "ios", "linux", "macos"]
    sources: dict[Name, Source] = Field(min_length=1)
    memory: MemoryLimit
    preferred_unit: Name
    units: dict[Name, Unit] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _unit_names(cls, value: object) -> object:
        """A unit is named by its key."""
        if isinstance(value, dict) and isinstance(value.get("units"), dict):
            units = {key: {"name": key} | unit if isinstance(unit, dict) else unit for key, unit in value["units"].items()}
            return value | {"units": units}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.preferred_unit not in self.units:
            raise ValueError(f"preferred_unit is {self.preferred_unit!r}; units are {', '.join(self.units)}")
        for key, unit in self.units.items():
            if unit.name != key:
                raise ValueError(f"units.{key} has the name {unit.name!r}")
            if unit.fallback_unit is not None and (unit.fallback_unit not in self.units or unit.fallback_unit == key):
                others = ", ".join(name for name in self.units if name != key)
                raise ValueError(f"units.{key}.fallback_unit is {unit.fallback_unit!r}; other units are {others}")
        for key in self.units:
            names = list(self._fallbacks(key))
            if names[-1] in names[:-1]:
                circle = " -> ".join(names[names.index(names[-1]) :])
                raise ValueError(f"units.{key}.fallback_unit leads in a circle, {circle}; leave it out of the last unit")
        for place, source in self.cited():
            if source not in self.sources:
                raise ValueError(f"{place}.source is {source!r}, which is not in sources; these are {', '.join(self.sources)}")
        return self

    def unit(self, name: str | None = None) -> Unit:
        """The unit `name`, or the preferred one. Raises `TargetError` naming the units that exist."""
        wanted = self.preferred_unit if name is None else name
        if wanted not in self.units:
            raise TargetError([unknown_name("unit", wanted, tuple(self.units), f"of device {self.name}")])
        return self.units[wanted]

    def chain(self, name: str | None = None) -> tuple[Unit, ...]:
        """The unit `name`, or the preferred one, and behind it the units that it falls back on, in their order; raises as `unit` does."""
        return tuple(self.units[found] for found in self._fallbacks(self.unit(name).name))

    def _fallbacks(self, name: str) -> Iterator[str]:
        """Names along the chain; it ends with one that was there before where the chain is a circle."""
        seen: set[str] = set()
        following: str | None = name
        while following is not None:
            yield following
            if following in seen:
                return
            seen.add(following)
            following = self.units[following].fallback_unit

    def measured_on(self, unit: Unit) -> tuple[str, ...]:
        """The machines that decided the unit's constants and its band, where mcompress measured them."""
        cited = [record.source for _, record in unit.records()] + [found.source for found in unit.validation.values()]
        machines = (self.sources[source].machine for source in dict.fromkeys(cited))
        return tuple(dict.fromkeys(machine for machine in machines if machine is not None))

    def elsewhere(self, unit: Unit) -> str | None:
        """Why the unit's constants and their band do not hold on the machine here; None where they do.

        Only `host` means a different machine wherever mcompress runs; every other device stays what it is.
        """
        measured_on = self.measured_on(unit) if self.name == HOST else ()
        if not measured_on:
            return None
        from mcompress.targets.connect.host import this_machine

        others = [machine for machine in measured_on if machine != this_machine()]
        if not others:
            return None
        return f"not validated on this processor (fitted on {', '.join(others)}); run mcompress device fit {HOST} --on host, and use its {HOST}.yaml"

    def cited(self) -> Iterator[tuple[str, str]]:
        """Place in the file -> the key of `sources` that it names."""
        yield "memory", self.memory.source
        for key, unit in self.units.items():
            yield from ((f"units.{key}.{place}", record.source) for place, record in unit.records())
            yield from ((f"units.{key}.validation.{precision}", found.source) for precision, found in unit.validation.items())


@dataclass(frozen=True)
class DeviceHead:
    """What the beginning of a device file says; the rest takes a hundred times as long to read."""

    name: str
    title: str
    aliases: tuple[str, ...]
    units: tuple[str, ...]
    file: str


def list_devices() -> tuple[str, ...]:
    """Names of all devices that ship, sorted."""
    return tuple(sorted(device_heads()))


def load_device(name: str) -> Device:
    """The device with this name or alias, in any case, or of a file `*.yaml`. Raises `TargetError`, with near-miss names."""
    if name.endswith(DEVICE_SUFFIXES):
        return _from_file(Path(name))
    found = shipped_device(name)
    if found is None:
        raise TargetError([unknown_device(name)])
    return found


def shipped_device(name: str) -> Device | None:
    """The device that ships under this name or alias, in any case; None if there is none."""
    head = _by_any_name().get(name.strip().lower())
    return None if head is None else _shipped(head.file)


def unknown_device(name: str) -> str:
    """What to say about a name that no device has, with the nearest one."""
    return unknown_name("device", name, tuple(_by_any_name()), "(mcompress list devices, or a file *.yaml)", show=list_devices())


def unknown_name(what: str, seen: str, known: tuple[str, ...], where: str = "", show: tuple[str, ...] | None = None) -> str:
    """`device 'sm825' is not known (...); known are ...; did you mean 'sm8250'?`"""
    near = difflib.get_close_matches(seen.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    hint = f"; did you mean {next(n for n in known if n.lower() == near[0])!r}?" if near else ""
    return f"{what} {seen!r} is not known {where}".rstrip() + f"; known are {', '.join(show or known)}{hint}"


def parse_device(text: str, file: str) -> Device:
    """The device that a YAML text describes; `file` is its name in messages. Raises `TargetError` with every problem and its line."""
    document = yaml_document.parse(text, file, "device")
    if not isinstance(document.data, dict):
        document.problems = document.problems or [f"{file}:1: the file holds {show(document.data)}; a device is a mapping with name, units, sources"]
        raise TargetError(document.problems)
    try:
        device = Device.model_validate(document.data)
    except ValidationError as error:
        raise TargetError(document.problems + describe(error, document, Device)) from None
    if document.problems:
        raise TargetError(document.problems)
    return device


@cache
def device_heads() -> dict[str, DeviceHead]:
    """Name -> head of every device that ships."""
    heads = (_head(file.read_text(encoding="utf-8"), file.name) for file in _FOLDER.iterdir() if file.name.endswith(".yaml"))
    return {head.name: head for head in sorted(heads, key=lambda head: head.name)}


def _by_any_name() -> dict[str, DeviceHead]:
    return {alias: head for head in device_heads().values() for alias in (head.name, *head.aliases)}


def _head(text: str, file: str) -> DeviceHead:
    """Reads no more YAML than what is above `sources`, and the keys of `units`; `device_text` writes files so."""
    beginning, _, rest = text.partition("\nsources:\n")
    data = yaml_document.parse(beginning, file, "device").data
    _, _, units = rest.partition("\nunits:\n")
    if not (isinstance(data, dict) and units):
        device = parse_device(text, file)
        return DeviceHead(device.name, device.title, device.aliases, tuple(device.units), file)
    aliases = data.get("aliases", [])
    names = tuple(line.strip().rstrip(":") for line in units.splitlines() if line.startswith("  ") and not line.startswith("   "))
    return DeviceHead(str(data.get("name")), str(data.get("title")), tuple(map(str, aliases if isinstance(aliases, list) else [])), names, file)


@cache
def _shipped(file: str) -> Device:
    return parse_device((_FOLDER / file).read_text(encoding="utf-8"), file)


def _from_file(path: Path) -> Device:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError([f"device file {path}: {getattr(error, 'strerror', None) or error}"]) from error
    return parse_device(text, str(path))
