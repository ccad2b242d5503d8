"""Apple's chips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from device_fits.attention import add_scores
from device_fits.constants import (
    ASSUMED,
    DONOR_TOO,
    IN_VIEW,
    Fitted,
    Precisions,
    Words,
    few,
    fitted,
    in_fp32,
    next_to,
    samples,
    scaled,
)
from device_fits.cpus import NCNN_PRECISIONS, cpu_865
from device_fits.figures import (
    A15_TO_A16,
    A15_TO_A16_TEXT,
    COREMLTOOLS,
    FP16_ONLY,
    IPHONE_14_PRO,
    IPHONE_15_PRO,
    MOBILEONE,
    MOBILEONE_12_PRO,
    NCNN,
    NCNN_M1,
    SNAPFUSION_12_PRO_MAX,
    SNAPFUSION_13_PRO_MAX,
    SNAPFUSION_14_PRO,
    Figures,
    Publication,
)
from device_fits.measured import Measured
from device_fits.plan import ALL, CPU_RUNS, EVERY, NPU_KINDS, Files, Plan, assumed_hop

APPLE_GPU_RUNS = "an assumption: INT8 files are computed in FP16, as Core ML decompresses weights on this unit, and every kind of operator is taken"
OLDER_INT8 = "that INT8 files are computed in FP16 is assumed, because W8A8 is published as faster on newer chips only"
GPU_FILES: Files = {"int8": "fp16", "fp16": "fp16", "fp32": "fp32"}
OLDER_ENGINE: Files = {"int8": "fp16", "fp16": "fp16"}
NEWER_ENGINE: Files = {"int8": "int8", "fp16": "fp16"}
"""From the A16 on, W8A8 is published as faster; W8 alone is not. FP32 files do not run on any."""


@dataclass(frozen=True)
class Chip:
    """What tells one from the others."""

    name: str
    title: str
    aliases: tuple[str, ...]
    limit_mb: float
    memory: str


A14 = Chip(
    "apple-a14", "Apple A14 Bionic", ("a14", "iphone12", "iphone12mini", "iphone12pro", "iphone12promax"), 2000, "half of the iPhone 12's 4 GB"
)
A15 = Chip(
    "apple-a15", "Apple A15 Bionic", ("a15", "iphone13", "iphone13mini", "iphone13pro", "iphone13promax", "iphone14", "iphone14plus"), 2000,
    "half of the iPhone 13's 4 GB",
)  # fmt: skip
A16 = Chip(
    "apple-a16", "Apple A16 Bionic", ("a16", "iphone14pro", "iphone14promax", "iphone15", "iphone15plus"), 3000, "half of the iPhone 14 Pro's 6 GB"
)
A17_PRO = Chip("apple-a17pro", "Apple A17 Pro", ("a17pro", "iphone15pro", "iphone15promax"), 4000, "half of the iPhone 15 Pro's 8 GB")


def apple_a14(data: Measured) -> Plan:
    plan = _plan(data, A14, OLDER_ENGINE, {"fp16": engine_of_a14(data)})
    add_scores(plan, "npu", SNAPFUSION_12_PRO_MAX, "iPhone 12 Pro Max")
    return plan


def apple_a15(data: Measured) -> Plan:
    a16 = engine(data, IPHONE_14_PRO, "iPhone 14 Pro")["fp16"]
    text = f"{ASSUMED}the A16's constants, which few figures decide, times {A15_TO_A16:.3g}: {A15_TO_A16_TEXT}; {FP16_ONLY}"
    plan = _plan(data, A15, OLDER_ENGINE, {"fp16": scaled("npu-fp16", a16, text, rate=A15_TO_A16, runtime=COREMLTOOLS.runtime)})
    add_scores(plan, "npu", SNAPFUSION_13_PRO_MAX, "iPhone 13 Pro Max")
    return plan


def apple_a16(data: Measured) -> Plan:
    plan = _plan(data, A16, NEWER_ENGINE, engine(data, IPHONE_14_PRO, "iPhone 14 Pro"))
    add_scores(plan, "npu", SNAPFUSION_14_PRO, "iPhone 14 Pro")
    return plan


def apple_a17_pro(data: Measured) -> Plan:
    plan = _plan(data, A17_PRO, NEWER_ENGINE, engine(data, IPHONE_15_PRO, "iPhone 15 Pro"))
    add_scores(plan, "npu", SNAPFUSION_14_PRO, "iPhone 14 Pro, for want of figures of a newer one")
    return plan


@cache
def engine_of_a14(data: Measured) -> Fitted:
    """The A14's Neural Engine."""
    donor = data.npus["snapdragon8gen1"]["fp16"]
    like = "the Snapdragon 8 Gen 1's NPU in FP16"
    kept = f"relative to the others as on {like}: no network of this fit decides it"
    published = Publication(f"{MOBILEONE.text}; {FP16_ONLY}", MOBILEONE.runtime)
    words = Words(f"starting at {like}", kept, f"{DONOR_TOO}, {IN_VIEW}")
    some = samples(MOBILEONE_12_PRO)
    return fitted("npu-fp16", some, next_to(donor, "fp16"), published, files="fp16", words=words, donor=donor)


