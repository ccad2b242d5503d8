"""Is a machine the device that it is said to be? What it says of itself, against the names that the device has.

A device is known by its name, its title and its aliases; a machine by its processor architecture, its SoC, its device tree, and its name on the box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mcompress.targets.connect.facts import DeviceFacts
from mcompress.targets.device import HOST, Device
from mcompress.targets.device_files import device_heads, shipped_device

Architecture = Literal["Arm", "x86"]
LEAST_PREFIX = 5
"""`sm8250ac` is an `sm8250`; but `s25` is not a name that a longer word may begin with."""
MOST_WORDS = 6
"""Words of a text that may make up a name together: `Raspberry Pi 5` is `raspberrypi5`."""


@dataclass(frozen=True)
class _Names:
    """The names of a device, small letters and digits alone."""

    device: str
    names: frozenset[str]

    @classmethod
    def of(cls, name: str, title: str, aliases: tuple[str, ...]) -> _Names:
        return cls(name, frozenset(_plain(text) for text in (name, title, *aliases)))

    def named_in(self, text: str) -> bool:
        """Whether the text has a name of the device, or the number of a variant of it."""
        found = _phrases(text)
        numbers = [name for name in self.names if len(name) >= LEAST_PREFIX and name[-1].isdigit()]
        return bool(found & self.names) or any(re.match(rf"{name}(?!\d)", phrase) for phrase in found for name in numbers)

    def siblings_in(self, text: str) -> bool:
        """Whether the text names something of the same series with another number: `GS201` beside `gs101`."""
        series = {found[1] for name in self.names if (found := _NUMBERED.fullmatch(name)) and len(found[1]) > 1}
        return any((found := _NUMBERED.fullmatch(phrase)) is not None and found[1] in series for phrase in _phrases(text))


_NUMBERED = re.compile(r"([a-z]+)(\d+)")


def architecture_of(machine: str) -> Architecture | None:
    """Of what `uname -m` says; None for one that is neither."""
    lower = machine.lower()
    if re.fullmatch(r"x86_64|amd64|i[3-6]86|x86", lower):
        return "x86"
    return "Arm" if lower.startswith(("aarch64", "arm")) else None


def contradiction(device: Device, facts: DeviceFacts) -> str | None:
    """Why the machine that says `facts` is not `device`; None if it may be.

    A device that ships must be named by something that the machine says; of any other, nothing may speak against it. `host` is whatever machine
    mcompress runs on.
    """
    if device.name == HOST:
        return None
    ships = shipped_device(device.name) is not None
    there = architecture_of(facts.machine)
    if ships and there == "x86":  # every device that ships, apart from the host, has Arm processors
        return f"its processor is {facts.processor} (x86), and that of {device.title} is an Arm one"
    own = _Names.of(device.name, device.title, device.aliases)
    others = [_Names.of(head.name, head.title, head.aliases) for head in device_heads().values() if head.name not in (device.name, HOST)]
    for what, text in facts.names:
        if own.named_in(text):
            return None
        other = next((names.device for names in others if names.named_in(text)), None)
        if other is not None and (ships or (shipped_device(other) is not None and _is_known_as(own, others))):
            return f"its {what} is {text}, which is {other}"
        if own.siblings_in(text):
            return f"its {what} is {text}, and {device.name} is {_known_as(device)}"
    if ships:
        said = ", ".join(f"its {what} is {text}" for what, text in facts.names) or f"it says nothing of itself but {facts.model}"
        return f"{said}; {device.name} is known as {_known_as(device)}"
    return None


def _is_known_as(own: _Names, others: list[_Names]) -> bool:
    """Whether a device of a name of its own stands for one that ships, by its title or an alias."""
    return any(own.names & names.names for names in others)


def _known_as(device: Device) -> str:
    return ", ".join((device.title, *device.aliases))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _phrases(text: str) -> frozenset[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset("".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, min(start + MOST_WORDS, len(words)) + 1))
