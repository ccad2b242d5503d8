"""A plan executed in PyTorch against the converted reference, and against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from everything_int8 import everything_int8, in_fp32
from torch import Tensor, fx, nn
from torch.nn import functional

from mcompress.compress.models.imdn import imdn
from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.simulate import Simulated, simulate
from mcompress.errors import StageError

SHAPE = (1, 3, 16, 16)


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [(torch.rand(SHAPE, generator=generator) * 255).round() / 255 for _ in range(count)]


class Everything(nn.Module):
    """One of every group, with constants and with a tensor that INT8 and float operators read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.last, self.skip = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 3, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.gain = nn.Parameter(torch.tensor([0.37]))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norm(self.first(x)), 0.2)
        y = functional.relu6(self.up(y * 0.5 + self.gain))
        z = functional.max_pool2d(functional.relu(self.skip(y)), 2)
        out: Tensor = self.last(torch.cat((y, functional.interpolate(z, scale_factor=2.0)), 1))
        return torch.sigmoid(out) + out


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(4)
    small = mfagan(channels=8, blocks=((2, 8),))
    nn.init.normal_(small.tail.weight, std=0.05)
    everything = Everything()
    everything.norm.running_var = torch.rand(8) + 0.5
    return {"mfagan": small.eval(), "imdn": imdn(features=16, blocks=1).eval(), "everything": everything.eval()}


def planned(network: nn.Module, inputs: list[Tensor]) -> tuple[fx.GraphModule, PrecisionPlan]:
    module = graph_of(export_program(network, inputs[0]))
    return module, everything_int8(module, inputs)


@pytest.mark.parametrize("name", ["mfagan", "imdn", "everything"])
@pytest.mark.parametrize("kept", ["none", "every third"])
def test_simulation_is_the_reference_program(name: str, kept: str) -> None:
    network, inputs = networks()[name], images(3)
    module, plan = planned(network, inputs)
    if kept == "every third":
        chosen = [node for node in module.graph.nodes if node.target == torch.ops.aten.conv2d.default][::3]
        plan = in_fp32(plan, {end.name for node in chosen for end in (node, kinds.fused_activation(node)) if end is not None})
    assert plan.counts()["int8"] > 2
    reference, simulated = reference_program(network, inputs[0], plan), Simulated(module, plan)
    with torch.no_grad():
        for value in inputs:
            assert torch.equal(simulated(value), reference(value))
            assert not torch.equal(simulated(value), network(value))


def test_a_float_plan_is_the_network() -> None:
    network, x = networks()["everything"], images(1)[0]
    module, plan = planned(network, images(2))
    plan = in_fp32(plan, set(plan.int8_names()))
    with torch.no_grad():
        assert torch.equal(simulate(module, plan, x), module(x))


def test_fp16_rounds_inputs_weights_and_results() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval(), torch.rand(SHAPE)
    convolution = network[0]
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None  # noqa: PT018
    module, plan = planned(network, images(2))
    plan = PrecisionPlan(tuple(replace(o, precision="fp16") for o in plan.operators), {})
    with torch.no_grad():
        expected = functional.conv2d(x.half().float(), convolution.weight.half().float(), convolution.bias.half().float(), padding=1).half().float()
        assert torch.equal(simulate(module, plan, x), expected)


def test_gradients_pass_through_the_rounding() -> None:
    network, x = networks()["mfagan"], images(1)[0]
    module, plan = planned(network, images(3))
    module.requires_grad_(True)
    loss = (Simulated(module, plan)(x) - module(x).detach()).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0


def test_every_result_is_shown_as_it_is_read() -> None:
    network, x = networks()["mfagan"], images(1)[0]
    module, plan = planned(network, images(3))
    seen: dict[str, Tensor] = {}

    def watch(node: fx.Node, value: Tensor) -> None:
        seen[node.name] = value

    with torch.no_grad():
        output = Simulated(module, plan, watch)(x)
    assert set(seen) == {operator.name for operator in plan.operators} | {"x"}
    assert torch.equal(seen[plan.operators[-1].name], output)
    found = plan.ranges["relu"]
    levels = seen["relu"] / found.scale + found.zero_point
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_a_missing_range_is_an_error() -> None:
    network, x = networks()["mfagan"], images(1)[0]
    module, plan = planned(network, images(2))
    with pytest.raises(StageError, match="no range for"):
        simulate(module, replace(plan, ranges={}), x)
