"""The walk over files of real networks against the operator table, with which it shares no code, and the floors by the files alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from int8_plans import int8_plan
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.export import onnx as backend
from mcompress.export.backend import captured
from mcompress.export.walked import walk
from mcompress.targets.exports import OnnxConfig

SIDE = 16
PIXELS = SIDE * SIDE
SHAPE = (1, 3, SIDE, SIDE)
PICK = ModelSpec("mfagan", {"channels": 32, "blocks": [[3, 32]] * 3}, (), SHAPE)
ESRGAN = ModelSpec("rrdb", {}, (), SHAPE)
SPECS = {
    "pick": PICK,
    "uneven mfagan": ModelSpec("mfagan", {"channels": 24, "blocks": [[2, 40], [1, 16], [4, 8]]}, (), SHAPE),
    "imdn": ModelSpec("imdn", {}, (), SHAPE),
    "own": ModelSpec("my_network:build", {"width": 16, "blocks": 2}, (), SHAPE),
    "esrgan": ESRGAN,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """A network of SPECS and its float file, written once."""
    folder, kept = tmp_path_factory.mktemp("walked"), dict[str, tuple[nn.Module, Path]]()

    def make(name: str) -> tuple[nn.Module, Path]:
        if name not in kept:
            network = build(SPECS[name]).eval()
            with captured(folder / "log.txt"):
                kept[name] = network, backend.write(OnnxConfig(), network, {"input": torch.rand(SHAPE)}, None, folder / name).path
        return kept[name]

    return make


@pytest.mark.export
@pytest.mark.parametrize("name", SPECS)
def test_the_exported_file_costs_what_the_operator_table_says(
    name: str, exported: Callable[[str], tuple[nn.Module, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "own_network"))
    network, path = exported(name)
    table, cost = operator_table(network, SHAPE), walk(path)
    assert (cost.macs, cost.peak_activation_elements) == (table.macs, table.peak_activation_elements)


@pytest.mark.export
def test_floors_hold_by_the_files_alone(exported: Callable[[str], tuple[nn.Module, Path]]) -> None:
    """Published ESRGAN, and a network of the kind that the search picks: 42.9 times less work and 8.3 times less memory."""
    original, student = walk(exported("esrgan")[1]), walk(exported("pick")[1])
    assert original.macs == 17_926_848 * PIXELS
    assert original.peak_activation_elements == 2_048 * PIXELS
    assert student.macs <= 417_900 * PIXELS
    assert original.macs >= 42.9 * student.macs
    assert original.peak_activation_elements >= 8.3 * student.peak_activation_elements


@pytest.mark.export
def test_the_mixed_file_costs_what_the_float_file_costs(exported: Callable[[str], tuple[nn.Module, Path]], tmp_path: Path) -> None:
    network, path = exported("pick")
    example = torch.rand(SHAPE)
    with captured(tmp_path / "log.txt"):
        mixed = backend.write(OnnxConfig(), network, {"input": example}, int8_plan(network, [example]), tmp_path / "mixed")
    assert mixed.precision_counts["int8"] > 0
    assert (walk(mixed.path).macs, walk(mixed.path).peak_activation_elements) == (walk(path).macs, walk(path).peak_activation_elements)


@pytest.mark.export
@pytest.mark.parametrize("opset", [18, 23])
def test_attention_is_the_same_work_however_it_is_exported(opset: int, tmp_path: Path) -> None:
    """Opset 18 has no attention: it is written as products and a softmax. Memory may then differ, work may not."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.layer = nn.Conv2d(3, 32, 4, 4), nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.layer(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, (SIDE // 4, SIDE // 4))

    network = Attends().eval()
    with captured(tmp_path / "log.txt"):
        written = backend.write(OnnxConfig(opset=opset), network, {"input": torch.rand(SHAPE)}, None, tmp_path / "attends")
    assert ("Attention" in {item.op_type for item in onnx.load(str(written.path)).graph.node}) == (opset == 23)
    assert walk(written.path).macs == operator_table(network, SHAPE).macs
