"""A device: its compute units, what they can run, and how fast they are. `targets.device_files` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mcompress.errors import TargetError
from mcompress.targets.activations import Activations
from mcompress.targets.names import unknown_name
from mcompress.targets.operators import Kind, Runtime
from mcompress.targets.speeds import KINDS, MULTIPLYING, Boundary, Facts, Name, Positive, PrecisionName, Record, Source, Speeds
from mcompress.targets.validation import Validation

HOST = "host"
"""The device that is the machine on which mcompress runs, whichever that is."""


def _all_kinds(value: object) -> object:
    if isinstance(value, str) and value != "all":
        raise ValueError(f"it is {value!r}; it must be a list of kinds of operators, or all")
    return KINDS if value == "all" else value


Kinds = Annotated[tuple[Kind, ...], BeforeValidator(_all_kinds)]


class Int8Activations(Record):
    """Which INT8 activations the unit's runtime takes."""

    scheme: Activations


class Unit(Facts):
    """One compute unit: what it can run, at which precision it really computes, and its speed."""

    name: str = ""
    """The key under `units`; it need not be repeated."""
    title: str
    runs: dict[PrecisionName, Kinds] = Field(min_length=1)
    """Precision of the file -> kinds of operators that the unit takes (`all` for every kind); the others go to `fallback_unit`."""
    computes_in: dict[PrecisionName, PrecisionName]
    """Precision of the file -> precision of arithmetic and memory on the unit: a GPU runs INT8 files in FP16."""
    capability: Record | None = None
    """How it is known what the unit runs and computes in; None where the file does not say."""
    builds_from: tuple[str, ...] = ()
    """Backends whose files a compiler on the device builds an engine for this unit from (TensorRT: onnx); no other files reach it. Empty for units
    that runtimes reach with their own delegates."""
    int8_activations: Int8Activations | None = None
    """None where the unit takes any zero points, as most do."""
    fallback_unit: Name | None = None
    fuses: Runtime | None = None
    """The runtime whose operators compute only some activations (`targets.operators.FUSES`); None for one that computes all of them."""
    boundary: Boundary
    speeds: dict[PrecisionName, Speeds] = Field(min_length=1)
    """By the precision that is computed in."""
    validation: dict[PrecisionName, Validation] = Field(default_factory=dict)
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
    def activations(self) -> Activations:
        """How the quantize stage plans INT8 activations for this unit, unless it is told otherwise."""
        return "asymmetric" if self.int8_activations is None else self.int8_activations.scheme

    @property
    def channel_alignment(self) -> int:
        """The number of channels that every precision of the unit processes without waste: the largest group."""
        return max(speeds.alignment.outputs for speeds in self.speeds.values())

    def takes(self, kind: Kind, precision: PrecisionName) -> bool:
        """Whether an operator of this kind runs here in a file of this precision."""
        return kind in self.runs.get(precision, ())

    def band(self, precision: PrecisionName) -> str:
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
        if self.int8_activations is not None:
            yield "int8_activations", self.int8_activations
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

    def with_unit(self, unit: Unit, sources: Mapping[str, Source]) -> Device:
        """This device with `unit` in place of its own or beside them, with these sources more, and without those that nothing names any more."""
        changed = self.model_copy(update={"units": {**self.units, unit.name: unit}, "sources": {**self.sources, **sources}})
        cited = {source for _, source in changed.cited()}
        kept = {key: source for key, source in changed.sources.items() if key in cited}
        return Device.model_validate(changed.model_copy(update={"sources": kept}).model_dump())

    def cited(self) -> Iterator[tuple[str, str]]:
        """Place in the file -> the key of `sources` that it names."""
        yield "memory", self.memory.source
        for key, unit in self.units.items():
            yield from ((f"units.{key}.{place}", record.source) for place, record in unit.records())
            yield from ((f"units.{key}.validation.{precision}", found.source) for precision, found in unit.validation.items())
