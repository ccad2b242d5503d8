"""Several units: who runs what its unit does not take, chains of them, and what nothing can run."""

from __future__ import annotations

import pytest
from made_up_device import DEVICE, TEXT, THREE
from operator_rows import KINDS, network, row

from mcompress.errors import TargetError, UsageError
from mcompress.targets.device_files import list_devices, load_device, parse_device
from mcompress.targets.latency import estimate, estimate_many, operator_latencies
from mcompress.targets.operators import OperatorTable
from mcompress.targets.speeds import PRECISIONS


def test_what_the_unit_does_not_take_runs_elsewhere_and_waits_twice() -> None:
    table = network(row(), row("shuffle", 64, 64, operation="pixel_shuffle"), row(inputs=64))
    found = operator_latencies(table, DEVICE, "npu", "int8")
    assert [one.unit for one in found] == ["npu", "cpu", "npu"]
    moved = 2 * 64 * 2500
    assert [one.boundary_ms for one in found] == [0.0, pytest.approx(0.5 + moved / 20e6), pytest.approx(0.5 + moved / 10e6)]
    assert found[1].memory_ms == pytest.approx(3 * 2 * 64 * 2500 / 20e6)
    whole = estimate(table, DEVICE, "npu", "int8")
    assert whole.source is not None
    assert "1 of 3 operators on cpu, which the npu does not take" in whole.source
    assert (whole.band, whole.on) == ("not validated (several units)", "test-device npu+cpu int8")
    assert whole.value > 1 + estimate(network(row(), row(inputs=64)), DEVICE, "npu", "int8").value


def test_what_nothing_can_run_is_refused() -> None:
    with pytest.raises(UsageError, match=r"test-device npu cannot run operator 'o0' \(convolution\) in fp32, and nor can its fallback"):
        estimate(network(row()), DEVICE, "npu", "fp32")
    with pytest.raises(UsageError, match="precision 'int4' is not known; known are int8, w8a16, fp16, fp32"):
        estimate(network(row()), DEVICE, "npu", "int4")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="unit 'gpu' is not known of device test-device; known are npu, cpu"):
        estimate(network(row()), DEVICE, "gpu", "int8")
    with pytest.raises(UsageError, match="1 operators with multiply-adds have no precision, the first is 'o1'"):
        estimate(network(row(), row()), DEVICE, "npu", {"o0": "int8"})
    with pytest.raises(UsageError, match="operator 'zero' is not known"):
        estimate(network(row()), DEVICE, "npu", {"o0": "int8", "zero": "int8"})
    with pytest.raises(UsageError, match="the operator table is empty"):
        estimate(OperatorTable((), 0), DEVICE, "npu", "int8")
    with pytest.raises(UsageError, match="an operator table is empty"):
        estimate_many([network(row()), OperatorTable((), 0)], DEVICE, "npu", "int8")


def test_the_chain_of_fallbacks_is_followed_to_its_end() -> None:
    rows = [row("shuffle", 64, 64, operation="permute"), row("normalization", 64, 64, operation="native_layer_norm"), row(inputs=64)]
    table = network(row(), *rows)
    found = operator_latencies(table, THREE, "npu", "int8")
    assert [one.unit for one in found] == ["npu", "gpu", "cpu", "npu"]
    pixels = 64 * 2500
    assert [one.boundary_ms for one in found] == [
        0.0, pytest.approx(0.5 + (1 + 2) * pixels / 30e6), pytest.approx(0.2 + (1 + 2) * pixels / 30e6), pytest.approx(0.5 + 2 * pixels / 10e6),
    ]  # fmt: skip
    whole = estimate(table, THREE, "npu", "int8")
    assert whole.value == pytest.approx(sum(one.latency_ms for one in found) + 0.09 + 0.9 + 0.04)
    assert (whole.on, whole.band) == ("test-device npu+gpu+cpu int8", "not validated (several units)")
    assert "; 1 of 4 operators on gpu, 1 on cpu, which the npu does not take" in str(whole.source)
    # What only the last of the chain takes is not refused, and what nobody takes names all of them.
    assert estimate(network(row()), THREE, "npu", "fp16").value > 0
    (found_fp16,) = operator_latencies(network(rows[1]), THREE, "npu", "fp16")
    assert found_fp16.unit == "cpu"
    with pytest.raises(UsageError, match=r"cannot run operator 'o0' .* in fp32, and nor can its fallback, the gpu or the cpu"):
        estimate(network(row()), THREE, "npu", "fp32")


@pytest.mark.parametrize("name", list_devices())
def test_nothing_is_refused_while_some_unit_of_the_chain_takes_it(name: str) -> None:
    device = load_device(name)
    for unit in device.units.values():
        for file in PRECISIONS:
            for kind in KINDS:
                takers = [one for one in device.chain(unit.name) if one.takes(kind, file)]
                if takers:
                    (found,) = operator_latencies(network(row(kind, 32, 32)), device, unit.name, file)
                    assert found.unit == takers[0].name
                else:
                    with pytest.raises(UsageError, match="cannot run operator"):
                        estimate(network(row(kind, 32, 32)), device, unit.name, file)


def test_fallbacks_in_a_circle_are_refused() -> None:
    text = TEXT.replace("    title: a CPU\n", "    title: a CPU\n    fallback_unit: npu\n")
    with pytest.raises(TargetError, match=r"units\.npu\.fallback_unit leads in a circle, npu -> cpu -> npu"):
        parse_device(text, "circle.yaml")


@pytest.mark.parametrize("name", ["snapdragon865", "snapdragon888", "tensor-g1"])
def test_asking_a_unit_that_takes_nothing_is_never_faster_than_its_fallback(name: str) -> None:
    from mcompress.compress.networks import network_table

    device, table = load_device(name), network_table("resnet18")
    direct, through = estimate(table, device, "gpu", "fp16"), estimate(table, device, "npu", "fp16")
    assert through.value >= direct.value
    assert through.band == direct.band
    assert f"constants of {name} gpu" in str(through.source)
