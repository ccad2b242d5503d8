"""Programs on the network's own memory, as files are written from: nothing is copied, and nothing of the network changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.export import backend_named
from mcompress.export.backend import captured
from mcompress.targets.exports import CoreMLConfig, ExecuTorchConfig, ExportConfig, OnnxConfig, TFLiteConfig

CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "coreml": CoreMLConfig(), "tflite": TFLiteConfig(), "executorch": ExecuTorchConfig()}


class Masked(nn.Module):
    """What writers are tempted to change: a batch norm to fold, a slope in place, a mask with infinities, a constant factor behind weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.linear = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)
        self.norm.running_mean = torch.randn(8)
        self.register_buffer("mask", torch.tensor([0.0, 0, -torch.inf, 0, 0, -torch.inf]))

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, 6, 6) -> (1, 8, 6, 6)."""
        return torch.softmax(self.linear(self.relu(self.norm(self.conv(image)))) * 0.5 + self.mask, -1)


def kept(network: nn.Module) -> dict[str, tuple[int, Tensor]]:
    return {name: (value.data_ptr(), value.clone()) for name, value in network.state_dict().items()}


def assert_unchanged(network: nn.Module, before: dict[str, tuple[int, Tensor]], learns: bool) -> None:
    after = network.state_dict()
    assert after.keys() == before.keys()
    for name, (place, value) in before.items():
        assert after[name].data_ptr() == place, name
        assert torch.equal(after[name], value), name
    assert all(one.requires_grad is learns for one in network.parameters())


def test_a_program_on_the_networks_memory_is_the_same_program() -> None:
    network, given = Masked().eval(), torch.rand(1, 3, 6, 6)
    before = kept(network)
    own, shared = (graph_of(export_program(network, given, share_weights=share)) for share in (False, True))
    assert_unchanged(network, before, learns=True)
    assert [node.name for node in own.graph.nodes] == [node.name for node in shared.graph.nodes]
    assert torch.equal(own(given), shared(given))
    places = {one.data_ptr() for one in network.state_dict().values()}
    assert shared.get_parameter("linear.weight").data_ptr() == network.linear.weight.data_ptr()
    assert not places & {one.data_ptr() for one in own.state_dict().values()}


@pytest.mark.export
@pytest.mark.parametrize("backend", list(CONFIGS))
def test_writing_changes_nothing_of_the_network(backend: str, tmp_path: Path) -> None:
    network = Masked().eval()
    before = kept(network)
    with captured(tmp_path / "log.txt"):
        backend_named(backend).write(CONFIGS[backend], network, {"image": torch.rand(1, 3, 6, 6)}, None, tmp_path / "network")
    assert_unchanged(network, before, learns=True)
