"""What must hold of the estimate for any table: one by one as all at once, the sum of the rows, more work never in less time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from made_up_device import DEVICE
from operator_rows import network, random_tables, row

from mcompress.targets.device_files import list_devices, load_device
from mcompress.targets.latency import estimate, estimate_many, operator_latencies


@pytest.mark.parametrize("unit", ["npu", "cpu"])
def test_many_tables_at_once_are_the_same_as_one_by_one(unit: str) -> None:
    tables = random_tables(60)
    singly = [estimate(table, DEVICE, unit, "int8").value for table in tables]
    np.testing.assert_allclose(estimate_many(tables, DEVICE, unit, "int8"), singly, rtol=1e-12)
    assert estimate_many([], DEVICE, unit, "int8").shape == (0,)


@pytest.mark.parametrize("unit", ["npu", "cpu"])
def test_the_whole_is_the_sum_of_its_rows_and_the_fixed_cost(unit: str) -> None:
    for table in random_tables(30, seed=1):
        rows = operator_latencies(table, DEVICE, unit, "int8")
        taking_part = [DEVICE.units[name] for name in {row.unit for row in rows}]
        fixed = sum(one.speeds[one.computes_in["int8"]].overhead.invoke_us / 1e3 for one in taking_part)
        assert estimate(table, DEVICE, unit, "int8").value == pytest.approx(fixed + sum(found.latency_ms for found in rows))


def test_no_latency_is_zero_negative_or_no_number() -> None:
    for table in random_tables(50, seed=2):
        for unit in DEVICE.units:
            rows = operator_latencies(table, DEVICE, unit, "int8")
            assert all(math.isfinite(found.latency_ms) and found.latency_ms > 0 for found in rows)


@pytest.mark.parametrize("unit", ["npu", "cpu"])
def test_more_work_never_takes_less_time(unit: str) -> None:
    rng = np.random.default_rng(3)
    for table in random_tables(60, seed=4, most=12):
        index = int(rng.integers(len(table.operators)))
        before = table.operators[index]
        wider = replace(
            before, macs=before.macs * 2, elements_read=before.elements_read * 2, elements_written=before.elements_written * 2,
            weight_elements=before.weight_elements * 2,
        )  # fmt: skip
        more = replace(table, operators=(*table.operators[:index], wider, *table.operators[index + 1 :]))
        longer = replace(table, operators=(*table.operators, replace(before, name="last")))
        value = estimate(table, DEVICE, unit, "int8").value
        assert estimate(more, DEVICE, unit, "int8").value >= value
        assert estimate(longer, DEVICE, unit, "int8").value > value


@pytest.mark.parametrize("name", list_devices())
def test_tokens_cost_the_same_whichever_axis_is_the_batch(name: str) -> None:
    device, tokens, width = load_device(name), 197, 384
    first = row("normalization", operation="native_layer_norm")
    tables = [
        network(
            replace(
                first, input_shape=shape, output_shape=shape, channel_axis=-1, elements_read=tokens * width, elements_written=tokens * width,
                weight_elements=2 * width,
            )
        )
        for shape in ((1, tokens, width), (tokens, 1, width))
    ]  # fmt: skip
    for unit in device.units.values():
        for file in unit.runs:
            one, other = (estimate(table, device, unit.name, file).value for table in tables)
            assert one == other
