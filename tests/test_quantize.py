"""Calibration, the precision plan, and the fake-quantized reference, against plain numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_plans import int8_plan, quiet
from torch import Tensor, nn
from torch.nn import functional

from mcompress.calibration.observers import Observer
from mcompress.compress.models.mfagan import MFAGenerator, mfagan
from mcompress.compress.models.spec import InputSpec
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.calibrating import calibrate, checked
from mcompress.compress.quantize.fake_quant import fake_quantize, fake_quantize_weight, sqnr_db
from mcompress.compress.quantize.plan import ActivationRange, PlannedOperator
from mcompress.compress.quantize.program import check_against_plan, export_program, graph_of, int8_operators, reference_program
from mcompress.compress.tasks.task import Sample
from mcompress.errors import StageError

EXAMPLE = (1, 3, 16, 16)
PICTURE = (InputSpec("input", EXAMPLE, (0.0, 1.0)),)


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.rand(EXAMPLE, generator=generator) * 255).round() / 255 for _ in range(count)]


def small() -> MFAGenerator:
    torch.manual_seed(3)
    network = mfagan(channels=8, blocks=((2, 8),))
    nn.init.normal_(network.tail.weight, std=0.05)
    return network.eval()


class Mixed(nn.Module):
    """One of every group: weighted, fused, arithmetic with a constant, moving, clamping, and one that must stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.last, self.skip = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 3, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norm(self.first(x)), 0.2)
        y = functional.relu6(self.up(self.drop(y * 0.5)))
        z = functional.max_pool2d(functional.relu(self.skip(y)), 2)
        return torch.sigmoid(self.last(torch.cat((y, functional.interpolate(z, scale_factor=2.0)), 1)))


def mixed() -> Mixed:
    torch.manual_seed(5)
    network = Mixed()
    network.norm.running_mean = torch.rand(8) - 0.5
    network.norm.running_var = torch.rand(8) + 0.5
    return network.eval()


def test_image_range_is_exactly_one_step_per_grey_level() -> None:
    found = ActivationRange.from_bounds(0.0, 1.0)
    assert found.zero_point == -128
    assert found.scale == float(np.float32(1 / 255))
    levels = torch.arange(256, dtype=torch.float32) / 255
    assert torch.allclose(fake_quantize(levels, found), levels, atol=1e-7)


def test_no_grey_level_of_a_picture_around_zero_lies_half_way_between_two_steps() -> None:
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    plain, chosen = ActivationRange.from_bounds(-1.0, 1.0), ActivationRange.of_pictures(-1.0, 1.0)
    assert all(abs(float(level) / plain.scale % 1 - 0.5) < 1e-4 for level in levels)
    assert all(abs(float(level) / chosen.scale % 1 - 0.5) > 1e-3 for level in levels)
    assert chosen.bounds[0] <= -1 + 1e-6
    assert chosen.bounds[1] >= 1
    assert ActivationRange.of_pictures(0.0, 1.0) == ActivationRange.from_bounds(0.0, 1.0)


@given(low=st.floats(-1e4, 0), high=st.floats(0, 1e4))
def test_every_range_represents_zero_exactly(low: float, high: float) -> None:
    found = ActivationRange.from_bounds(low, high)
    assert -128 <= found.zero_point <= 127
    assert float(fake_quantize(torch.zeros(1), found)) == 0.0
    assert found.bounds[0] - found.scale <= low
    assert high <= found.bounds[1] + found.scale


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40), st.floats(0.001, 0.1), st.integers(-128, 127))
def test_fake_quantization_is_ten_lines_of_numpy(values: list[float], scale: float, zero_point: int) -> None:
    scale = float(np.float32(scale))
    x = np.array(values, dtype=np.float32)
    q = np.clip(np.rint(x * (np.float32(1) / np.float32(scale))) + zero_point, -128, 127)
    expected = (q - zero_point) * np.float32(scale)
    found = fake_quantize(torch.from_numpy(x), ActivationRange(scale, zero_point)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_symmetric_per_output_channel(axis: int) -> None:
    weight = torch.randn(4, 6, 3, 3)
    moved = np.moveaxis(weight.numpy(), axis, 0).reshape(weight.shape[axis], -1)
    scale = np.abs(moved).max(axis=1, keepdims=True) / 127
    expected = np.rint(moved / scale) * scale
    found = np.moveaxis(fake_quantize_weight(weight, axis).numpy(), axis, 0).reshape(weight.shape[axis], -1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), min_size=1, max_size=6), st.randoms())
