"""The devices that ship: what they hold is published fact or says that it is assumed, and their errors are what the checks say."""

from __future__ import annotations

import re

import pytest

from mcompress.compress.networks import NETWORKS, network_table
from mcompress.targets.device import Device, list_devices, load_device
from mcompress.targets.latency import estimate
from mcompress.targets.speeds import KINDS, FilePrecision

NAMES = tuple(name for name in list_devices() if name != "host")
MEASURED = tuple(
    (name, unit, file)
    for name in NAMES
    for unit, found in load_device(name).units.items()
    for file, checked in found.validation.items()
    if checked.how == "leave-one-out" and {check.network for check in checked.checks} <= NETWORKS.keys()
)
"""What was fitted to reference networks, and checked."""
ASKED_FOR = (
    "snapdragon865", "snapdragon888", "snapdragon8gen1", "snapdragon8gen2", "snapdragon8gen3", "snapdragon8elite", "apple-a14", "apple-a15",
    "apple-a16",
    "apple-a17pro", "tensor-g1", "jetson-xavier-nx", "jetson-agx-xavier", "raspberrypi5", "host",
)  # fmt: skip


def ms(device: Device, unit: str, network: str, precision: FilePrecision) -> float:
    return estimate(network_table(network), device, unit, precision).value


def test_the_devices_are_there() -> None:
    assert set(ASKED_FOR) <= set(list_devices())


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("sm8250", "snapdragon865"), ("Kona", "snapdragon865"), ("QCS8250", "snapdragon865"), ("rb5", "snapdragon865"), ("lahaina", "snapdragon888"),
        ("taro", "snapdragon8gen1"), ("S23", "snapdragon8gen2"), ("sm8650", "snapdragon8gen3"), ("s25", "snapdragon8elite"), ("iPhone12",
        "apple-a14"),
        ("iphone13pro", "apple-a15"), ("iphone14pro", "apple-a16"), ("iphone15pro", "apple-a17pro"), ("pixel6", "tensor-g1"), ("bcm2712",
        "raspberrypi5"),
    ],
)  # fmt: skip
def test_aliases(alias: str, name: str) -> None:
    assert load_device(alias).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_source_says_where_figures_come_from(name: str) -> None:
    device = load_device(name)
    assert {source for _, source in device.cited()} == set(device.sources)
    for source in device.sources.values():
        assert source.fitted_to or re.search(r"assumption|a guess|relative to|constants|order of magnitude|only compared", source.text), source.text
        known = NETWORKS.keys()
        assert set(source.fitted_to) <= known


@pytest.mark.parametrize("name", NAMES)
def test_every_unit_runs_what_it_says(name: str) -> None:
    device = load_device(name)
    for unit in device.units.values():
        for precision in unit.runs:
            found = estimate(network_table("mobilenet_v3_small"), device, unit.name, precision)
            assert 0.01 < found.value < 1000
            assert found.band is not None
        covered = set(unit.runs) | set(device.units[unit.fallback_unit].runs if unit.fallback_unit else ())
        assert {"int8", "fp16", "fp32"} <= covered
        assert all(set(kinds) <= set(KINDS) for kinds in unit.runs.values())


@pytest.mark.parametrize(("unit", "median"), [("cpu", 0.25), ("gpu", 0.25), ("npu", 0.25)])
def test_floors_of_the_snapdragon_865(unit: str, median: float) -> None:
    found = load_device("snapdragon865").units[unit].validation["int8"]
    assert found.how == "leave-one-out"
    assert len(found.checks) >= 14
    assert found.summary.median <= median
    assert found.summary.rank_correlation is not None
    assert found.summary.rank_correlation >= 0.9


@pytest.mark.parametrize(("name", "unit", "file"), MEASURED)
def test_leaving_a_network_out_is_no_better_than_having_it(name: str, unit: str, file: FilePrecision) -> None:
    """The stored estimates were made without the network; with it, constants are at least as good on the whole."""
    device = load_device(name)
    found = device.units[unit].validation[file]
    assert set(device.sources[found.source].fitted_to) == {check.network for check in found.checks}
    shown = found.checks[:12]
    stored = sorted(abs(check.error) for check in shown)
    with_it = sorted(abs(ms(device, unit, check.network, file) / check.measured_ms - 1) for check in shown)
    assert sum(min(e, 1.0) for e in with_it) <= sum(min(e, 1.0) for e in stored) + 0.05 * len(shown)


def test_a_gpu_delegate_computes_int8_files_in_fp16() -> None:
    for name in NAMES:
        device = load_device(name)
        if device.os == "android":
            assert ms(device, "gpu", "resnet18", "int8") == ms(device, "gpu", "resnet18", "fp16")


def test_w8a16_is_as_fast_as_fp16_on_npus() -> None:
    for name in ("snapdragon8gen1", "snapdragon8gen3", "snapdragon8elite"):
        device = load_device(name)
        assert ms(device, "npu", "resnet50", "w8a16") == ms(device, "npu", "resnet50", "fp16")
        assert len(device.units["npu"].validation["w8a16"].checks) >= 15


def test_int8_pays_on_npus_that_have_it_and_not_on_every_cpu() -> None:
    npu = load_device("snapdragon8gen3")
    assert ms(npu, "npu", "resnet50", "int8") < 0.6 * ms(npu, "npu", "resnet50", "fp16")
    cpu = load_device("snapdragon8gen2")
    assert ms(cpu, "cpu", "resnet18", "int8") > ms(cpu, "cpu", "resnet18", "fp16")


def test_the_neural_engine() -> None:
    older, newer = load_device("iphone12"), load_device("iphone15pro")
    assert ms(older, "npu", "resnet50", "int8") == ms(older, "npu", "resnet50", "fp16")
    assert ms(newer, "npu", "resnet50", "int8") < 0.7 * ms(newer, "npu", "resnet50", "fp16")
    assert ms(newer, "npu", "resnet50", "fp32") == ms(newer, "npu", "resnet50", "fp16")
    times = [ms(load_device(name), "npu", "resnet50", "fp16") for name in ("apple-a14", "apple-a15", "apple-a16", "apple-a17pro")]
    assert times == sorted(times, reverse=True)


def test_grouped_convolution_is_not_dense() -> None:
    """ResNeXt-50 has a third of WideResNet-50's multiply-adds; nn-Meter gives both the same time."""
    for unit in ("cpu", "gpu"):
        device = load_device("snapdragon865")
        assert ms(device, unit, "resnext50", "int8") < 0.7 * ms(device, unit, "wideresnet50", "int8")


def test_falling_back_costs_more_than_anything() -> None:
    """Published: 82 ms with 25 layers on other units, 12 ms for ResNet-50, which has as many multiply-adds."""
    device = load_device("snapdragon865")
    assert ms(device, "npu", "resnext50", "int8") > 3 * ms(device, "npu", "resnet50", "int8")
    found = estimate(network_table("resnext50"), device, "npu", "int8")
    assert found.band == "not validated (several units)"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_newer_snapdragons_are_faster(precision: FilePrecision) -> None:
    chain = ("snapdragon8gen1", "snapdragon8gen2", "snapdragon8gen3", "snapdragon8elite")
    times = [ms(load_device(name), "npu", "resnet50", precision) for name in chain]
    assert times == sorted(times, reverse=True)
