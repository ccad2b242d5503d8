"""Devices: compute units, what they can run, and how fast they are, every constant with its source.

One YAML file per device in `targets/devices/`. Speeds are *effective* figures, fitted to measured latencies, not marketing peaks. The model that
they belong to is in `mcompress.targets.latency`.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from statistics import median
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mcompress.errors import TargetError
from mcompress.targets.operators import Kind

PrecisionName = Literal["int8", "fp16", "fp32"]
BYTES: dict[PrecisionName, int] = {"int8": 1, "fp16": 2, "fp32": 4}
"""Bytes of one element."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]


class Facts(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Constant(Facts):
    """A number of a device, where it comes from, and with which runtime it was seen."""

    value: float = Field(ge=0)
    source: str = Field(min_length=10)
    date: str = Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")
    runtime: str = Field(min_length=2)
    fitted_to: tuple[str, ...] = ()
    """The networks whose measured latencies decide the value; empty for a constant that was not fitted."""


class Check(Facts):
    """One network: latency published by someone else, and what the constants give when they are fitted without it."""

    network: str
    input_shape: tuple[int, ...]
    published_ms: float = Field(gt=0)
    estimated_ms: float = Field(gt=0)
    source: str = Field(min_length=10)

    @property
    def error(self) -> float:
        """Relative error of the estimate, signed."""
        return self.estimated_ms / self.published_ms - 1


class Validation(Facts):
    """How well estimates of one precision meet measured latencies; `how` says whether the networks were held out of the fit."""

    how: str
    checks: tuple[Check, ...] = Field(min_length=1)

    @property
    def band(self) -> str:
        """For example `median error 12 %, largest 40 %, on 9 published models, leave-one-out`."""
        errors = [abs(check.error) for check in self.checks]
        return f"median error {median(errors):.0%}, largest {max(errors):.0%}, on {len(errors)} published models, {self.how}".replace("%", " %")


class Unit(Facts):
    """One compute unit: what it can run, at which precision it really computes, and its speed."""

    name: Name
    title: str
    channel_alignment: int = Field(ge=1, le=256)
    """Channels are processed in groups of this many; what is missing to the next multiple is computed for nothing."""
    pads_memory: bool = False
    """Whether tensors are also stored with channels rounded up to the alignment."""
    runs: dict[PrecisionName, tuple[Kind, ...]] = Field(min_length=1)
    """Precision of the file -> kinds of operators that the unit takes; the others go to `fallback_unit`."""
    computes_in: dict[PrecisionName, PrecisionName]
    """Precision of the file -> precision of arithmetic and memory on the unit."""
    fallback_unit: Name | None = None
    gmacs: dict[PrecisionName, dict[Kind, Constant]]
    """Effective 10^9 multiply-adds per second, by the precision that is computed in and the kind of operator."""
    bandwidth_gbs: dict[PrecisionName, Constant]
    """Effective 10^9 bytes per second between operators, by the precision that is computed in."""
    slowdown: dict[Kind, Constant] = Field(default_factory=dict)
    """Kinds that move memory so many times slower than `bandwidth_gbs`, for example a pixel shuffle."""
    dispatch_us: Constant
    """Fixed cost of one operator, microseconds."""
    invoke_us: Constant
    """Fixed cost of one inference, microseconds."""
    boundary_us: Constant
    """Fixed cost of going to another unit between two operators, microseconds; the tensor is moved in addition."""
    validation: dict[PrecisionName, Validation] = Field(default_factory=dict)
    """By the precision of the file."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for file, kinds in self.runs.items():
            if file not in self.computes_in:
                raise ValueError(f"unit {self.name} runs {file} files, but computes_in does not say in which precision")
            if self.computes_in[file] not in self.bandwidth_gbs:
                raise ValueError(f"unit {self.name} computes {file} files in {self.computes_in[file]}, but bandwidth_gbs does not have it")
            rates = self.gmacs.get(self.computes_in[file], {})
            missing = [kind for kind in kinds if kind in MULTIPLYING and kind not in rates]
            if missing:
                raise ValueError(f"unit {self.name} runs {file} files, but gmacs.{self.computes_in[file]} has no {', '.join(missing)}")
        return self

    def takes(self, kind: Kind, precision: PrecisionName) -> bool:
        """Whether an operator of this kind runs here in a file of this precision."""
        return kind in self.runs.get(precision, ())

    def band(self, precision: PrecisionName) -> str:
        """How far estimates may be off, in words."""
        if precision in self.validation:
            return self.validation[precision].band
        same = [file for file in self.validation if self.computes_in.get(file) == self.computes_in.get(precision)]
        return f"{self.validation[same[0]].band}, with {same[0]} files that the unit computes in the same way" if same else "not validated"


MULTIPLYING: frozenset[Kind] = frozenset(
    ("convolution", "depthwise_convolution", "grouped_convolution", "transposed_convolution", "matmul", "attention")
)
"""Kinds whose time depends on multiply-adds; all others move memory."""


class Device(Facts):
    """A phone, a board or a computer."""

    name: Name
    title: str
    aliases: tuple[Name, ...] = ()
    os: str
    memory_limit_mb: Constant
    """What one app may use."""
    preferred_unit: Name
    units: dict[Name, Unit] = Field(min_length=1)

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
        return self

    def unit(self, name: str | None = None) -> Unit:
        """The unit `name`, or the preferred one. Raises `TargetError` naming the units that exist."""
        wanted = self.preferred_unit if name is None else name
        if wanted not in self.units:
            raise TargetError([unknown_name("unit", wanted, tuple(self.units), f"of device {self.name}")])
        return self.units[wanted]


def list_devices() -> tuple[str, ...]:
    """Names of all devices, sorted."""
    return tuple(sorted(_by_name()))


def load_device(name: str) -> Device:
    """The device with this name or alias, in any case. Raises `TargetError` with near-miss names."""
    devices = _by_name()
    known = {alias: device for device in devices.values() for alias in (device.name, *device.aliases)}
    found = known.get(name.strip().lower())
    if found is None:
        raise TargetError([unknown_name("device", name, tuple(known), "(mcompress list devices)", show=tuple(devices))])
    return found


def unknown_name(what: str, seen: str, known: tuple[str, ...], where: str = "", show: tuple[str, ...] | None = None) -> str:
    """`device 'sm825' is not known (...); known are ...; did you mean 'sm8250'?`"""
    near = difflib.get_close_matches(seen.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
    hint = f"; did you mean {next(n for n in known if n.lower() == near[0])!r}?" if near else ""
    return f"{what} {seen!r} is not known {where}".rstrip() + f"; known are {', '.join(show or known)}{hint}"


@cache
def _by_name() -> dict[str, Device]:
    folder = resources.files("mcompress.targets") / "devices"
    devices: dict[str, Device] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            device = parse_device(file.read_text(encoding="utf-8"), file.name)
            devices[device.name] = device
    return devices


def parse_device(text: str, file: str) -> Device:
    """The device that a YAML text describes; `file` is its name in messages. Raises `TargetError` with every problem."""
    try:
        return Device.model_validate(YAML(typ="safe", pure=True).load(text))
    except YAMLError as error:
        raise TargetError([f"{file}: {str(error).strip()}"]) from error
    except ValidationError as error:
        places = ((".".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors(include_url=False))
        raise TargetError([f"{file}: {place}: {message}" for place, message in places]) from error
