"""Files of torch's older exporter (TorchScript), which computes sizes inside the graph: the rows of the network, at fixed and at open sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from applied import Apply
from operator_rows import row_of
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.errors import UsageError
from mcompress.export.tables import table_of_file

pytestmark = pytest.mark.export
SHAPE = (1, 8, 16, 16)


def _conv(inputs: int = 8, outputs: int = 12) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _enlarged(module: Apply, x: Tensor) -> Tensor:
    y = functional.interpolate(module.one(x), scale_factor=2.0)
    batch, channels, height, width = y.shape
    y = y.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    return functional.interpolate(functional.pixel_shuffle(y, 2), size=(height, width), mode="bilinear")


def _padded(module: Apply, x: Tensor) -> Tensor:
    y = functional.pad(module.one(x), (0, (5 - x.shape[3] % 5) % 5, 0, 1), mode="reflect")
    return module.two(torch.cat(y.chunk(3, 1)[::-1], 1))


def _in_windows(module: Apply, x: Tensor) -> Tensor:
    y = module.one(x)
    batch, channels, height, width = y.shape
    return module.linear(y.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "upsampling, view, pixel shuffle": lambda: Apply(_enlarged, one=_conv()),
    "padding by the input's size": lambda: Apply(_padded, one=_conv(), two=_conv(12, 4)),
    "windows": lambda: Apply(_in_windows, one=_conv(), linear=nn.Linear(12, 6)),
    "group normalization": lambda: nn.Sequential(_conv(), nn.GroupNorm(3, 12), nn.ReLU()),
    "layer normalization": lambda: nn.Sequential(_conv(), nn.LayerNorm((12, 16, 16))),
    "normalization of single channels": lambda: nn.Sequential(_conv(), nn.GroupNorm(12, 12), nn.ReLU()),
    "gelu of tanh": lambda: nn.Sequential(_conv(), nn.GELU(approximate="tanh")),
    "limits": lambda: Apply(lambda m, x: m.one(x).clamp(min=0).clamp(max=2), one=_conv()),
    "flattened": lambda: Apply(lambda m, x: m.linear(m.one(x).view(x.size(0), -1)), one=_conv(), linear=nn.Linear(12 * 256, 5)),
}


def legacy(network: nn.Module, path: Path, opset: int, open_sizes: dict[int, str] | None = None) -> Path:
    """Exported with `dynamo=False`."""
    axes = {"input_names": ["x"], "dynamic_axes": {"x": open_sizes}} if open_sizes else {}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(network.eval(), (torch.rand(SHAPE),), str(path), dynamo=False, opset_version=opset, **axes)
    return path


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_older_export_has_the_rows_of_the_network(name: str, opset: int, tmp_path: Path) -> None:
    network = NETWORKS[name]()
    read = table_of_file(legacy(network, tmp_path / "legacy.onnx", opset))
    assert [row_of(row) for row in read.table.operators] == [row_of(row) for row in operator_table(network, SHAPE).operators]
    assert not read.table.unknown


@pytest.mark.parametrize("name", [name for name in NETWORKS if "normalization" not in name])
def test_open_sizes(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]()
    rows = [row_of(row) for row in operator_table(network, SHAPE).operators]
    batch = table_of_file(legacy(network, tmp_path / "batch.onnx", 17, {0: "batch"}))
    assert batch.facts.assumed == "batch 1 assumed, which the file leaves open"
    assert [row_of(row) for row in batch.table.operators] == rows
    path = legacy(network, tmp_path / "all.onnx", 17, {0: "batch", 2: "height", 3: "width"})
    with pytest.raises(UsageError, match=r"the file leaves sizes open \(x: batch,8,height,width\); give --input SHAPE"):
        table_of_file(path)
    assert [row_of(row) for row in table_of_file(path, SHAPE).table.operators] == rows
