"""Latencies, in milliseconds, and ratios of chips that others published, each with where and when; those of the CSV file are not repeated here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mcompress.targets.speeds import PrecisionName

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Publication:
    """Where figures are published: what a source of a device file says about them."""

    text: str
    """With the commit or version, and its date."""
    runtime: str
    left_out: str = ""
    """What checks do not cover of what is published: ` (...)`, or nothing."""


AI_HUB_RELEASES = {"v0.46.1": "52c080d2 of 2026-02-12", "v0.44.0": "1362d5d5 of 2026-01", "v0.39.0": "623c55a1 of 2025-10"}
"""Of quic/ai-hub-models, in the order in which they count: the first that has a network."""
RUNTIMES = {"tflite": "TFLite with delegates", "onnx": "ONNX Runtime", "qnn_dlc": "QNN"}
VERSIONS = {
    "v0.46.1": "TFLite 2.17.0 and QAIRT 2.41.0 in v0.45.0, later ones not stated", "v0.44.0": "version not stated", "v0.39.0": "version not stated",
}  # fmt: skip


def ai_hub(device: str, unit: str, precision: str, runtime: str, releases: tuple[str, ...], *, unknown: int, shared: tuple[str, ...]) -> Publication:
    """Rows of the CSV file; `unknown` models in it are not described by mcompress, `shared` ones left layers to other units."""
    named = ", ".join(f"{release} ({AI_HUB_RELEASES[release]})" for release in releases)
    first = " where it has the network, else the next" if len(releases) > 1 else ""
    left = [f"{unknown} because mcompress has no table of them"] if unknown else []
    left += [f"{len(shared)} because other units ran some of their layers ({', '.join(shared)})"] if shared else []
    text = (
        f"quic/ai-hub-models perf.yaml, {device}, {precision}, {runtime} on {unit}, of {named}{first}: all networks that mcompress has a table "
        f"of and that ran on this unit alone; left out are {' and '.join(left) or 'none'}"
    )
    apart = f" ({len(shared)} published network{'s' if len(shared) > 1 else ''} that other units shared left out)" if shared else ""
    return Publication(text, f"{RUNTIMES[runtime]}, AI Hub Models {releases[0]} ({VERSIONS[releases[0]]})", apart)


NCNN = Publication("Tencent/ncnn benchmark/README.md at a4d2ea1d4 of 2026-07-22", "ncnn, version not stated beside the figures")
"""Networks of 224x224 with random weights, FP16 arithmetic where the core has it."""
NCNN_8_GEN_2: dict[str, Figures] = {
    "fp16": {"mobilenet_v2": 3.23, "resnet18": 6.63, "resnet50": 18.9},
    "int8": {"resnet18": 22.57, "resnet50": 19.2},
}
"""Four threads on the large cores."""
NCNN_888: dict[str, Figures] = {
    "fp16": {"mobilenet_v2": 7.63, "resnet18": 13.5, "resnet50": 29.6},
    "int8": {"resnet18": 15.3, "resnet50": 25.2},
}
"""Eight threads."""
NCNN_RASPBERRY_PI_5: dict[str, Figures] = {"fp16": {"mobilenet_v2": 10.5, "resnet50": 46.2}, "int8": {"resnet50": 40.8}}
"""Four threads."""
NCNN_M1: dict[str, Figures] = {"fp16": {"resnet50": 43.7}, "int8": {"resnet50": 31.6}}
"""One thread: a Firestorm core, as in the A14."""

GALAXY_S23 = "quic/ai-hub-models perf.yaml at 43fc7215 (v0.33), Samsung Galaxy S23"
S23: dict[str, Figures] = {
    "float": {
        "mobilenet_v2": 0.86, "mobilenet_v3_large": 0.964, "squeezenet1_1": 0.609, "shufflenet_v2": 0.697, "resnet18": 1.351, "resnet50": 2.246,
        "resnext50": 2.494, "wideresnet50": 4.831, "densenet121": 1.904, "vit": 12.72, "quicksrnetsmall": 1.404, "quicksrnetmedium": 1.361,
        "xlsr": 2.878, "real_esrgan_x4plus": 70.901, "esrgan": 67.727, "aotgan": 152.989, "lama_dilated": 86.106,
    },
    "w8a8": {
        "squeezenet1_1": 0.192, "shufflenet_v2": 0.323, "resnet18": 0.405, "resnet50": 0.771, "resnext50": 0.923, "wideresnet50": 1.777,
        "densenet121": 3.028, "vit": 12.199, "quicksrnetsmall": 1.045, "quicksrnetmedium": 1.083, "xlsr": 1.038, "real_esrgan_x4plus": 25.38,
    },
    "w8a16": {"mobilenet_v3_large": 0.949, "vit": 26.042},
}  # fmt: skip
"""On the NPU; w8a16 by QNN, the others by TFLite."""

MOBILEONE = Publication(
    "apple/ml-mobileone README, the MobileOne paper's figures (arXiv 2206.04040 of 2022-06), iPhone 12 Pro", "Core ML, version not stated"
)
MOBILEONE_12_PRO: Figures = {"mobileone_s0": 0.79, "mobileone_s1": 0.89, "mobileone_s2": 1.18, "mobileone_s3": 1.53, "mobileone_s4": 1.86}
COREMLTOOLS = Publication(
    "apple/coremltools docs-guides/source/opt-quantization-perf.md at e0e2f42b of 2026-08-18, medians of Xcode's performance report",
    "Core ML, version not stated",
)
IPHONE_14_PRO: dict[str, Figures] = {"fp16": {"mobilenet_v2": 0.48, "resnet50": 1.52}, "int8": {"mobilenet_v2": 0.27, "resnet50": 0.94}}
IPHONE_15_PRO: dict[str, Figures] = {"fp16": {"mobilenet_v2": 0.49, "resnet50": 1.38}, "int8": {"mobilenet_v2": 0.20, "resnet50": 0.77}}
"""INT8 is W8A8."""
FP16_ONLY = (
    "the Neural Engine takes FP16 programs only: one of float 32 runs on GPU and CPU (coremltools guide, Typed Execution Workflow Example, read "
    "2026-11-21)"
)
A15_TO_A16 = math.sqrt((230 / 315) * (2.55 / 2.69))
A15_TO_A16_TEXT = (
    "SnapFusion's UNet takes 315 ms on iPhone 13 Pro Max and 230 ms on 14 Pro (arXiv 2306.00980 of 2023-06), Stable Diffusion 2.1 runs at 2.55 "
    "and 2.69 iterations a second (apple/ml-stable-diffusion README at e12202c of 2025-07-03)"
)

TALKING_FACES = Publication(
    "Nota-NetsPresso/nota-wav2lip docs/assets/fig5.png at 01cfa87 of 2024-03-08 (arXiv 2304.00471): Wav2Lip's generator and its compressed form",
    "TensorRT, version, batch size and power mode not stated",
)
Board = Mapping[PrecisionName, Figures]
"""Figures by precision."""
XAVIER_NX: Board = {
    "fp32": {"wav2lip": 16.16, "compressed_wav2lip": 1.73}, "fp16": {"wav2lip": 4.52, "compressed_wav2lip": 0.92},
    "int8": {"wav2lip": 3.59, "compressed_wav2lip": 0.81},
}  # fmt: skip
AGX_XAVIER: Board = {
    "fp32": {"wav2lip": 9.27, "compressed_wav2lip": 1.12}, "fp16": {"wav2lip": 3.64, "compressed_wav2lip": 0.75},
    "int8": {"wav2lip": 3.19, "compressed_wav2lip": 0.64},
}  # fmt: skip
"""INT8 is their mixture of FP16 and INT8."""
TX2: Board = {"fp32": {"wav2lip": 30.06, "compressed_wav2lip": 2.98}, "fp16": {"wav2lip": 22.22, "compressed_wav2lip": 2.49}}
NANO: Board = {"fp32": {"compressed_wav2lip": 5.39}, "fp16": {"wav2lip": 44.26, "compressed_wav2lip": 4.47}}
"""No mixture is shown of either. Wav2Lip in FP32 is `N/A` on the Nano: the conversion to TensorRT failed."""

TORCH2TRT_NANO = Publication("NVIDIA-AI-IOT/torch2trt docs/benchmarks/jetson_nano.md at 353a703d, FP16, batch 1", "TensorRT, version not stated")
FP16_NANO: Figures = {"squeezenet1_1": 4.34, "resnet18": 11.4, "resnet50": 29.8, "densenet121": 24.8}
TORCH2TRT_XAVIER = Publication("NVIDIA-AI-IOT/torch2trt docs/benchmarks/jetson_xavier.md at d1e7d4ce, FP16, batch 1", "TensorRT, version not stated")
FP16_XAVIER: Figures = {
    "squeezenet1_1": 1.02, "resnet18": 1.64, "resnet50": 3.37, "densenet121": 13.0, "mobilenet_v2": 1.67, "shufflenet_v2": 2.17,
}  # fmt: skip
"""Column `Latency (TensorRT)`, all that this project has a table of. `Jetson Xavier` is the AGX: the file is older than the NX."""

INT8_TX2 = "TensorRT 8.0.1 says `support int8: false` there (wang-xinyu/tensorrtx issue 831 of 2021-11)"
INT8_NANO = "TensorRT 6.0.1 says `Int8 support: 0` there (ceccocats/tkDNN issue 26 of 2020-06)"
"""What its builder answers to `platformHasFastInt8`."""

PADDLE = {"fp32": 160.97, "fp16": 82.00, "int8": 64.50}
PADDLE_TEXT = "Paddle-Lite release/v2.11 docs/performance/benchmark.md, ResNet50 on Xiaomi Mi 10 (Snapdragon 865), Armv8, one thread"
CPU_8_GEN_1_TO_8_GEN_3 = {
    "bevdet": (2671.358, 1670.163), "wavlm": (2070.43, 1421.172), "statetransformer": (752.049, 504.429), "centerpoint": (5918.276, 3901.025),
}  # fmt: skip
CPU_8_GEN_3_TO_8_ELITE = {
    "bevdet": (1670.163, 1256.893), "wavlm": (1421.172, 1051.778), "statetransformer": (504.429, 392.99), "centerpoint": (3901.025, 3121.304),
}  # fmt: skip
"""quic/ai-hub-models v0.46.1, float files that TFLite runs on the CPU of both: the slower's and the faster's milliseconds."""
GEEKBENCH_8_GEN_2 = 4993 / 3785
"""Multi-core, 8 Gen 2 to 8 Gen 1 (nanoreview.net, qualcomm-snapdragon-8-gen-2-vs-qualcomm-snapdragon-8-gen-1)."""
GPU_STEPS = {
    "snapdragon888": (1.35, "35 % more than Adreno 650 as Qualcomm announced it"),
    "snapdragon8gen1": (1.35 * 1.55, "55 % more floating-point operations per second than Adreno 660 (nanoreview.net)"),
    "snapdragon8gen2": (1.35 * 1.55 * 12708 / 9076, "3DMark Wild Life 12708 to the 8 Gen 1's 9076 (nanoreview.net)"),
    "snapdragon8gen3": (
        1.35 * 1.55 * 23.049 / 11.892,
        "yolov6, of which TFLite runs 122 of 149 layers on the GPU, 11.892 ms to the 8 Gen 1's 23.049 (quic/ai-hub-models v0.46.1)",
    ),
    "snapdragon8elite": (1.35 * 1.55 * 23.049 / 11.892 * 1.4, "40 % more than Adreno 750 as Qualcomm announced it"),
}
"""Speed relative to the Snapdragon 865's GPU, and the last step to it."""


def growth(pairs: Mapping[str, tuple[float, float]]) -> float:
    """Geometric mean of slower to faster."""
    return math.exp(sum(math.log(slow / fast) for slow, fast in pairs.values()) / len(pairs))


SNAPFUSION = Publication("SnapFusion, arXiv 2306.00980 of 2023-06, tables 1 and 3 and section 2", "Core ML, version not stated")
SNAPFUSION_14_PRO: Figures = {"stable_diffusion_unet": 1700.0, "snapfusion_unet": 230.0}
SNAPFUSION_13_PRO_MAX: Figures = {"snapfusion_unet": 315.0}
SNAPFUSION_12_PRO_MAX: Figures = {"snapfusion_unet": 526.0}
"""One call, FP16, of Stable Diffusion 1.5's U-Net and of the efficient one."""
SNAPFUSION_DECODER_14_PRO: Figures = {"stable_diffusion_decoder": 369.0, "half_decoder": 116.0}
"""Not fitted to: a check."""
