"""Qualcomm's chips."""

from __future__ import annotations

from device_fits.constants import DONOR_TOO, IN_VIEW, Fitted, Precisions, Words, few, fitted, next_to, samples, times
from device_fits.cpus import between, cpu_865, from_ncnn
from device_fits.figures import GALAXY_S23, GPU_STEPS, S23, Publication
from device_fits.measured import WRITTEN_AS, Measured
from device_fits.plan import (
    ALL,
    CPU_RUNS,
    EVERY,
    FLOAT,
    GPU_RUNS,
    HTP_RUNS,
    HVX_RUNS,
    MEASURED_HOP,
    NPU_KINDS,
    Files,
    Plan,
    assumed_hop,
)
from mcompress.targets.operators import Kind
from mcompress.targets.speeds import KINDS, PrecisionName

CPU_FILES: Files = {**EVERY, "w8a16": "w8a16"}
NPU_FILES: Files = {"int8": "int8", "w8a16": "w8a16", "fp16": "fp16", "fp32": "fp16"}
HVX_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in ("grouped_convolution", "attention", "normalization", "other"))
"""Grouped convolutions, normalizations and attention of the published networks were left to other units; HVX has no FP16."""
AS_THE_865 = "an assumption, as the Snapdragon 865's NPU: "
QUARTER_OF_8 = (2048.0, "a quarter of 8 GB")


def snapdragon865(data: Measured) -> Plan:
    plan = Plan(
        "snapdragon865", "Qualcomm Snapdragon 865", ("sm8250", "sm8250-ab", "kona", "qcs8250", "qrb5165", "rb5", "snapdragon-865"), "android", 2048,
        "a quarter of the 8 GB of the smallest common phone with this chip", "gpu", MEASURED_HOP,
    )  # fmt: skip
    plan.add("cpu", "Kryo 585 (Cortex-A77 and A55)", CPU_FILES, ALL, cpu_865(data), can=CPU_RUNS, fuses="onnxruntime")
    plan.add("gpu", "Adreno 650", FLOAT, ALL, {"fp16": data.gpu865}, can=GPU_RUNS, fallback="cpu")
    plan.add("npu", "Hexagon 698 (HVX)", {"int8": "int8"}, HVX_KINDS, {"int8": data.npu865}, can=HVX_RUNS, fallback="gpu")
    return plan


def snapdragon888(data: Measured) -> Plan:
    plan = Plan("snapdragon888", "Qualcomm Snapdragon 888", ("sm8350", "lahaina", "snapdragon-888"), "android", *QUARTER_OF_8, "gpu", assumed_hop())
    plan.add("cpu", "Kryo 680 (Cortex-X1, A78, A55)", CPU_FILES, ALL, from_ncnn(data, "snapdragon888"), can=CPU_RUNS)
    plan.add("gpu", "Adreno 660", FLOAT, ALL, adreno(data, "snapdragon888"), can=GPU_RUNS, fallback="cpu")
    plan.add("npu", "Hexagon 780", {"int8": "int8"}, HVX_KINDS, hexagon_780(data), can=f"{AS_THE_865}{HVX_RUNS}", fallback="gpu")
    return plan


def hexagon_780(data: Measured) -> Precisions:
    """The 865's, faster as announced."""
    return times({"int8": data.npu865}, "npu", 26 / 15, "the Snapdragon 865's constants times 26 / 15, the ratio of the announced 26 and 15 TOPS")


def adreno(data: Measured, device: str) -> Precisions:
    """A newer Adreno."""
    factor, step = GPU_STEPS[device]
    return times({"fp16": data.gpu865}, "gpu", factor, f"the Snapdragon 865's constants times {factor:.3g}; the last step of it: {step}")


