"""Scales that integer kernels can work with, for tensors that are nearly constant."""

from __future__ import annotations

import pytest
import torch
from int8_plans import int8_plan
from torch import Tensor, fx, nn

from mcompress.compress.quantize.fake_quant import weight_scales
from mcompress.compress.quantize.plan import ActivationRange
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.representable import LARGEST_FACTOR, LARGEST_LEAKY, LEAST_ADDED, LEAST_LEAKY, representable

SHAPE = (1, 3, 8, 8)


class Dying(nn.Module):
    """A convolution whose results are all zero, read by another one and added to something large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dead, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        nn.init.zeros_(self.dead.weight)
        nn.init.zeros_(self.dead.bias)  # type: ignore[arg-type]
        self.dead.weight.data[0, 0, 0, 0] = 1e-9

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return 100.0 * y + self.last(torch.relu(self.dead(y)))


def input_of(graph: fx.GraphModule) -> str:
    return next(node.name for node in graph.graph.nodes if node.op == "placeholder")


def test_no_factor_leaves_what_kernels_take() -> None:
    torch.manual_seed(0)
    network, x = Dying().eval().requires_grad_(requires_grad=False), torch.rand(SHAPE)
    plan = int8_plan(network, [x])
    graph = graph_of(export_program(network, x))
    scale = {name: found.scale for name, found in plan.ranges.items()}
    factors = {
        "conv2d_1": scale["conv2d"] * float(weight_scales(network.dead.weight.detach(), 0).max()) / scale["relu"],
        "conv2d_2": scale["relu"] * float(weight_scales(network.last.weight.detach(), 0).max()) / scale["conv2d_2"],
        "add, first": scale["mul"] / scale["add"],
        "add, second": scale["conv2d_2"] / scale["add"],
    }
    assert all(value <= LARGEST_FACTOR * 1.001 for value in factors.values()), factors
    assert factors["add, first"] >= LEAST_ADDED * 0.999
    assert factors["add, second"] >= LEAST_ADDED * 0.999
    assert representable(graph, plan.ranges) == plan.ranges, "once is enough"


def test_ordinary_scales_stay_as_they_are() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval(), torch.rand(SHAPE)
    graph = graph_of(export_program(network, x))
    ranges = {name: ActivationRange(0.01, 0) for name in (input_of(graph), "conv2d", "relu", "conv2d_1")}
    assert representable(graph, ranges) == ranges


@pytest.mark.parametrize(("slope", "largest"), [(0.2, LARGEST_LEAKY), (4.0, LARGEST_LEAKY / 4)])
def test_leaky_relus_have_limits_of_their_own(slope: float, largest: float) -> None:
    graph = graph_of(export_program(nn.Sequential(nn.LeakyReLU(slope)).eval(), torch.rand(SHAPE)))
    fine = {input_of(graph): ActivationRange(1e-4, 0), "leaky_relu": ActivationRange(1.0, 0)}
    assert representable(graph, fine) == fine | {input_of(graph): ActivationRange(LEAST_LEAKY, 0)}
    coarse = {input_of(graph): ActivationRange(1.0, 0), "leaky_relu": ActivationRange(1e-4, 0)}
    assert representable(graph, coarse) == coarse | {"leaky_relu": ActivationRange(1.0 / largest, 0)}


@pytest.mark.export
def test_a_network_with_dead_channels_runs_in_litert(tmp_path) -> None:
    from mcompress.export import backend_named
    from mcompress.targets.exports import TFLiteConfig

    torch.manual_seed(0)
    network, x = Dying().eval(), torch.rand(SHAPE)
    backend = backend_named("tflite")
    written = backend.write(TFLiteConfig(), network, {"input": x}, int8_plan(network, [x]), tmp_path / "dying")
    assert written.coverage.by_unit == {"xnnpack": written.coverage.total}
    with torch.no_grad():
        expected = network(x)
    found = torch.from_numpy(backend.load(written.path, 1).run(x.numpy()))
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