def engine(data: Measured, figures: dict[str, Figures], phone: str) -> Precisions:
    """A newer Neural Engine."""
    donor, published = engine_of_a14(data), Publication(f"{COREMLTOOLS.text}, {phone}; {FP16_ONLY}", COREMLTOOLS.runtime)
    return {
        "fp16": few("npu-fp16", donor, "fp16", figures["fp16"], published, like="the A14's constants"),
        "int8": few("npu-int8", donor, "int8", figures["int8"], published, like="the A14's FP16 constants"),
    }


def _plan(data: Measured, chip: Chip, files: Files, engine: Precisions) -> Plan:
    plan = Plan(chip.name, chip.title, chip.aliases, "ios", chip.limit_mb, chip.memory, "npu", assumed_hop())
    newer = "" if chip is A14 else "as on the A14, for want of figures, though newer chips are faster: "
    plan.add("cpu", "performance cores", EVERY, ALL, _cpu(data, newer), can=CPU_RUNS)
    text = (
        f"{ASSUMED}{newer}the Snapdragon 865's constants times 0.654 / 1.228, the TFLOPS of both (topcpu.net, nanoreview.net); memory times "
        "34.1 / 44 GB/s"
    )
    fp16 = scaled("gpu-fp16", data.gpu865, text, rate=0.654 / 1.228, memory=34.1 / 44, overhead=0.5)
    wide = f"{ASSUMED}half the FP16 rates, as many bytes a second; {FP16_ONLY}"
    plan.add("gpu", "Apple GPU", GPU_FILES, ALL, {"fp16": fp16, "fp32": scaled("gpu-fp32", fp16, wide, rate=0.5, memory=1.0, overhead=1.0)},
             can=APPLE_GPU_RUNS, fallback="cpu")  # fmt: skip
    w8a8 = "W8A8 is published as faster than FP16, so that it is computed in INT8" if "int8" in files and files["int8"] == "int8" else OLDER_INT8
    can = f"{FP16_ONLY}; {w8a8}; that it takes all kinds of operators but unknown ones is an assumption: Core ML decides layer by layer"
    plan.add("npu", "Apple Neural Engine", files, NPU_KINDS, engine, can=can, fallback="gpu")
    return plan


def _cpu(data: Measured, newer: str) -> Precisions:
    donor = cpu_865(data)
    published = Publication(f"{NCNN.text}, Apple M1 (the A14's cores), one thread", NCNN.runtime)
    like = "the Snapdragon 865's constants of this precision"
    found: Precisions = {}
    for name in NCNN_PRECISIONS:
        made = few(f"cpu-{name}", donor[name], name, NCNN_M1[name], published, like=like)
        found[name] = replace(made, sources={key: source.model_copy(update={"text": newer + source.text}) for key, source in made.sources.items()})
    found["fp32"] = in_fp32(found["fp16"])
    return found
