"""What the original and the compressed model are estimated to take on every device that mcompress knows, not on the target's alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.errors import UsageError
from mcompress.offer import HOST, planned_precisions
from mcompress.record import DeviceLatency
from mcompress.targets.device import Device, Unit
from mcompress.targets.device_files import list_devices, load_device
from mcompress.targets.latency import Precisions, estimate
from mcompress.targets.operators import OperatorTable
from mcompress.targets.schema import Measurement
from mcompress.targets.speeds import PrecisionName

Model = Literal["teacher", "compressed"]
Files = Literal["fp32", "fp16", "mixed"]
FLOATS: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")


def latency_on_devices(tables: Mapping[Model, OperatorTable], plan: PrecisionPlan | None) -> tuple[DeviceLatency, ...]:
    """Each model in float files, and the compressed one in files that hold what `plan` says, on the unit that each device prefers.

    INT8 is claimed only of units that multiply in it; others convert it to floating point. This machine, of which others know nothing, is left out.
    """
    devices = [load_device(name) for name in list_devices() if name != HOST]
    return tuple(line for device in devices for model, table in tables.items() for line in _lines(device, model, table, plan))


def _lines(device: Device, model: Model, table: OperatorTable, plan: PrecisionPlan | None) -> Iterator[DeviceLatency]:
    unit = device.unit()
    for files in FLOATS:
        why = "" if files in unit.runs else f"its {unit.name} takes no {files} files"
        yield _line(device, unit, model, files, _estimated(table, device, unit, files, why))
    if model == "compressed" and plan is not None:
        floats: PrecisionName = "fp16" if "fp16" in unit.runs else "fp32"
        why = "" if unit.computes_in.get("int8") == "int8" else f"its {unit.name} does not multiply in INT8"
        yield _line(device, unit, model, "mixed", _estimated(table, device, unit, planned_precisions(table, plan, floats), why))


def _estimated(table: OperatorTable, device: Device, unit: Unit, precisions: Precisions, why: str) -> Measurement | str:
    """The estimate, or why there is none: the given reason, or an operator that runs nowhere on the device."""
    if why:
        return why
    try:
        return estimate(table, device, unit.name, precisions)
    except UsageError as error:
        return str(error)


def _line(device: Device, unit: Unit, model: Model, files: Files, found: Measurement | str) -> DeviceLatency:
    latency, why = (None, found) if isinstance(found, str) else (found, "")
    computed = "" if files == "mixed" or latency is None else unit.computes_in[files]
    return DeviceLatency(
        model=model, files=files, device=device.name, title=device.title, unit=unit.name, latency=latency, computed_in=computed, why=why
    )
