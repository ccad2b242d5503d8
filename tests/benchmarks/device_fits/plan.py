"""A device while it is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from device_fits.constants import FITTED_ON, Fitted
from mcompress.targets.device import Device, Int8Activations, Unit
from mcompress.targets.operators import Kind
from mcompress.targets.speeds import KINDS, Boundary, PrecisionName, Record, Source

ALL: tuple[Kind, ...] = KINDS
NPU_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "other")
Files = dict[PrecisionName, PrecisionName]
EVERY: Files = {"int8": "int8", "fp16": "fp16", "fp32": "fp32"}
FLOAT: Files = {"int8": "fp16", "fp16": "fp16", "fp32": "fp16"}

HOP_TEXT = (
    "order of magnitude: in AI Hub Models v0.39.0 (2025-10), TFLite on RB5 (Proxy) ran 57 of the 82 layers of resnext50, 91 of 116 of regnet and "
    "125 of 150 of resnext101 on the GPU, 11 to 13 on the CPU and 12 to 14 on the NPU, in 81.9, 52.4 and 125.9 ms; in v0.44.0 (2026-01) all of them "
    "on the GPU, in 23.2, 18.2 and 75.3 ms. The 59, 34 and 51 ms more are 1.4 to 2.3 ms for each of the 25 layers elsewhere, two boundaries each if "
    "they stand alone; what a newer release made faster is in this too"
)
CPU_RUNS = (
    "an assumption: TFLite, ONNX Runtime and ncnn have CPU kernels for every kind of operator, and these cores have the dot products of INT8 and "
    "the arithmetic of FP16 of Armv8.2; what a kernel does inside is not published for each"
)
GPU_RUNS = (
    "TFLite's GPU delegate computes in FP16, INT8 files too, which it dequantizes (its documentation, GPU delegates for TensorFlow Lite); that it "
    "takes every kind of operator is an assumption: published runs of some networks leave a few layers to the CPU"
)
HTP_RUNS = (
    "an assumption from published runs that left no layer to other units (quic/ai-hub-models perf.yaml, v0.39.0 of 2025-10 to v0.46.1 of 2026-02): "
    "float, INT8 and W8A16 files run, with all kinds of operators but unknown ones; float files are computed in FP16, as Qualcomm's HTP backend does"
)
HVX_RUNS = (
    "published INT8 runs of the Snapdragon 865 (quic/ai-hub-models perf.yaml, RB5 (Proxy), v0.39.0 of 2025-10) left grouped convolutions, "
    "normalizations and attention to other units; that it takes every other kind, and no float file because its vectors are of integers, is an "
    "assumption"
)
HOP_RUNTIME = "TFLite with delegates, AI Hub Models v0.39.0 (version not stated)"
HOP_US = 1000.0


@dataclass(frozen=True)
class Hop:
    """What it costs to go to another unit, and how that is known."""

    us: float
    source: Source


MEASURED_HOP = Hop(HOP_US, Source(text=HOP_TEXT, date=FITTED_ON, runtime=HOP_RUNTIME))


def assumed_hop(text: str = f"equal to the Snapdragon 865's, which is an {HOP_TEXT}", us: float = HOP_US, date: str = FITTED_ON) -> Hop:
    """For a device on which nobody measured it."""
    return Hop(us, Source(text=f"an assumption, not measured on this device: {text}", date=date, runtime="none"))


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
    date: str = FITTED_ON
    """Of what the plan says itself."""
    units: dict[str, Unit] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)

    def add(
        self, name: str, title: str, files: Files, kinds: tuple[Kind, ...], speeds: Mapping[PrecisionName, Fitted], *, can: str,
        fallback: str | None = None, fuses: Literal["onnxruntime"] | None = None,
    ) -> None:  # fmt: skip
        """Add a unit; of its precisions those that a file is computed in. `can` says how it is known what it runs."""
        self.sources[f"{name}-runs"] = Source(text=can, date=self.date, runtime="none")
        used = {computed: found for computed, found in speeds.items() if computed in files.values()}
        for found in used.values():
            self.sources |= found.sources
        self.units[name] = Unit(
            name=name, title=title, runs=dict.fromkeys(files, kinds), computes_in=files, fallback_unit=fallback, fuses=fuses,
            capability=Record(source=f"{name}-runs"), boundary=Boundary(hop_us=self.hop.us, source="boundary"),
            speeds={computed: found.speeds for computed, found in used.items()},
            validation={found.measured: found.validation for found in used.values() if found.validation is not None and found.measured is not None},
        )  # fmt: skip

    def takes_symmetric(self, name: str, text: str) -> None:
        """Say of a unit that its runtime takes INT8 with zero points of 0 only; `text` says how that is known."""
        key = f"{name}-int8-activations"
        self.sources[key] = Source(text=text, date=self.date, runtime="none")
        self.units[name] = self.units[name].model_copy(update={"int8_activations": Int8Activations(scheme="symmetric", source=key)})

    def built_from(self, name: str, *backends: str) -> None:
        """Say of a unit that a compiler on the device builds its engines from files of these backends, and that no others reach it."""
        self.units[name] = self.units[name].model_copy(update={"builds_from": backends})

    def device(self) -> Device:
        """Without sources that nothing names."""
        memory = Source(text=f"an assumption: {self.memory_text}", date=self.date, runtime="none")
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
