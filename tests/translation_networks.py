"""Small generators of image translation with the operators of the published ones, and plans for them; images are (N, 3, H, W) in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from int8_plans import quiet
from torch import Tensor, fx, nn

from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.plan import Precision, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.uniform import uniform_plan

SIDE = 32
WIDTH = 4


def resnet_generator(*, separable: bool = True, width: int = WIDTH) -> nn.Module:
    """Two convolutions with stride 2, two residual blocks, two transposed convolutions; reflection padding and instance norms without parameters."""
    torch.manual_seed(7)
    return ResnetGenerator(width, separable=separable).eval()


def unet_generator() -> nn.Module:
    """Three levels with skips by concatenation; batch norms with statistics of their own."""
    torch.manual_seed(8)
    found = UnetGenerator()
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    return found.eval()


def images(count: int, side: int = SIDE) -> list[Tensor]:
    """Blocks of few colours with noise, each (1, 3, side, side) in [-1, 1]."""
    source = torch.Generator().manual_seed(9)
    found = []
    for _ in range(count):
        coarse = torch.rand(1, 3, 4, 4, generator=source) * 2 - 1
        found.append((nn.functional.interpolate(coarse, (side, side)) + 0.1 * torch.randn(1, 3, side, side, generator=source)).clamp(-1, 1))
    return found


def graph(network: nn.Module) -> fx.GraphModule:
    """The graph that plans speak of."""
    return graph_of(export_program(network, images(1)[0]))


def int8_plan(module: fx.GraphModule, inputs: Sequence[Tensor], otherwise: Precision = "fp32") -> PrecisionPlan:
    """INT8 for all that can be, with ranges from these inputs."""
    ranges, _ = calibrate(module, ((one,) for one in inputs), "mse", [(-1.0, 1.0)], len(inputs), quiet)
    return uniform_plan(module, ranges, otherwise)


def mixed_plan(module: fx.GraphModule, inputs: Sequence[Tensor]) -> PrecisionPlan:
    """Runs of INT8, FP16 and FP32 operators one after another, and what is enclosed by INT8 operators INT8, as the planner has it."""
    plan = int8_plan(module, inputs)
    order: tuple[Precision, ...] = ("int8", "int8", "int8", "fp16", "fp32")
    chosen: dict[str, Precision] = {}
    for at, operator in enumerate(plan.operators):
        wanted = order[at * 7 // 5 % len(order)]
        chosen[operator.name] = wanted if operator.precision == "int8" or wanted != "int8" else "fp16"
    nodes = [node for node in kinds.operators(module.graph) if kinds.group_of(node) is not None]
    before: dict[str, Precision] = {}
    while before != chosen:
        before = dict(chosen)
        for node in nodes:
            if kinds.is_fused(node):
                chosen[node.name] = chosen[node.all_input_nodes[0].name]
                continue
            around = [other for other in (*kinds.activations(node), *(kinds.fused_activation(node) or node).users) if other.op == "call_function"]
            leaves = any(user.op == "output" for user in node.users)
            if kinds.group_of(node) != "weighted" and not leaves and all(chosen[other.name] == "int8" for other in around):
                chosen[node.name] = "int8"
    return replace(plan, operators=tuple(replace(operator, precision=chosen[operator.name]) for operator in plan.operators))


class _Block(nn.Module):
    def __init__(self, width: int, *, separable: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), *_convolution(width, separable=separable), nn.InstanceNorm2d(width), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.ReflectionPad2d(1), *_convolution(width, separable=separable), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolution(width: int, *, separable: bool) -> list[nn.Module]:
    if not separable:
        return [nn.Conv2d(width, width, 3)]
    return [nn.Conv2d(width, width, 3, groups=width), nn.InstanceNorm2d(width), nn.Conv2d(width, width, 1)]


class ResnetGenerator(nn.Module):
    def __init__(self, width: int, *, separable: bool) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.InstanceNorm2d(4 * width), nn.ReLU(inplace=True),
            _Block(4 * width, separable=separable), _Block(4 * width, separable=separable),
            nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(2 * width), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(width), nn.ReLU(inplace=True),
            nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result


class UnetGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _Level(3, WIDTH, _Level(WIDTH, 2 * WIDTH, _Level(2 * WIDTH, 4 * WIDTH, None, outermost=False), outermost=False), outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x)
        return result


class _Level(nn.Module):
    def __init__(self, outer: int, inner: int, below: nn.Module | None, *, outermost: bool) -> None:
        super().__init__()
        self.outermost = outermost
        down: list[nn.Module] = [nn.Conv2d(outer, inner, 4, 2, 1, bias=outermost)]
        up: list[nn.Module] = [nn.ReLU(inplace=True), nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1, bias=outermost)]
        if not outermost:
            down = [nn.LeakyReLU(0.2, inplace=True), *down] + ([nn.BatchNorm2d(inner)] if below is not None else [])
            up = [*up, nn.BatchNorm2d(outer)]
        self.body = nn.Sequential(*down, *([below] if below is not None else []), *up, *([nn.Tanh()] if outermost else []))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result if self.outermost else torch.cat((x, result), 1)
