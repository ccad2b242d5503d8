"""Edges between rows: what is converted or moved once a tensor changes its precision or its unit, and what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up_device import DEVICE
from operator_rows import network, row

from mcompress.targets.latency import estimate, operator_latencies
from mcompress.targets.operators import Operator
from mcompress.targets.speeds import PrecisionName


def test_a_conversion_moves_the_padding_as_well() -> None:
    """The NPU stores 48 channels as 64, in both precisions; the CPU behind it as 48."""
    table = network(row(outputs=48), row(inputs=48, outputs=48), row("shuffle", 48, 48, operation="permute"))
    (_, other_precision, _) = operator_latencies(table, DEVICE, "npu", {"o0": "int8", "o1": "fp16"})
    assert other_precision.boundary_ms == pytest.approx(64 * 2500 * (1 + 2) / 10e6 + 0.009)
    (_, _, other_unit) = operator_latencies(table, DEVICE, "npu", {"o0": "int8", "o1": "int8"})
    assert other_unit.boundary_ms == pytest.approx((64 + 48) * 2500 / 20e6 + 0.5)


def test_a_change_of_precision_is_one_more_pass_and_a_dispatch() -> None:
    table = network(row(), row(inputs=64), row(inputs=64))
    mixed = operator_latencies(table, DEVICE, "npu", {"o0": "int8", "o1": "fp16", "o2": "int8"})
    assert [found.precision for found in mixed] == ["int8", "fp16", "int8"]
    moved = 64 * 2500 * (1 + 2) / 10e6
    assert [found.boundary_ms for found in mixed] == [0.0, pytest.approx(moved + 0.009), pytest.approx(moved + 0.007)]
    found = estimate(table, DEVICE, "npu", {"o0": "int8", "o1": "fp16", "o2": "int8"})
    assert (found.on, found.band) == ("test-device npu int8+fp16", "not validated (mixed precision)")
    # A CPU that computes both alike has nothing to convert.
    assert all(one.boundary_ms == 0 for one in operator_latencies(table, DEVICE, "cpu", {"o0": "int8", "o1": "fp16", "o2": "int8"}))


def reading(operator: Operator, *makers: int, elements: int | None = None) -> Operator:
    """The operator with edges from the rows of these indices, 50 x 50 pixels of 64 channels each."""
    return replace(operator, sources=tuple((maker, 64 * 2500 if elements is None else elements) for maker in makers))


INT8_TO_FP16 = 64 * 2500 * (1 + 2) / 10e6 + 0.009


def test_a_long_skip_into_another_precision_is_converted() -> None:
    """A U-Net: its first convolution is read by the next, and by the sum at the end."""
    rows = (reading(row()), reading(row(inputs=64), 0), reading(row(inputs=64), 1), reading(row("elementwise", 64, 64, operation="add"), 2, 0))
    found = operator_latencies(network(*rows), DEVICE, "npu", {"o0": "int8", "o1": "fp16", "o2": "fp16"})
    assert [one.precision for one in found] == ["int8", "fp16", "fp16", "fp16"]
    # The sum reads what was converted for the second row already.
    assert [one.boundary_ms for one in found] == [0.0, pytest.approx(INT8_TO_FP16), 0.0, 0.0]
    found = operator_latencies(network(*rows), DEVICE, "npu", {"o0": "int8", "o1": "int8", "o2": "fp16", "o3": "fp16"})
    assert [one.boundary_ms for one in found] == [0.0, 0.0, pytest.approx(INT8_TO_FP16), pytest.approx(INT8_TO_FP16)]


def test_a_long_skip_onto_another_unit_is_moved_and_waited_for() -> None:
    """The NPU takes no shuffle: the tensor of the first row goes to the CPU when it is needed there, and everything else stays where it is."""
    rows = (reading(row()), reading(row(inputs=64), 0), reading(row("shuffle", 64, 64, operation="cat"), 1, 0), reading(row(inputs=64), 2))
    found = operator_latencies(network(*rows), DEVICE, "npu", "int8")
    moved = 2 * 64 * 2500
    # Two tensors, and one wait: both are there once the NPU has ended.
    assert [one.boundary_ms for one in found] == [0.0, 0.0, pytest.approx(0.5 + 2 * moved / 20e6), pytest.approx(0.5 + moved / 10e6)]


def test_a_tensor_is_converted_once_for_all_readers_of_a_form() -> None:
    readers = [reading(row(inputs=64), 0) for _ in range(3)]
    table = network(reading(row()), *readers)
    found = operator_latencies(table, DEVICE, "npu", {"o0": "fp16"} | dict.fromkeys(("o1", "o2", "o3"), "int8"))  # type: ignore[arg-type]
    assert [one.boundary_ms for one in found] == [0.0, pytest.approx(64 * 2500 * (1 + 2) / 10e6 + 0.007), 0.0, 0.0]
    # Readers in two forms need two conversions; one in the form of the maker needs none.
    elsewhere = reading(row("shuffle", 64, 64, operation="permute"), 0)
    found = operator_latencies(network(reading(row()), elsewhere, *readers), DEVICE, "npu", {"o0": "fp16", "o1": "int8", "o2": "int8", "o3": "int8",
        "o4": "fp16"})  # fmt: skip
    assert [one.boundary_ms > 0 for one in found] == [False, True, True, False, False]
    # Each reader may take a part only: together they convert what there is, and a part alone is no more than a part.
    quarters = [reading(row(inputs=16), 0, elements=16 * 2500) for _ in range(3)]
    found = operator_latencies(network(reading(row()), *quarters), DEVICE, "npu", {"o0": "fp16", "o1": "int8", "o2": "int8", "o3": "int8"})
    assert found[1].boundary_ms == pytest.approx(3 * 16 * 2500 * (1 + 2) / 10e6 + 0.007)


def test_interleaved_branches_cost_the_same_as_one_after_the_other() -> None:
    """One branch in INT8, the other in FP16 and with an operator in the middle that the NPU leaves to the CPU."""
    one = [row(), row(inputs=64), row("activation", 64, 64, operation="relu"), row(inputs=64)]
    other = [row(), row("shuffle", 64, 64, operation="permute"), row(inputs=64), row(inputs=64)]
    total = row("elementwise", 64, 64, operation="add")
    after = [reading(each, *([index - 1] if index else [])) for index, each in enumerate(one)]
    after += [reading(each, *([index + 3] if index else [])) for index, each in enumerate(other)]
    pairs = [(index, branch) for index in range(4) for branch in (0, 1)]
    mixed = [reading((one, other)[branch][index], *([2 * index - 2 + branch] if index else [])) for index, branch in pairs]
    found = []
    for rows, int8, fp16, last in ((after, (0, 1, 2, 3), (4, 6, 7), (3, 7)), (mixed, (0, 2, 4, 6), (1, 5, 7), (6, 7))):
        files: dict[str, PrecisionName] = {f"o{index}": "int8" if index in int8 else "fp16" for index in (*int8, *fp16)}
        found.append(operator_latencies(network(*rows, reading(total, *last)), DEVICE, "npu", files))
    assert sum(each.boundary_ms for each in found[0]) > 1.0
    assert sorted(each.boundary_ms for each in found[0]) == pytest.approx(sorted(each.boundary_ms for each in found[1]))
    assert sum(each.latency_ms for each in found[0]) == pytest.approx(sum(each.latency_ms for each in found[1]))


def test_precision_follows_the_edges() -> None:
    """An activation behind an INT8 convolution is INT8, whatever ran in between."""
    relu = row("activation", 64, 64, operation="relu")
    rows = (reading(row()), reading(row()), reading(relu, 0), reading(relu, 1), reading(row("elementwise", 64, 64, operation="add"), 2, 3))
    found = operator_latencies(network(*rows), DEVICE, "cpu", {"o0": "int8", "o1": "fp16"})
    assert [one.precision for one in found] == ["int8", "fp16", "int8", "fp16", "fp16"]


def test_rows_that_read_the_networks_inputs_cross_no_boundary() -> None:
    rows = (reading(row()), reading(row("shuffle", 64, 64, operation="permute")))
    assert [one.boundary_ms for one in operator_latencies(network(*rows), DEVICE, "npu", "int8")] == [0.0, 0.0]
