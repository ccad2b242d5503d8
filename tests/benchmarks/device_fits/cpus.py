"""CPUs: the Snapdragon 865's is fitted, the others are as many times faster as few published figures say together.

The figures are ncnn's: two or three networks of a chip, one runtime's kernels. They decide one number of each chip and one of each precision, which
all of them share, so that no single figure decides anything; how far each is off stands in the checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median

from device_fits.constants import ASSUMED, DONOR_TOO, FITTED_ON, Fitted, Precisions, faster, scaled
from device_fits.figures import (
    CPU_8_GEN_1_TO_8_GEN_3,
    CPU_8_GEN_3_TO_8_ELITE,
    GEEKBENCH_8_GEN_2,
    NCNN,
    NCNN_8_GEN_2,
    NCNN_888,
    NCNN_RASPBERRY_PI_5,
    PADDLE,
    PADDLE_TEXT,
    Figures,
    growth,
)
from device_fits.measured import Measured
from mcompress.calibration.latency_fit import Fit
from mcompress.compress.networks import family_of, network_table
from mcompress.published import prior_of
from mcompress.targets.speeds import PrecisionName, Source, Speeds
from mcompress.targets.validation import Check, Validation

NCNN_PRECISIONS: tuple[PrecisionName, ...] = ("int8", "fp16")
POOLED: dict[str, Mapping[str, Figures]] = {"snapdragon888": NCNN_888, "snapdragon8gen2": NCNN_8_GEN_2, "raspberrypi5": NCNN_RASPBERRY_PI_5}
"""Cortex cores of similar generations, of which ncnn publishes figures."""
WHERE = {
    "snapdragon888": "Snapdragon 888, eight threads", "snapdragon8gen2": "Snapdragon 8 Gen 2, four threads on the large cores",
    "raspberrypi5": "Raspberry Pi 5, four threads",
}  # fmt: skip
SWEEPS = 20
PHONES = ("snapdragon888", "snapdragon8gen1", "snapdragon8gen2", "snapdragon8gen3", "snapdragon8elite")
"""Newer than the Snapdragon 865, in the order in which they came."""
HOW = f"leave-one-family-out, {DONOR_TOO}; one factor for each chip and one for each precision of all three chips that ncnn was timed on"


@cache
def cpu_865(data: Measured) -> Precisions:
    """INT8 and W8A16 as fitted; FP16 and FP32 from INT8, by ResNet50's published ratio."""
    widths = {"fp16": 2.0, "fp32": 4.0}
    found: Precisions = {"int8": data.cpu865, "w8a16": data.cpu865_w8a16}
    floats: tuple[PrecisionName, ...] = ("fp16", "fp32")
    for name in floats:
        ratio = PADDLE["int8"] / PADDLE[name]
        text = (
            f"{ASSUMED}INT8 constants times {ratio:.3g}, the ratio of INT8 to {name.upper()} in {PADDLE_TEXT}; as many elements a second as in INT8"
        )
        found[name] = scaled(f"cpu-{name}", data.cpu865, text, rate=ratio, memory=widths[name], overhead=1.0)
    return found


@dataclass(frozen=True)
class Pool:
    """How many times faster than the Snapdragon 865's constants: of each chip, and of each precision on all chips; logarithms."""

    chips: Mapping[str, float]
    precisions: Mapping[PrecisionName, float]

    def log_factor(self, chip: str, precision: PrecisionName) -> float:
        """0 where no figure is left."""
        return self.chips.get(chip, 0.0) + self.precisions.get(precision, 0.0)


@cache
def pool(data: Measured, without: str | None = None) -> Pool:
    """Medians of chips and of precisions in turn (Tukey's median polish), without a family of networks if one is named."""
    ratios = list(_log_ratios(data, without))
    chips: dict[str, float] = {}
    precisions: dict[PrecisionName, float] = {}
    for _ in range(SWEEPS):
        for chip in POOLED:
            some = [ratio - precisions.get(name, 0.0) for own, name, ratio in ratios if own == chip]
            if some:
                chips[chip] = median(some)
        for name in NCNN_PRECISIONS:
            some = [ratio - chips[chip] for chip, own, ratio in ratios if own == name]
            if some:
                precisions[name] = median(some)
    return Pool(chips, precisions)


def _log_ratios(data: Measured, without: str | None) -> Iterator[tuple[str, PrecisionName, float]]:
    for chip, figures in POOLED.items():
        for name in NCNN_PRECISIONS:
            donor = _constants(cpu_865(data)[name], without)
            for network, ms in figures[name].items():
                if family_of(network) != without:
                    yield chip, name, math.log(_ms(donor, name, network) / ms)


def _constants(of: Fitted, without: str | None) -> Speeds:
    return of.speeds if without is None else of.without(without)


def _ms(speeds: Speeds, name: PrecisionName, network: str) -> float:
    return float(Fit.of(speeds, prior_of(speeds, name)).estimate_ms([network_table(network)])[0])


