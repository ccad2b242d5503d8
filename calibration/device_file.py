"""A `Device` as the text of its YAML file: short lines, one record each, facts before figures."""

from __future__ import annotations

import io
from collections.abc import Mapping

from pydantic import JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from mcompress.targets.device import Device
from mcompress.targets.speeds import KINDS, PrecisionName
from mcompress.targets.validation import Validation

WIDTH = 150
_FIRST = ("name", "title", "aliases", "os", "preferred_unit", "memory")
"""Keys that come before the sources and the units; the name and the aliases are read without parsing the rest."""


def device_text(device: Device, comment: str) -> str:
    """The file of a device, `comment` (without `#`) on top. `parse_device` gives the device back."""
    data = device.model_dump(mode="json", exclude_defaults=True)
    data["units"] = {name: _unit(unit, device.units[name].validation) for name, unit in data["units"].items()}
    ordered = {key: data[key] for key in _FIRST if key in data} | {"sources": data["sources"], "units": data["units"]}
    yaml = YAML()
    yaml.width, yaml.representer.ignore_aliases = WIDTH, lambda _: True
    text = io.StringIO()
    yaml.dump(_laid_out(ordered, ()), text)
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _unit(unit: dict[str, JsonValue], validation: Mapping[PrecisionName, Validation]) -> dict[str, JsonValue]:
    runs = unit["runs"]
    if not isinstance(runs, dict):
        raise TypeError("runs is a mapping")
    order = ("title", "runs", "computes_in", "capability", "builds_from", "int8_activations", "fallback_unit", "fuses", "boundary", "speeds")
    found = {key: unit[key] for key in order if key in unit}
    found["runs"] = {precision: "all" if kinds == list(KINDS) else kinds for precision, kinds in runs.items()}
    if validation:
        found["validation"] = {
            precision: {
                "how": checked.how,
                "source": checked.source,
                "checks": {check.network: [_plain(check.measured_ms), _plain(check.estimated_ms)] for check in checked.checks},
            }
            for precision, checked in validation.items()
        }
    return found


def _laid_out(value: JsonValue, path: tuple[str, ...]) -> object:
    """Mappings of plain values, and lists, on one line."""
    if isinstance(value, dict):
        mapping = CommentedMap({key: _laid_out(item, (*path, key)) for key, item in value.items()})
        short = not any(isinstance(item, dict) for item in value.values()) and path[-1:] != ("checks",)
        if path and short and path[0] != "sources":
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        sequence = CommentedSeq([_laid_out(item, path) for item in value])
        sequence.fa.set_flow_style()
        return sequence
    return _plain(value) if isinstance(value, float) else value


def four_digits(value: float) -> float:
    """As device files hold every number."""
    return float(f"{value:.4g}")


def _plain(value: float) -> float | int:
    rounded = four_digits(value)
    return int(rounded) if rounded.is_integer() else rounded
