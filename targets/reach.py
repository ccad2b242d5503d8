"""Which compute unit of a device a backend's files reach, and what they hold for float operators there."""

from __future__ import annotations

from collections.abc import Sequence

from mcompress.targets.device import Device, Unit
from mcompress.targets.exports import Export
from mcompress.targets.schema import Target
from mcompress.targets.speeds import PrecisionName
from mcompress.targets.stages import QuantizeConfig


def unit_of(config: Export, device: Device, wanted: Unit) -> Unit | None:
    """Where a backend's files run on a device: on the unit that the target wants if they reach it, else on the first that they do reach."""
    if device.os not in config.systems:
        return None
    built = [name for name, unit in device.units.items() if config.backend in unit.builds_from]
    reached = [*built, *(name for name in config.units if name in device.units and not device.units[name].builds_from)]
    if wanted.name in reached:
        return wanted
    return device.units[reached[0]] if reached else None


def reached_units(configs: Sequence[Export], device: Device, wanted: Unit) -> tuple[str, ...]:
    """Names of the units that the target's files run on, in the order of its backends; the wanted one if none of them reaches the device."""
    found = [unit.name for unit in (unit_of(config, device, wanted) for config in configs) if unit is not None]
    return tuple(dict.fromkeys(found)) or (wanted.name,)


def floats_on(configs: Sequence[Export], device: Device, wanted: Unit) -> PrecisionName:
    """What a float network runs on the unit as: what the first backend writes that reaches it, else the first at all."""
    reaching = [config for config in configs if unit_of(config, device, wanted) is wanted]
    return next((config.floats for config in (*reaching, *configs)), Export.floats)


def ships_as(target: Target, device: Device, unit: Unit) -> PrecisionName:
    """What search and prune cost a network as: `int8` with a quantize stage behind them, otherwise what float files hold.

    Of a diffusion U-Net always what float files hold: precision plans leave much of it in floating point, where conversions around its many
    normalizations cost more than INT8 saves, and a budget that only INT8 meets would then be missed after all training.
    """
    draws = target.model.task == "text_to_image" and target.model.component == "unet"
    quantized = any(isinstance(stage, QuantizeConfig) for stage in target.stages)
    return "int8" if quantized and not draws else floats_on(target.exports, device, unit)