def test_streamed_histogram_is_the_histogram_of_everything(chunks: list[list[float]], order: object) -> None:
    observer, reverse = Observer(64), Observer(64)
    for chunk in chunks:
        observer.observe(torch.tensor(chunk))
    for chunk in reversed(chunks):
        reverse.observe(torch.tensor(chunk))
    everything = np.concatenate([np.array(chunk, dtype=np.float32) for chunk in chunks]).astype(np.float64)
    assert (observer.low, observer.high) == (everything.min(), everything.max())
    expected = np.bincount(np.floor(everything / observer.width).astype(int) + 32, minlength=64)
    np.testing.assert_array_equal(observer.counts, expected)
    np.testing.assert_array_equal(observer.counts, reverse.counts)
    assert observer.total == everything.size
    assert len(observer.counts) == 64


def test_ranges_by_each_method() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(size=200_000), [60.0]]).astype(np.float32)
    observer = Observer()
    for part in np.array_split(values, 17):
        observer.observe(torch.from_numpy(part))
    assert observer.bounds("minmax") == (float(values.min()), 60.0)
    low, high = observer.bounds("percentile")
    assert low == pytest.approx(np.percentile(values, 0.005), abs=2 * observer.width)
    assert high == pytest.approx(np.percentile(values, 99.995), abs=2 * observer.width)
    tensor = torch.from_numpy(values)
    error = {
        method: float((tensor - fake_quantize(tensor, ActivationRange.from_bounds(*observer.bounds(method)))).square().mean())
        for method in ("minmax", "mse")
    }
    assert error["mse"] < error["minmax"]


def test_observer_refuses_nan_and_emptiness() -> None:
    with pytest.raises(ValueError, match="finite"):
        Observer().observe(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="at least one sample"):
        Observer().bounds("mse")
    with pytest.raises(ValueError, match="multiple of 4"):
        Observer(10)


def test_all_zero_activations_have_a_range() -> None:
    observer = Observer()
    observer.observe(torch.zeros(10))
    assert fake_quantize(torch.zeros(3), ActivationRange.from_bounds(*observer.bounds("mse"))).abs().max() == 0


def test_reference_of_one_convolution_is_plain_numpy() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    plan = int8_plan(network, images(3))
    assert [operator.precision for operator in plan.operators] == ["int8", "int8"]
    x = images(1)[0]
    (given,) = set(plan.ranges) - {"conv2d", "relu"}
    assert plan.ranges[given] == ActivationRange.from_bounds(0.0, 1.0)
    convolution = network[0]
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        weight = fake_quantize_weight(convolution.weight, 0)
        expected = functional.conv2d(fake_quantize(x, plan.ranges[given]), weight, convolution.bias, padding=1).relu()
        found = reference_program(network, x, plan)(x)
    step = plan.ranges["relu"].scale
    # A value that lies on the border between two integers may fall on either side: equal but for a few single steps.
    difference = (found - fake_quantize(expected, plan.ranges["relu"])).abs()
    assert float(difference.max()) <= step * 1.001
    assert float((difference > step / 2).float().mean()) < 1e-3


def test_float_plan_gives_the_network_itself() -> None:
    network, x = small(), images(1)[0]
    plan = int8_plan(network, images(3))
    floats = replace(plan, operators=tuple(replace(operator, precision="fp16") for operator in plan.operators))
    reference = reference_program(network, x, floats)
    with torch.no_grad():
        assert torch.equal(reference(x), network(x))


def test_folding_keeps_the_function_and_the_names() -> None:
    network, x = mixed(), images(1)[0]
    program = export_program(network, x)
    names = [node.name for node in kinds.operators(graph_of(program).graph)]
    assert names == [node.name for node in kinds.operators(graph_of(export_program(network, x)).graph)]
    assert not any("batch_norm" in name or "dropout" in name for name in names)
    with torch.no_grad():
        assert torch.allclose(program.module()(x), network(x), atol=1e-6)