def factor(data: Measured, chip: str, precision: PrecisionName, without: str | None = None) -> float:
    """How many times faster than the Snapdragon 865; a newer phone's chip at least as fast as the one before."""
    found = pool(data, without)
    if chip not in PHONES:
        return math.exp(found.log_factor(chip, precision))
    fastest = 0.0
    for phone in PHONES[: PHONES.index(chip) + 1]:
        own = found.log_factor(phone if phone in POOLED else "snapdragon8gen2", precision) + math.log(STEPS.get(phone, 1.0))
        fastest = max(fastest, own)
    return math.exp(fastest)


STEPS = {
    "snapdragon8gen1": 1 / GEEKBENCH_8_GEN_2,
    "snapdragon8gen3": growth(CPU_8_GEN_1_TO_8_GEN_3) / GEEKBENCH_8_GEN_2,
    "snapdragon8elite": growth(CPU_8_GEN_1_TO_8_GEN_3) / GEEKBENCH_8_GEN_2 * growth(CPU_8_GEN_3_TO_8_ELITE),
}
"""Speed relative to the Snapdragon 8 Gen 2."""
STEPS_TEXT = (
    "Geekbench multi-core 3785 to 4993 (nanoreview.net) between 8 Gen 1 and 8 Gen 2, then TFLite's float latencies on the CPU of "
    f"{', '.join(CPU_8_GEN_1_TO_8_GEN_3)} (quic/ai-hub-models v0.46.1 of 2026-02)"
)
NOT_SLOWER = "; held at no slower than the chip before it, the Snapdragon 865 first"


def from_ncnn(data: Measured, chip: str) -> Precisions:
    """A CPU that ncnn was timed on."""
    donor = cpu_865(data)
    found: Precisions = {}
    held = NOT_SLOWER if chip in PHONES else ""
    decided = tuple(sorted({network for figures in POOLED[chip].values() for network in figures}))
    for name in NCNN_PRECISIONS:
        listed = ", ".join(f"{network} {ms:g} ms" for network, ms in sorted(POOLED[chip][name].items()))
        key, times = f"cpu-{name}", factor(data, chip, name)
        text = (
            f"the Snapdragon 865's constants of this precision times {times:.3g}, in tests/benchmarks/fit_devices.py: the median that suits ncnn's "
            f"figures of this chip in {' and '.join(NCNN_PRECISIONS)} (in {name} {listed}), and one that each precision has on "
            f"{', '.join(WHERE.values())} alike{held}; {NCNN.text}, {WHERE[chip]}"
        )
        kept = "relative to the others as in the Snapdragon 865's constants of this precision, for want of figures that decide it"
        sources = {
            key: Source(text=text, date=FITTED_ON, runtime=NCNN.runtime, fitted_to=decided),
            f"{key}-assumed": Source(text=kept, date=FITTED_ON, runtime="none"),
        }
        found[name] = Fitted(_moved(key, donor[name].speeds, times), sources, _checked(data, chip, name), name)
    times = factor(data, chip, "fp16")
    for own in (name for name in donor if name not in NCNN_PRECISIONS):
        text = f"{ASSUMED}the Snapdragon 865's constants of this precision times {times:.3g}, as in FP16, which few figures decide{held}"
        found[own] = scaled(f"cpu-{own}", donor[own], text, rate=times)
    return found


def _moved(key: str, speeds: Speeds, times: float) -> Speeds:
    """Times a factor that was fitted; it decides convolutions, memory and overheads, and what is relative to them is assumed."""
    moved = faster(key, speeds, rate=times, memory=times, overhead=1 / times)
    own = ("convolution", "pointwise_convolution")
    operators = {name: row if name in own else row.model_copy(update={"source": f"{key}-assumed"}) for name, row in moved.operators.items()}
    alignment = moved.alignment.model_copy(update={"source": f"{key}-assumed"})
    return moved.model_copy(update={"operators": operators, "alignment": alignment})


def _checked(data: Measured, chip: str, name: PrecisionName) -> Validation:
    checks = []
    for network, ms in sorted(POOLED[chip][name].items()):
        family = family_of(network)
        times, donor = factor(data, chip, name, family), cpu_865(data)[name].without(family)
        checks.append(Check(network=network, measured_ms=ms, estimated_ms=_ms(_moved("x", donor, times), name, network)))
    return Validation(how=HOW, source=f"cpu-{name}", checks=tuple(checks))


def between(data: Measured, chip: str) -> Precisions:
    """A Snapdragon's CPU between and after those that ncnn was timed on."""
    found: Precisions = {}
    for name, donor in cpu_865(data).items():
        pooled: PrecisionName = "int8" if name == "int8" else "fp16"
        times = factor(data, chip, pooled)
        text = (
            f"{ASSUMED}the Snapdragon 865's constants of this precision times {times:.3g}: the Snapdragon 8 Gen 2's, which few figures decide, times "
            f"{STEPS[chip]:.3g}, {STEPS_TEXT}{NOT_SLOWER}"
        )
        found[name] = scaled(f"cpu-{name}", donor, text, rate=times)
    return found
