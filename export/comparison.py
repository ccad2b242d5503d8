"""comparison.json of a bundle, schema 1: what `mcompress check` needs beyond the manifest to compare the bundle with another one.

The operator table and the device's constants are stored whole: the gate estimates the baseline with the constants of the new bundle, so that a
device file that became better is never taken for a network that became slower.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from mcompress.errors import UsageError
from mcompress.record import PictureRecord
from mcompress.targets.device import Device
from mcompress.targets.gate import Gate
from mcompress.targets.latency import OperatorLatency, Precisions, estimate, estimate_in_parts
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.speeds import PrecisionName

NAME = "comparison.json"
SCHEMA = 1
_OPERATORS = TypeAdapter(tuple[Operator, ...])


class Part(BaseModel):
    """Frozen; unknown keys are errors; no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class FileEstimate(Part):
    """What was estimated of one file when the bundle was made, and what estimating it again takes."""

    unit: str
    """Of the device, that the file is offered for."""
    precisions: dict[str, PrecisionName] | PrecisionName
    """Of the file: one for all operators, or operator -> precision."""
    latency_ms: float = Field(gt=0)
    network: str | None = None
    """In `Comparison.narrower`; None for the network itself."""


@dataclass(frozen=True)
class EstimatedOperator:
    """One operator of a file, and what it adds to the estimate."""

    operator: Operator
    cost: OperatorLatency


@dataclass(frozen=True)
class EstimatedFile:
    """The estimate of a file with some constants."""

    latency_ms: float
    on: str
    """Device, unit and precisions, for example `snapdragon865 gpu int8+fp16`."""
    operators: tuple[EstimatedOperator, ...]


class NetworkCost(Part):
    """The network behind all files, counted from its operator table."""

    params: int
    macs: int
    peak_memory_bytes: int
    """Of live activations as a runtime plans them; fp32, whatever a file computes in."""


class NarrowerNetwork(Part):
    """A narrower width of the network, counted in the same way."""

    network: NetworkCost
    table: tuple[JsonValue, ...]

    def operators(self) -> OperatorTable:
        """The stored table; raises as that of `Comparison`."""
        return OperatorTable(_OPERATORS.validate_python(self.table), self.network.params)


class Comparison(Part):
    """The whole file."""

    schema_version: Literal[1] = Field(default=1, alias="schema", serialization_alias="schema")
    model: JsonValue
    """Specification of the teacher: which original the bundle is a compressed form of."""
    held_out: str
    """Digest of training and held-out data: quality can only be compared on the same."""
    gate: Gate
    constants: JsonValue
    """The device file without its validation."""
    packages: dict[str, str]
    cpu: str
    network: NetworkCost
    table: tuple[JsonValue, ...]
    """One entry per operator, with the fields of `mcompress.targets.operators.Operator`."""
    files: dict[str, FileEstimate]
    """By name of the file; a file that does not run on the device is not in it."""
    pictures: dict[str, dict[str, PictureRecord]] = Field(default_factory=dict)
    """Name of the file -> held-out picture -> what the file makes of it; a file that was not executed is not in it."""
    narrower: dict[str, NarrowerNetwork] = Field(default_factory=dict)
    """`w050` -> the network of this width, where the bundle has several."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="after")
    def _networks_are_there(self) -> Self:
        for name, file in self.files.items():
            if file.network is not None and file.network not in self.narrower:
                raise ValueError(f"{name} is of the network '{file.network}'; narrower has {', '.join(self.narrower) or 'none'}")
        return self

    def estimates_with(self, constants: JsonValue) -> dict[str, EstimatedFile]:
        """Every file estimated anew, with these constants and the estimator of this mcompress.

        Raises `pydantic.ValidationError` if the constants or the stored table lack what this mcompress needs to know, `UsageError` or `TargetError`
        for operators or units that the constants do not cover.
        """
        device, whole = Device.model_validate(constants), self.operators()
        tables: dict[str | None, OperatorTable] = {None: whole}
        tables |= {name: network.operators() for name, network in self.narrower.items()}
        return {name: estimate_file(tables[file.network], device, file.unit, file.precisions) for name, file in self.files.items()}

    def operators(self) -> OperatorTable:
        """The stored table. Raises `pydantic.ValidationError` if it lacks what this mcompress knows of an operator."""
        return OperatorTable(_OPERATORS.validate_python(self.table), self.network.params)


def plain_operators(table: OperatorTable) -> tuple[JsonValue, ...]:
    """The rows of a table as JSON."""
    return tuple(_OPERATORS.dump_python(table.operators, mode="json"))


def constants_of(device: Device) -> JsonValue:
    """Everything that a device file says, except how well it was validated."""
    return device.model_dump(mode="json", exclude={"units": {"__all__": {"validation"}}})


def estimate_file(table: OperatorTable, device: Device, unit: str, precisions: Precisions) -> EstimatedFile:
    """What the estimator says of a file with these precisions; raises as `estimate` does."""
    whole = estimate_in_parts(table, device, unit, precisions)
    operators = tuple(EstimatedOperator(operator, row) for operator, row in zip(table.operators, whole.operators, strict=True))
    return EstimatedFile(whole.latency.value, whole.latency.on, operators)


def stored_estimate(table: OperatorTable, device: Device, unit: str, precisions: Precisions, network: str | None = None) -> FileEstimate:
    """The same, as a bundle keeps it, of the narrower `network` where one is named; raises as `estimate` does."""
    stored: dict[str, PrecisionName] | PrecisionName = dict(precisions) if isinstance(precisions, Mapping) else precisions
    return FileEstimate(unit=unit, precisions=stored, latency_ms=estimate(table, device, unit, precisions).value, network=network)


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Write it into a bundle."""
    path = folder / NAME
    path.write_text(comparison.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    return path


def read_comparison(folder: Path) -> Comparison:
    """From a bundle whose digests have been checked. Raises `UsageError` for a bundle without it, or with one of another schema."""
    path = folder / NAME
    if not path.is_file():
        raise UsageError(f"the bundle '{folder}' holds no {NAME}: an mcompress that had no gate made it. Make it again with this mcompress")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error}). Take the bundle again from where it was made") from error
    seen = data.get("schema") if isinstance(data, dict) else None
    if seen != SCHEMA:
        raise UsageError(f"{path} has schema {seen}; this mcompress compares schema {SCHEMA}. Make both bundles with one mcompress")
    try:
        return Comparison.model_validate(data)
    except ValidationError as error:
        details = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10])
        raise UsageError(f"{path} is not a comparison of schema {SCHEMA}:\n{details}") from error
