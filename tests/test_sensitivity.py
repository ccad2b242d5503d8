"""What quantizing one operator, one tensor or one operator's weights costs, against the fake-quantized reference and against plain arithmetic."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import pytest
import torch
from int8_plans import quiet
from torch import Tensor, fx, nn

from mcompress.compress.models.mfagan import MFAGenerator, mfagan
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.calibrating import calibrate
from mcompress.compress.quantize.fake_quant import fake_quantize, fake_quantize_weight, sqnr_db
from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator, PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, reference_program
from mcompress.compress.quantize.sensitivity import Sensitivity, decibels, measure_sensitivity
from mcompress.compress.tasks.task import Sample
from mcompress.errors import StageError

SHAPE = (1, 3, 16, 16)


def samples(count: int) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(7)
    for index in range(count):
        yield Sample(f"crop {index}", (torch.rand(SHAPE, generator=generator),), torch.rand((1, 3, 64, 64), generator=generator))


def psnr_db(output: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((output - truth).square().mean()))


@pytest.fixture(scope="module")
def network() -> MFAGenerator:
    torch.manual_seed(3)
    found = mfagan(channels=8, blocks=((2, 8),))
    nn.init.normal_(found.tail.weight, std=0.05)
    return found.eval()


@pytest.fixture(scope="module")
def graph(network: nn.Module) -> fx.GraphModule:
    return graph_of(export_program(network, torch.rand(SHAPE)))


@pytest.fixture(scope="module")
def ranges(graph: fx.GraphModule) -> dict[str, ActivationRange]:
    return calibrate(graph, (one.inputs for one in samples(2)), "minmax", [(0.0, 1.0)], 2, quiet)[0]


@pytest.fixture(scope="module")
def measured(graph: fx.GraphModule, ranges: dict[str, ActivationRange]) -> Sensitivity:
    return measure_sensitivity(graph, samples(2), ranges, psnr_db, 2, quiet)


def only(graph: fx.GraphModule, name: str, ranges: dict[str, ActivationRange]) -> PrecisionPlan:
    """INT8 for one operator with the ReLU fused into it."""
    node = next(node for node in graph.graph.nodes if node.name == name)
    alone = {name, fused.name} if (fused := kinds.fused_activation(node)) else {name}
    operators = (PlannedOperator(n.name, "", kinds.kind_of(n), "int8" if n.name in alone else "fp32", "") for n in kinds.operators(graph.graph))
    return PrecisionPlan(tuple(operators), ranges)


@pytest.mark.parametrize("name", ["conv2d", "conv2d_2", "add"])
def test_alone_it_is_the_reference_with_one_operator(
    network: nn.Module, graph: fx.GraphModule, ranges: dict[str, ActivationRange], measured: Sensitivity, name: str
) -> None:
    reference = reference_program(network, torch.rand(SHAPE), only(graph, name, ranges))
    given = list(samples(2))
    with torch.no_grad():
        expected, found = [network(*one.inputs) for one in given], [reference(*one.inputs) for one in given]
    assert measured.sqnr_db(name, "int8") == pytest.approx(sqnr_db(torch.cat(expected), torch.cat(found)), abs=0.01)
    lost = [psnr_db(a, one.truth) - psnr_db(b, one.truth) for a, b, one in zip(expected, found, given, strict=True)]
    assert measured.quality_lost[name]["int8"] == pytest.approx(sum(lost) / 2, abs=1e-3)
    assert measured.quality == pytest.approx(sum(psnr_db(a, one.truth) for a, one in zip(expected, given, strict=True)) / 2, abs=1e-4)


def test_parts_are_the_rounding_of_one_tensor_and_of_one_operators_weights(
    network: MFAGenerator, ranges: dict[str, ActivationRange], measured: Sensitivity
) -> None:
    given = list(samples(2))
    with torch.no_grad():
        expected = torch.cat([network(*one.inputs) for one in given])
        rounded = torch.cat([network(fake_quantize(one.picture, ranges["x"])) for one in given])
        assert decibels(measured.reads["conv2d"]["x"]) > sqnr_db(expected, rounded), "the other branch keeps the input exact"  # type: ignore[operator]
        graph = graph_of(export_program(network, torch.rand(SHAPE)))
        last = [node.name for node in graph.graph.nodes if node.name in measured.tensors][-1]
        whole = torch.cat([network(*one.inputs) for one in given])
        assert decibels(measured.tensors[last]) == pytest.approx(sqnr_db(whole, fake_quantize(whole, ranges[last])), abs=0.01)
        kept = network.head.weight.clone()
        network.head.weight.copy_(fake_quantize_weight(kept, 0))
        coarse = torch.cat([network(*one.inputs) for one in given])
        network.head.weight.copy_(kept)
    assert decibels(measured.weights["conv2d"]) == pytest.approx(sqnr_db(expected, coarse), abs=0.01)


def test_half_precision_costs_less_than_int8(measured: Sensitivity) -> None:
    both = [found for found in measured.alone.values() if "int8" in found and found["int8"] > 0]
    assert len(both) > 5
    assert all(found["fp16"] < found["int8"] for found in both)


def test_it_survives_the_cache(measured: Sensitivity) -> None:
    assert Sensitivity.from_json(measured.to_json()) == measured


def test_an_activation_beyond_half_precision_is_infinitely_noisy(network: MFAGenerator) -> None:
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x) * 1e-6)

    torch.manual_seed(0)
    loud = Loud().eval()
    with torch.no_grad():
        loud.up.weight.fill_(1e5)
    graph = graph_of(export_program(loud, torch.rand(SHAPE)))
    ranges = calibrate(graph, (one.inputs for one in samples(1)), "minmax", [(0.0, 1.0)], 1, quiet)[0]
    given = (Sample(one.name, one.inputs, one.picture) for one in samples(1))
    found = measure_sensitivity(graph, given, ranges, psnr_db, 1, quiet)
    assert found.alone["conv2d"]["fp16"] == math.inf
    assert math.isfinite(found.alone["conv2d"]["int8"])
    assert Sensitivity.from_json(found.to_json()).alone["conv2d"]["fp16"] == math.inf


def test_without_samples_it_says_so(graph: fx.GraphModule, ranges: dict[str, ActivationRange]) -> None:
    with pytest.raises(StageError, match="no calibration samples"):
        measure_sensitivity(graph, samples(0), ranges, psnr_db, 0, quiet)


def test_memory_does_not_grow_with_the_number_of_samples(graph: fx.GraphModule, ranges: dict[str, ActivationRange]) -> None:
    def most_alive(count: int) -> int:
        """Elements of all tensors that the measurement holds at once, and of nothing that was there before."""
        found = 0

        def looking(output: Tensor, truth: Tensor) -> float:
            nonlocal found
            gc.collect()
            found = max(found, sum(item.numel() for item in gc.get_objects() if issubclass(type(item), Tensor)))
            return psnr_db(output, truth)

        gc.collect()
        gc.freeze()
        try:
            measure_sensitivity(graph, samples(count), ranges, looking, count, quiet)
        finally:
            gc.unfreeze()
        return found

    two = most_alive(2)
    assert two > sum(value.numel() for value in graph.state_dict().values()) / 10, "what is measured is seen"
    assert most_alive(5) == two