def snapdragon8gen2(data: Measured) -> Plan:
    aliases = ("sm8550", "kalama", "qcs8550", "s23", "snapdragon-8-gen-2")
    plan = Plan("snapdragon8gen2", "Qualcomm Snapdragon 8 Gen 2", aliases, "android", *QUARTER_OF_8, "npu", assumed_hop())
    plan.add("cpu", "Kryo (Cortex-X3, A715, A710, A510)", CPU_FILES, ALL, from_ncnn(data, "snapdragon8gen2"), can=CPU_RUNS)
    plan.add("gpu", "Adreno 740", FLOAT, ALL, adreno(data, "snapdragon8gen2"), can=GPU_RUNS, fallback="cpu")
    plan.add("npu", "Hexagon (HTP v73)", NPU_FILES, NPU_KINDS, hexagon_v73(data), can=HTP_RUNS, fallback="gpu")
    return plan


def hexagon_v73(data: Measured) -> Precisions:
    """By an older release than its neighbours, starting at the next newer chip."""
    like, donor = "the Snapdragon 8 Gen 3's constants", data.npus["snapdragon8gen3"]
    kept = f"relative to the others as in {like}: no network of this fit decides it"
    words = Words(f"starting at {like}", kept, f"{DONOR_TOO}, {IN_VIEW}")
    written: dict[PrecisionName, str] = {"fp16": "float", "int8": "w8a8"}
    found: dict[PrecisionName, Fitted] = {}
    for name, word in written.items():
        again = next_to(donor[name], name)
        published = Publication(f"{GALAXY_S23}, {word}, tflite on NPU", "TFLite with delegates, AI Hub Models v0.33 (version not stated)")
        found[name] = fitted(f"npu-{name}", samples(S23[word]), again, published, files=WRITTEN_AS[word], words=words, donor=donor[name])
    published = Publication(f"{GALAXY_S23}, w8a16, qnn_dlc on NPU", "QNN, AI Hub Models v0.33 (version not stated)")
    return found | {"w8a16": few("npu-w8a16", donor["w8a16"], "w8a16", S23["w8a16"], published, like=like)}


def from_csv(
    data: Measured, name: str, title: str, aliases: tuple[str, ...], cores: tuple[str, str, str], memory: tuple[float, str] = QUARTER_OF_8
) -> Plan:
    """8 Gen 1, 8 Gen 3 and 8 Elite: the NPU from the CSV, the others scaled."""
    plan = Plan(name, title, aliases, "android", *memory, "npu", assumed_hop())
    plan.add("cpu", cores[0], CPU_FILES, ALL, between(data, name), can=CPU_RUNS)
    plan.add("gpu", cores[1], FLOAT, ALL, adreno(data, name), can=GPU_RUNS, fallback="cpu")
    plan.add("npu", cores[2], NPU_FILES, NPU_KINDS, data.npus[name], can=HTP_RUNS, fallback="gpu")
    return plan


def snapdragon8gen1(data: Measured) -> Plan:
    return from_csv(
        data, "snapdragon8gen1", "Qualcomm Snapdragon 8 Gen 1", ("sm8450", "taro", "qcs8450", "snapdragon-8-gen-1"),
        ("Kryo (Cortex-X2, A710, A510)", "Adreno 730", "Hexagon (HTP v69)"),
    )  # fmt: skip


def snapdragon8gen3(data: Measured) -> Plan:
    return from_csv(
        data, "snapdragon8gen3", "Qualcomm Snapdragon 8 Gen 3", ("sm8650", "pineapple", "s24", "snapdragon-8-gen-3"),
        ("Kryo (Cortex-X4, A720, A520)", "Adreno 750", "Hexagon (HTP v75)"),
    )  # fmt: skip


def snapdragon8elite(data: Measured) -> Plan:
    return from_csv(
        data, "snapdragon8elite", "Qualcomm Snapdragon 8 Elite", ("sm8750", "sun", "s25", "snapdragon-8-elite"),
        ("Oryon", "Adreno 830", "Hexagon (HTP v79)"), (3072, "a quarter of 12 GB"),
    )  # fmt: skip
