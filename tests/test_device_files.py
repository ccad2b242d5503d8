"""The devices that ship: what they hold is published fact or says that it is assumed, and their errors are what the checks say."""

from __future__ import annotations

import itertools
import re

import pytest

from mcompress.compress.networks import NETWORKS, family_of, network_table
from mcompress.targets.device import Device
from mcompress.targets.device_files import list_devices, load_device
from mcompress.targets.latency import estimate
from mcompress.targets.speeds import KINDS, STANDS_FOR, PrecisionName

NAMES = tuple(name for name in list_devices() if name != "host")
MEASURED = tuple(
    (name, unit, file)
    for name in NAMES
    for unit, found in load_device(name).units.items()
    for file, checked in found.validation.items()
    if checked.how.startswith("leave-one") and {check.network for check in checked.checks} <= NETWORKS.keys()
)
"""What was fitted to reference networks, and checked."""
ASKED_FOR = (
    "snapdragon865", "snapdragon888", "snapdragon8gen1", "snapdragon8gen2", "snapdragon8gen3", "snapdragon8elite", "apple-a14", "apple-a15",
    "apple-a16",
    "apple-a17pro", "tensor-g1", "jetson-xavier-nx", "jetson-agx-xavier", "jetson-tx2", "jetson-nano", "raspberrypi5", "host",
)  # fmt: skip
WITHOUT_INT8 = ("jetson-tx2", "jetson-nano")
"""Of one unit, which has no dot products of INT8."""


def ms(device: Device, unit: str, network: str, precision: PrecisionName) -> float:
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
        "raspberrypi5"), ("TX2", "jetson-tx2"), ("xavier-nx", "jetson-xavier-nx"),
    ],
)  # fmt: skip
def test_aliases(alias: str, name: str) -> None:
    assert load_device(alias).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_source_says_where_figures_come_from(name: str) -> None:
    device = load_device(name)
    assert {source for _, source in device.cited()} == set(device.sources)
    for source in device.sources.values():
        assert source.fitted_to or re.search(r"assumption|a guess|relative to|order of magnitude", source.text), source.text
        assert not source.fitted_to or re.search(r"[0-9a-f]{7,}|README|arXiv \d{4}\.\d{5}", source.text), source.text
        assert not source.fitted_to or re.search(r"\b20[12]\d\b|at [0-9a-f]{8}\b", source.text), f"no year and no commit: {source.text}"
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
        assert unit.capability is not None
        assert "assum" in device.sources[unit.capability.source].text
        covered = set(unit.runs) | set(device.units[unit.fallback_unit].runs if unit.fallback_unit else ())
        assert covered >= ({"fp16", "fp32"} if name in WITHOUT_INT8 else {"int8", "fp16", "fp32"})
        assert name not in WITHOUT_INT8 or "runs no INT8" in device.sources[unit.capability.source].text
        assert all(set(kinds) <= set(KINDS) for kinds in unit.runs.values())


@pytest.mark.parametrize(("unit", "median"), [("cpu", 0.25), ("gpu", 0.25), ("npu", 0.25)])
def test_floors_of_the_snapdragon_865(unit: str, median: float) -> None:
    found = load_device("snapdragon865").units[unit].validation["int8"]
    assert found.how.startswith("leave-one-family-out, priors and speed classes chosen with these networks in view")
    assert len(found.checks) >= 14
    assert found.summary.median <= median
    assert found.summary.rank_correlation is not None
    assert found.summary.rank_correlation >= 0.9


@pytest.mark.parametrize(("unit", "shared"), [("cpu", 0), ("gpu", 4), ("npu", 6)])
def test_what_was_left_out_of_the_865s_fits_is_said(unit: str, shared: int) -> None:
    device = load_device("snapdragon865")
    found = device.units[unit].validation["int8"]
    text = device.sources[found.source].text
    assert (f"({shared} published networks that other units shared left out)" in found.how) == bool(shared)
    assert (f"{shared} because other units ran some of their layers" in text) == bool(shared)
    singly = re.search(r"single networks are left out .* the median error is ([0-9.]+) % and the rank correlation ([0-9.]+)", text)
    assert singly is not None
    assert float(singly[1]) <= 25
    assert float(singly[2]) >= 0.9
    # Relatives of a network help: without them the error is no smaller.
    assert float(singly[1]) / 100 <= found.summary.median + 0.001


def test_fits_that_start_at_another_chip_leave_the_family_out_there_too() -> None:
    started: tuple[tuple[str, str, PrecisionName], ...] = (
        ("snapdragon8gen2", "npu", "fp16"), ("snapdragon8gen2", "npu", "w8a16"), ("apple-a16", "npu", "int8"), ("snapdragon888", "cpu", "fp16"),
    )  # fmt: skip
    for name, unit, file in started:
        found = load_device(name).units[unit].validation[file]
        assert "the constants that it starts at fitted without it too" in found.how


