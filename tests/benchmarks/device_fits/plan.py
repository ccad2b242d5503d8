"""A device while it is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from device_fits.constants import FITTED_ON, Fitted
from mcompress.targets.device import Device, Unit
from mcompress.targets.operators import Kind
from mcompress.targets.speeds import KINDS, Boundary, FilePrecision, PrecisionName, Source

ALL: tuple[Kind, ...] = KINDS
NPU_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "other")
Files = dict[FilePrecision, PrecisionName]
EVERY: Files = {"int8": "int8", "fp16": "fp16", "fp32": "fp32"}
FLOAT: Files = {"int8": "fp16", "fp16": "fp16", "fp32": "fp16"}

HOP_TEXT = (
    "order of magnitude: NPU runs of resnext50, regnet and resnext101 on RB5 (Proxy) in AI Hub Models v0.39.0 (2025-10) leave 25 layers to other "
    "units and take 59, 34 and 51 ms longer than v0.44.0 (2026-01) on the GPU alone: 1.4 to 2.3 ms per layer, two boundaries each"
)
HOP_RUNTIME = "TFLite with delegates, AI Hub Models v0.39.0 (version not stated)"
HOP_US = 1000.0


@dataclass(frozen=True)
class Hop:
    """What it costs to go to another unit, and how that is known."""

    us: float
    source: Source


MEASURED_HOP = Hop(HOP_US, Source(text=HOP_TEXT, date=FITTED_ON, runtime=HOP_RUNTIME))


def assumed_hop(text: str = f"equal to the Snapdragon 865's, which is an {HOP_TEXT}", us: float = HOP_US) -> Hop:
    """For a device on which nobody measured it."""
    return Hop(us, Source(text=f"an assumption, not measured on this device: {text}", date=FITTED_ON, runtime="none"))


@dataclass
class Plan:
    """A device, unit by unit."""

    name: str
    title: str
    aliases: tuple[str, ...]
    os: str
    limit_mb: float
    memory_text: str
    preferred: str
    hop: Hop
    units: dict[str, Unit] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)

    def add(
        self, name: str, title: str, files: Files, kinds: tuple[Kind, ...], speeds: Mapping[PrecisionName, Fitted], *, fallback: str | None = None,
        fuses: Literal["onnxruntime"] | None = None,
    ) -> None:  # fmt: skip
        """Add a unit; of its precisions those that a file is computed in."""
        used = {computed: found for computed, found in speeds.items() if computed in files.values()}
        for found in used.values():
            self.sources |= found.sources
        self.units[name] = Unit(
            name=name, title=title, runs=dict.fromkeys(files, kinds), computes_in=files, fallback_unit=fallback, fuses=fuses,
            boundary=Boundary(hop_us=self.hop.us, source="boundary"), speeds={computed: found.speeds for computed, found in used.items()},
            validation={found.measured: found.validation for found in used.values() if found.validation is not None and found.measured is not None},
        )  # fmt: skip

    def device(self) -> Device:
        """Without sources that nothing names."""
        memory = Source(text=f"an assumption: {self.memory_text}", date=FITTED_ON, runtime="none")
        sources = {"memory": memory, "boundary": self.hop.source, **self.sources}
        draft = Device.model_validate(
            {
                "name": self.name, "title": self.title, "aliases": self.aliases, "os": self.os,
                "sources": {key: source.model_dump() for key, source in sources.items()},
                "memory": {"limit_mb": self.limit_mb, "source": "memory"}, "preferred_unit": self.preferred,
                "units": {name: unit.model_dump() for name, unit in self.units.items()},
            }
        )  # fmt: skip
        named = {source for _, source in draft.cited()}
        return draft.model_copy(update={"sources": {key: source for key, source in draft.sources.items() if key in named}})
