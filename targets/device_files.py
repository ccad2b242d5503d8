"""The files of devices: one YAML each, in `targets/devices/` or anywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from mcompress.errors import TargetError
from mcompress.targets import document as yaml_document
from mcompress.targets.device import Device
from mcompress.targets.names import unknown_name
from mcompress.targets.problems import describe, show

_FOLDER = resources.files("mcompress.targets") / "devices"
DEVICE_SUFFIXES = (".yaml", ".yml")
"""By which the name of a file is told from the name of a device."""


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