def test_plan_says_what_the_quantized_graph_does() -> None:
    network, x = mixed(), images(1)[0]
    plan = int8_plan(network, images(3))
    by_kind = {operator.kind: operator for operator in plan.operators}
    assert by_kind["sigmoid"].precision == "fp16"
    assert "no INT8 kernel" in by_kind["sigmoid"].reason
    assert all(operator.precision == "int8" for operator in plan.operators if operator.kind != "sigmoid")
    reference = reference_program(network, x, plan)
    assert int8_operators(reference.graph) == set(plan.int8_names())
    with torch.no_grad():
        assert sqnr_db(network(x), reference(x)) > 30


def test_tensors_that_are_only_moved_share_a_scale() -> None:
    plan = int8_plan(mixed(), images(3))
    cat, moved, pooled = plan.ranges["cat"], plan.ranges["upsample_nearest2d"], plan.ranges["max_pool2d"]
    assert cat == moved == pooled == plan.ranges["relu6"] == plan.ranges["conv_transpose2d"]


def test_a_plan_that_cannot_be_applied_is_an_error() -> None:
    network, x = mixed(), images(1)[0]
    plan = int8_plan(network, images(3))
    ghost = replace(plan, operators=(*plan.operators, PlannedOperator("conv2d_9", "", "conv2d", "int8", "")))
    with pytest.raises(StageError, match="conv2d_9"):
        reference_program(network, x, ghost)
    reference = reference_program(network, x, plan)
    fewer = replace(plan, operators=tuple(replace(o, precision="fp16") if o.name == "conv2d" else o for o in plan.operators))
    with pytest.raises(StageError, match=r"INT8 but not planned: \['conv2d'\]"):
        check_against_plan(reference, fewer)
    with pytest.raises(StageError, match="no range for"):
        reference_program(network, x, replace(plan, ranges={}))


def test_nan_in_calibration_names_the_operator() -> None:
    network = small()
    with torch.no_grad():
        network.head.weight[0, 0, 0, 0] = float("nan")
    module = graph_of(export_program(network, images(1)[0]))
    with pytest.raises(StageError, match=r"'relu' \(network\): activations between nan"):
        calibrate(module, ((one,) for one in images(1)), "mse", [(0.0, 1.0)], 1, quiet)


def test_a_network_that_cannot_be_traced_is_an_error() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(StageError, match="cannot trace Branches"):
        export_program(Branches(), torch.ones(1, 3, 4, 4))


def sample(value: Tensor) -> Sample:
    return Sample("crop", (value,), value)


def test_calibration_samples_are_looked_at() -> None:
    good = torch.full(EXAMPLE, 0.5)
    assert [one.name for one in checked([sample(good)], PICTURE)] == ["crop"]
    spoiled = good.clone()
    spoiled[0, 0, 0, 0] = float("nan")
    for bad, words in (
        ([], "gave no calibration samples"),
        ([sample(good[:, :, :8])], r"'crop' has shape \(1, 3, 8, 16\); the network is compressed for \(1, 3, 16, 16\)"),
        ([sample(spoiled)], "'crop' holds NaN or infinity"),
        ([sample(good * 255)], r"'crop' has values between 127.5 and 127.5; the network's input range is 0 to 1"),
    ):
        with pytest.raises(StageError, match=words):
            list(checked(bad, PICTURE))


def test_dead_channels_and_constant_tensors_are_quantized_to_themselves() -> None:
    network = small()
    with torch.no_grad():
        network.head.weight[0] = 0.0
        network.head.bias[0] = 0.0
        network.tail.weight.zero_()
        network.tail.bias.fill_(0.25)
    inputs = images(2)
    plan = int8_plan(network, inputs)
    assert all(math.isfinite(found.scale) and found.scale > 0 for found in plan.ranges.values())
    reference = reference_program(network, inputs[0], plan)
    with torch.no_grad():
        assert sqnr_db(network(inputs[0]), reference(inputs[0])) > 30
