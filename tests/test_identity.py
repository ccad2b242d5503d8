"""Is a machine the device that it is said to be: what phones and boards say of themselves, against the names of devices."""

from __future__ import annotations

import pytest

from mcompress.targets.connect.facts import parse_facts
from mcompress.targets.device_files import load_device
from mcompress.targets.identity import contradiction

PI_5 = "machine=aarch64\ntree=Raspberry Pi 5 Model B Rev 1.0\ncompatible=raspberrypi,5-model-b brcm,bcm2712\nrelease=Debian GNU/Linux 12\n"
PI_4 = "machine=aarch64\ntree=Raspberry Pi 4 Model B Rev 1.4\ncompatible=raspberrypi,4-model-b brcm,bcm2711\nrelease=Debian GNU/Linux 12\n"
COMPUTE_MODULE_5 = "machine=aarch64\ntree=Raspberry Pi Compute Module 5\ncompatible=raspberrypi,5-compute-module brcm,bcm2712\n"
XAVIER_NX = "machine=aarch64\ntree=NVIDIA Jetson Xavier NX Developer Kit\ncompatible=nvidia,p3509-0000+p3668-0000 nvidia,tegra194\n"
ORIN = "machine=aarch64\ntree=NVIDIA Jetson AGX Orin Developer Kit\ncompatible=nvidia,p3737-0000+p3701-0000 nvidia,tegra234\n"
GRAVITON = "machine=aarch64\nrelease=Ubuntu 24.04\n"
EPYC = "machine=x86_64\ncpu=AMD EPYC\nfamily=26\ngeneration=2\nrelease=Debian GNU/Linux 12\n"


def phone(model: str, soc: str = "", platform: str = "", machine: str = "aarch64") -> str:
    return f"machine={machine}\nandroid=14\nmaker=Maker\nphone={model}\nsoc={soc}\nplatform={platform}\n"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("raspberrypi5", PI_5),
        ("raspberrypi5", COMPUTE_MODULE_5),
        ("jetson-xavier-nx", XAVIER_NX),
        ("snapdragon865", phone("IN2013", "SM8250")),
        ("snapdragon865", phone("IN2013", "SM8250-AC", "kona")),
        ("snapdragon865", phone("IN2013", platform="kona")),  # Android 11 does not say the SoC
        ("snapdragon865", phone("x", "QTI SM8250AC")),
        ("snapdragon8elite", phone("SM-S931B", "SM8750", "sun")),
        ("tensor-g1", phone("Pixel 6a", "Tensor", "gs101")),
        ("tensor-g1", phone("Pixel 6a")),
        ("host", EPYC),
    ],
)
def test_what_a_device_says_of_itself_is_recognized(device: str, said: str) -> None:
    assert contradiction(load_device(device), parse_facts(said)) is None


@pytest.mark.parametrize(
    ("device", "said", "why"),
    [
        ("raspberrypi5", EPYC, "its processor is AMD EPYC (family 26, model 2) (x86), and that of Raspberry Pi 5 is an Arm one"),
        ("snapdragon865", phone("Emulator", "SM8250", machine="x86_64"), "(x86), and that of Qualcomm Snapdragon 865 is an Arm one"),
        ("raspberrypi5", PI_4, "its device tree is raspberrypi,4-model-b brcm,bcm2711, and raspberrypi5 is Raspberry Pi 5, bcm2712"),
        ("raspberrypi5", XAVIER_NX, "its model is NVIDIA Jetson Xavier NX Developer Kit, which is jetson-xavier-nx"),
        ("jetson-agx-xavier", XAVIER_NX, "which is jetson-xavier-nx"),
        ("jetson-agx-xavier", ORIN, "jetson-agx-xavier is known as NVIDIA Jetson AGX Xavier, agx-xavier"),
        ("raspberrypi5", GRAVITON, "it says nothing of itself but aarch64; raspberrypi5 is known as"),
        ("snapdragon865", phone("IN2013", "SM8350", "lahaina"), "its SoC is SM8350, which is snapdragon888"),
        ("snapdragon8gen1", phone("x", "SM7450", "taro"), "its SoC is SM7450, and snapdragon8gen1 is"),  # a slower SoC of the same platform
        ("tensor-g1", phone("Pixel 7", "GS201", "gs201"), "its SoC is GS201, and tensor-g1 is"),
        ("snapdragon8gen3", phone("SM-S921B", "s5e9945", "erd9945"), "its SoC is s5e9945, its model is Maker SM-S921B, its platform is erd9945"),
    ],
)
def test_another_machine_is_refused_with_both_values(device: str, said: str, why: str) -> None:
    assert why in (contradiction(load_device(device), parse_facts(said)) or "")


def test_a_device_of_ones_own_is_only_refused_for_what_speaks_against_it() -> None:
    shipped = load_device("raspberrypi5")
    own = shipped.model_copy(update={"name": "office"})
    assert contradiction(own, parse_facts(PI_5)) is None
    assert "which is jetson-xavier-nx" in (contradiction(own, parse_facts(XAVIER_NX)) or "")
    assert "bcm2711" in (contradiction(own, parse_facts(PI_4)) or "")
    assert contradiction(own.model_copy(update={"title": "A board", "aliases": ()}), parse_facts(XAVIER_NX)) is None
    # What a file of one's own lists as an alias is recognized: boards that say less than ours do.
    terse = load_device("jetson-agx-xavier").model_copy(update={"aliases": ("agx-xavier", "jetson-agx")})
    assert contradiction(terse, parse_facts("machine=aarch64\ntree=Jetson-AGX\n")) is None
