"""Which operators of two networks are the same one, and to which the milliseconds of a difference belong."""

from __future__ import annotations

from pathlib import Path

import pytest
from gate_bundles import a_comparison, convolution, gate_bundle, shuffle, table
from gate_checks import check

from mcompress.export.comparison import EstimatedFile, EstimatedOperator
from mcompress.reports.gate.operators import operator_changes
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.speeds import PrecisionName


def estimated(operators: tuple[Operator, ...], precisions: dict[str, PrecisionName] | PrecisionName = "fp16") -> EstimatedFile:
    comparison = a_comparison(OperatorTable(operators, 0), precisions)
    return comparison.estimates_with(comparison.constants)["tiny-float.onnx"]


def rows_of(operators: tuple[Operator, ...], precisions: dict[str, PrecisionName] | PrecisionName = "fp16") -> tuple[EstimatedOperator, ...]:
    return estimated(operators, precisions).operators


def test_operators_are_matched_by_name_then_by_kind_in_order() -> None:
    old = rows_of((convolution("head", 3, 64), convolution("a", 64, 64), convolution("b", 64, 64), shuffle("up")))
    new = rows_of((convolution("head", 3, 64), convolution("x", 64, 64), convolution("extra", 64, 64), convolution("b", 64, 64), shuffle("last")))
    changes = {change.name: change for change in operator_changes(old, new)}
    assert (changes["x"].what, changes["x"].detail) == ("changed", "was a")
    assert changes["extra"].what == "added"
    assert changes["last"].detail == "was up"
    assert "head" not in changes
    assert "b" not in changes
    back = {change.name: change for change in operator_changes(new, old)}
    assert back["extra"].what == "removed"
    assert back["extra"].gained_ms == -changes["extra"].gained_ms


def test_a_lost_precision_is_named_with_what_it_cost() -> None:
    rows = (convolution("head", 3, 64), convolution("middle", 64, 64))
    old, new = rows_of(rows, {"head": "int8", "middle": "int8"}), rows_of(rows, {"head": "int8", "middle": "fp32"})
    changes = operator_changes(old, new)
    assert any(change.name == "middle" and "int8 -> fp32" in change.detail for change in changes)


def test_every_millisecond_of_the_change_is_assigned_to_an_operator() -> None:
    old, new = estimated(table(64).operators), estimated(table(200).operators)
    gained = sum(change.gained_ms for change in operator_changes(old.operators, new.operators))
    assert gained == pytest.approx(new.latency_ms - old.latency_ms)


def test_the_largest_gain_comes_first(baseline: Path, tmp_path: Path) -> None:
    found = check(baseline, gate_bundle(tmp_path, a_comparison(table(middle=128))))
    gained = [change.gained_ms for change in found.operators["onnx float"]]
    assert gained == sorted(gained, reverse=True)