@pytest.mark.parametrize(("name", "unit", "file"), MEASURED)
def test_leaving_a_network_out_is_no_better_than_having_it(name: str, unit: str, file: PrecisionName) -> None:
    """The stored estimates were made without the network; with it, constants are at least as good on the whole."""
    device = load_device(name)
    found = device.units[unit].validation[file]
    decided = set(device.sources[found.source].fitted_to)
    left_out = {check.network for check in found.checks}
    if "others that the fit did not see" in found.how:
        left_out &= decided
    assert left_out <= decided
    others_too = unit == "cpu" or name == "jetson-nano"  # pooled CPUs: figures of the other precision; the Nano: those of the TX2
    assert others_too or left_out == decided
    assert ("within one family" in found.how) == (len({family_of(network) for network in decided}) == 1)
    shown = found.checks[:12]
    stored = sorted(abs(check.error) for check in shown)
    with_it = sorted(abs(ms(device, unit, check.network, file) / check.measured_ms - 1) for check in shown)
    assert sum(min(e, 1.0) for e in with_it) <= sum(min(e, 1.0) for e in stored) + 0.05 * len(shown)


def test_a_gpu_delegate_computes_int8_files_in_fp16() -> None:
    for name in NAMES:
        device = load_device(name)
        if device.os == "android":
            assert ms(device, "gpu", "resnet18", "int8") == ms(device, "gpu", "resnet18", "fp16")


@pytest.mark.parametrize(("name", "published"), [("snapdragon8gen1", 0.65), ("snapdragon8gen3", 0.97), ("snapdragon8elite", 0.88)])
def test_w8a16_is_nearer_to_fp16_than_to_int8_on_npus(name: str, published: float) -> None:
    """Published for MobileNet v3, of which no W8A8 exists: 1.24 to 1.92 ms, 0.66 to 0.68, 0.46 to 0.52."""
    device = load_device(name)
    assert ms(device, "npu", "mobilenet_v3_large", "w8a16") / ms(device, "npu", "mobilenet_v3_large", "fp16") == pytest.approx(published, rel=0.3)
    assert ms(device, "npu", "resnet50", "w8a16") > 1.2 * ms(device, "npu", "resnet50", "int8")
    checked = device.units["npu"].validation["w8a16"]
    assert len(checked.checks) >= 25
    assert checked.summary.median < 0.3
    assert (
        max(check.error for check in checked.checks if family_of(check.network) == "video_resnet") < 2
    )  # three-dimensional convolutions too, which TFLite computes 25 times slower than QNN


def test_w8a16_is_slower_than_int8_on_a_cpu() -> None:
    """Published for the 865-class: 167 to 38 ms, 333 to 84, 35 to 10."""
    device = load_device("snapdragon865")
    for network in ("yolov8_det", "yolox", "face_det_lite"):
        assert ms(device, "cpu", network, "w8a16") > 2 * ms(device, "cpu", network, "int8")
    assert device.units["cpu"].validation["w8a16"].summary.median < 0.15


def test_one_odd_figure_decides_nothing_and_stays_in_the_checks() -> None:
    """ncnn's ResNet-18 takes 22.57 ms in INT8 on the 8 Gen 2, longer than its ResNet-50 and 3.4 times as long as in FP16: no factor gives that."""
    device = load_device("snapdragon8gen2")
    odd = next(check for check in device.units["cpu"].validation["int8"].checks if check.network == "resnet18")
    assert odd.measured_ms == 22.57
    assert odd.error < -0.3
    assert ms(device, "cpu", "resnet18", "int8") < ms(device, "cpu", "resnet50", "int8")


def test_int8_gains_less_on_newer_cpus_than_on_the_865() -> None:
    """One factor for each precision, of all chips that ncnn was timed on: INT8 and FP16 are nearer to one another than on the 865."""

    def gain(name: str) -> float:
        device = load_device(name)
        return ms(device, "cpu", "resnet50", "fp16") / ms(device, "cpu", "resnet50", "int8")

    assert gain("snapdragon8gen2") <= gain("snapdragon865")
    assert gain("raspberrypi5") <= gain("snapdragon865")


