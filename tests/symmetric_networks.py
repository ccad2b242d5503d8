"""A network with every group of INT8 operators in a few hundred weights, and plans of it with zero points of 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from int8_plans import quiet
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.uniform import uniform_plan
from mcompress.targets.activations import Activations

SHAPE = (1, 3, 8, 8)


class Branches(nn.Module):
    """Two branches that are concatenated, a transposed convolution, and a factor: weighted, arithmetic, moving and clamping operators."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.cat((y, functional.leaky_relu(self.second(y), 0.1)), 1)
        made: Tensor = self.last(torch.relu(self.up(y)) * 0.3)
        return made


def images(count: int) -> list[Tensor]:
    """8-bit pictures, 0 to 1."""
    source = torch.Generator().manual_seed(4)
    return [(torch.rand(SHAPE, generator=source) * 255).round() / 255 for _ in range(count)]


def symmetric_plan(network: nn.Module, activations: Activations = "symmetric", values: Sequence[Tensor] | None = None) -> PrecisionPlan:
    """INT8 for all that can be, calibrated with three pictures, or with `values` between 0 and 1."""
    given = images(3) if values is None else values
    program = graph_of(export_program(network, given[0]))
    ranges, _ = calibrate(program, ((one,) for one in given), "mse", [(0.0, 1.0)], len(given), quiet, activations)
    return uniform_plan(program, ranges, activations=activations)
