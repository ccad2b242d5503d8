"""TFLite files without this project's exporter: layouts that nothing proves, fresh weights, and operators that are newer than the schema."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from applied import Apply
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.export.backend import captured
from mcompress.export.tables import table_of_file
from mcompress.targets.operators import Operator

pytestmark = pytest.mark.export
IMAGE = (1, 16, 24, 20)


def converted(network: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """Channels first at the border, as litert-torch converts where it is not told otherwise."""
    import litert_torch

    path = folder / "network.tflite"
    with captured(folder / "log.txt"), warnings.catch_warnings(action="ignore"):
        litert_torch.convert(network.eval(), (torch.rand(shape),)).export(str(path))
    return path


def shapes(rows: tuple[Operator, ...]) -> list[tuple[object, ...]]:
    return [(row.kind, row.macs, row.input_shape, row.output_shape) for row in rows]


def _excited(module: Apply, x: Tensor) -> Tensor:
    return x * torch.sigmoid(module.up(functional.relu(module.down(x.mean((2, 3), keepdim=True)))))


@pytest.mark.parametrize("function", [_excited, lambda _, x: torch.softmax(x, 1) + x, lambda _, x: (x * x).sum(1)])
def test_a_tensor_that_merely_leaves_keeps_its_axes(function: Callable[[Apply, Tensor], Tensor], tmp_path: Path) -> None:
    network = Apply(function, down=nn.Conv2d(16, 4, 1), up=nn.Conv2d(4, 16, 1))
    assert shapes(table_of_file(converted(network, IMAGE, tmp_path)).table.operators) == shapes(operator_table(network, IMAGE).operators)


@pytest.mark.parametrize("groups", [4, 16])
def test_a_fresh_group_normalization_is_one_row(groups: int, tmp_path: Path) -> None:
    """Its factor and shift are ones and zeros, which the converter folds away."""
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(groups, 16), nn.SiLU(), nn.Conv2d(16, 4, 1))
    assert shapes(table_of_file(converted(network, IMAGE, tmp_path)).table.operators) == shapes(operator_table(network, IMAGE).operators)


def test_an_operator_that_is_newer_than_the_schema_is_named(tmp_path: Path) -> None:
    path = converted(nn.Sequential(nn.Conv2d(16, 4, 1), nn.Tanh()), IMAGE, tmp_path)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))
    (code,) = (code for code in model.operatorCodes if code.builtinCode == schema.BuiltinOperator.TANH)
    code.builtinCode = 9999
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    (unknown,) = table_of_file(path).table.unknown
    assert (unknown.operation, unknown.kind) == ("BUILTIN_9999", "other")
    assert unknown.macs > 0