@pytest.mark.parametrize("precision", ["int8", "w8a16", "fp16", "fp32"])
@pytest.mark.parametrize("network", ["resnet18", "resnet50", "esrgan"])
def test_cpus_of_newer_snapdragons_are_not_slower(network: str, precision: PrecisionName) -> None:
    chain = ("snapdragon865", "snapdragon888", "snapdragon8gen1", "snapdragon8gen2", "snapdragon8gen3", "snapdragon8elite")
    times = [ms(load_device(name), "cpu", network, precision) for name in chain]  # esrgan: the generator that is called RRDB
    # Constants are rounded to four digits.
    assert all(newer <= older * 1.001 for older, newer in itertools.pairwise(times)), times
    assert times[-1] < 0.8 * times[0]


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("network", ["wav2lip", "compressed_wav2lip", "resnet18", "resnet50", "mobilenet_v2", "yolov8_det", "esrgan", "vit"])
def test_agx_xavier_is_no_slower_than_xavier_nx(network: str, precision: PrecisionName) -> None:
    assert ms(load_device("jetson-agx-xavier"), "gpu", network, precision) <= ms(load_device("jetson-xavier-nx"), "gpu", network, precision)


def test_int8_is_faster_where_it_is_published_to_be() -> None:
    for name in ("snapdragon888", "raspberrypi5", "apple-a14"):
        assert ms(load_device(name), "cpu", "resnet50", "int8") < ms(load_device(name), "cpu", "resnet50", "fp16")


@pytest.mark.parametrize("name", ["snapdragon8gen1", "snapdragon8gen3", "snapdragon8elite", "tensor-g1", "jetson-xavier-nx", "apple-a15"])
def test_what_is_scaled_from_another_device_is_not_validated(name: str) -> None:
    device = load_device(name)
    unit = device.units["npu" if name == "apple-a15" else "cpu"]
    assert not unit.validation
    assert unit.band("fp16") == "not validated"
    for source in {record.source for place, record in unit.records() if place not in ("boundary", "capability")}:
        assert device.sources[source].text.startswith("an assumption")


@pytest.mark.parametrize("name", NAMES)
def test_boundaries_are_measured_on_the_865_alone(name: str) -> None:
    device = load_device(name)
    text = device.sources["boundary"].text
    assert text.startswith("order of magnitude" if name == "snapdragon865" else "an assumption, not measured on this device")
    if name == "snapdragon865":
        assert "57 of the 82 layers of resnext50, 91 of 116 of regnet and 125 of 150 of resnext101 on the GPU" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_number_has_one_source(name: str) -> None:
    """A finer class with the number of the class that stands for it is not listed a second time under another source."""
    for unit in load_device(name).units.values():
        for speeds in unit.speeds.values():
            for finer, row in speeds.operators.items():
                coarse = speeds.operators.get(STANDS_FOR.get(finer, finer))
                if coarse is not None and coarse.model_copy(update={"source": row.source}) == row:
                    assert coarse.source == row.source, f"{name} {unit.name} {finer}"


def test_int8_pays_on_npus_that_have_it() -> None:
    npu = load_device("snapdragon8gen3")
    assert ms(npu, "npu", "resnet50", "int8") < 0.6 * ms(npu, "npu", "resnet50", "fp16")


def test_the_neural_engine() -> None:
    older, newer = load_device("iphone12"), load_device("iphone15pro")
    assert ms(older, "npu", "resnet50", "int8") == ms(older, "npu", "resnet50", "fp16")
    assert ms(newer, "npu", "resnet50", "int8") < 0.7 * ms(newer, "npu", "resnet50", "fp16")
    fp32 = estimate(network_table("resnet50"), newer, "npu", "fp32")  # takes FP16 programs only
    assert (fp32.on, fp32.value) == ("apple-a17pro gpu fp32", ms(newer, "gpu", "resnet50", "fp32"))
    assert "fp32" not in newer.units["npu"].runs
    times = [ms(load_device(name), "npu", "resnet50", "fp16") for name in ("apple-a14", "apple-a15", "apple-a16", "apple-a17pro")]
    assert times == sorted(times, reverse=True)


def test_grouped_convolution_is_not_dense() -> None:
    """ResNeXt-50 has a third of WideResNet-50's multiply-adds; nn-Meter gives both the same time."""
    for unit in ("cpu", "gpu"):
        device = load_device("snapdragon865")
        assert ms(device, unit, "resnext50", "int8") < 0.7 * ms(device, unit, "wideresnet50", "int8")


def test_falling_back_costs_more_than_anything() -> None:
    """Published of the 865-class: 82 ms with 57 of 82 layers on the GPU, 14 on the NPU and 11 on the CPU, 23 ms with all on the GPU."""
    device = load_device("snapdragon865")
    assert ms(device, "npu", "resnext50", "int8") > 3 * ms(device, "npu", "resnet50", "int8")
    found = estimate(network_table("resnext50"), device, "npu", "int8")
    assert found.band == "not validated (several units)"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_newer_snapdragons_are_faster(precision: PrecisionName) -> None:
    chain = ("snapdragon8gen1", "snapdragon8gen2", "snapdragon8gen3", "snapdragon8elite")
    times = [ms(load_device(name), "npu", "resnet50", precision) for name in chain]
    assert times == sorted(times, reverse=True)
