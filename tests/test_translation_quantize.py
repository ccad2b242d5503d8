"""Generators for image translation in the precision planner: padding by reflection, instance norms, operators in place, skips that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MemoryCheckpoints
from torch import Tensor, fx, nn
from torch.nn import functional
from translation_networks import graph, images, int8_plan, mixed_plan, resnet_generator, unet_generator

from mcompress.compress.cost import operator_table
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.decisions import named_table
from mcompress.compress.quantize.fake_quant import sqnr_db
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of, int8_operators, reference_program
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.quantize.recovery.centring import centre, centred
from mcompress.compress.quantize.recovery.channels import KEPT, channel_classes
from mcompress.compress.quantize.recovery.equalize import PredictedNoise, equalize, scale_channels
from mcompress.compress.quantize.recovery.noise import measure_noise
from mcompress.compress.quantize.recovery.recover import RecoveryOptions, recover
from mcompress.compress.quantize.simulate import Simulated
from mcompress.compress.stage import StageContext
from mcompress.compress.tasks.task import OneCall, Sample
from mcompress.targets.columns import class_of
from mcompress.targets.operators import Operator
from mcompress.targets.stages import QuantizeConfig

SHAPE = (1, 3, 32, 32)
CONVOLUTIONS = ("conv2d", "conv_transpose2d")


@pytest.fixture(scope="module")
def resnet() -> fx.GraphModule:
    return graph(resnet_generator())


def outputs(module: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(value) for value in inputs])


def nodes_of(module: fx.GraphModule, kind: str) -> list[fx.Node]:
    return [node for node in kinds.operators(module.graph) if kinds.kind_of(node) == kind]


def test_rows_say_what_generators_cost() -> None:
    rows = {row.name: row for row in operator_table(resnet_generator(), SHAPE).operators}
    padding, first, norm = rows["model.0"], rows["model.1"], rows["model.2"]
    assert (padding.kind, padding.operation, class_of(padding)) == ("copy", "reflection_pad", "pad")
    assert (padding.macs, padding.weight_elements, padding.elements_read, padding.elements_written) == (0, 0, 3 * 32 * 32, 3 * 38 * 38)
    assert (first.input_shape, first.macs, first.fused) == ((1, 3, 38, 38), 32 * 32 * 4 * 3 * 49, ())
    assert (norm.kind, norm.operation, norm.fused, norm.weight_elements) == ("normalization", "instance_norm", ("relu",), 0)
    assert class_of(norm) == "image_normalization"
    assert (rows["model.10.body.1"].kind, rows["model.10.body.1"].macs) == ("depthwise_convolution", 8 * 8 * 16 * 9)
    up: Operator = rows["model.12"]
    assert (up.kind, up.macs, up.macs_output_convention) == ("transposed_convolution", 8 * 8 * 16 * 8 * 9, 16 * 16 * 16 * 8 * 9)
    assert rows["model.19"].fused == ("tanh",)
    assert len(rows) == 35


def test_rows_of_the_u_net_fold_batch_norms_into_both_kinds_of_convolutions() -> None:
    rows = operator_table(unet_generator(), SHAPE).operators
    assert [row.kind for row in rows] == [
        *["convolution"] * 3, "transposed_convolution", "concatenate", "activation", "transposed_convolution", "concatenate", "activation",
        "transposed_convolution",
    ]  # fmt: skip
    assert [row.fused for row in rows if row.macs] == [
        ("leaky_relu",), ("native_batch_norm", "leaky_relu"), ("relu",), ("native_batch_norm",), ("native_batch_norm",), ("tanh",),
    ]  # fmt: skip


@pytest.mark.parametrize("network", [resnet_generator(), unet_generator()], ids=["resnet", "unet"])
def test_the_program_changes_nothing_in_place_and_computes_the_same(network: nn.Module) -> None:
    module = graph(network)
    assert not [node for node in module.graph.nodes if str(node.target).split(".")[-2:-1] and str(node.target).split(".")[-2].endswith("_")]
    torch.testing.assert_close(outputs(module, images(2)), outputs(network, images(2)), rtol=0, atol=1e-6)
    table, named = operator_table(network, SHAPE), named_table(module, SHAPE)
    assert [row.macs for row in table.operators] == [row.macs for row in named.operators]


def test_a_skip_reads_what_an_operator_in_place_left_there() -> None:
    module = graph(unet_generator())
    assert [[source.name for source in node.all_input_nodes] for node in nodes_of(module, "cat")] == [
        ["leaky_relu_1", "conv_transpose2d"],
        ["leaky_relu", "conv_transpose2d_1"],
    ]
    assert {kinds.group_of(node) for node in kinds.operators(module.graph) if node.name != "tanh"} == {"weighted", "arithmetic", "moving", "clamping"}


class OwnInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu_(x)
        y[:, :1].mul_(2.0)
        return x + 1.0


def test_what_a_network_writes_into_its_input_is_read_and_not_written() -> None:
    value = images(1)[0]
    kept = value.clone()
    module = graph_of(export_program(OwnInput(), value))
    expected = OwnInput()(kept.clone())
    torch.testing.assert_close(module(value), expected, rtol=0, atol=0)
    torch.testing.assert_close(value, kept, rtol=0, atol=0)


class Paddings(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.pad(x, (1, 1, 1, 1), "reflect") + functional.pad(x, (1, 1, 1, 1), "replicate")
        return y + functional.pad(x, (1, 1, 1, 1)) + functional.pad(x, (1, 1, 1, 1), value=2.0)


def test_only_reflection_on_all_sides_moves_integers() -> None:
    found = nodes_of(graph_of(export_program(Paddings(), images(1)[0])), "pad")
    assert [kinds.group_of(node) for node in found] == ["moving", None, None, None]
    assert all("by reflection" in (kinds.why_float(node) or "") for node in found[1:])


def test_padding_by_reflection_in_int8_is_exact(resnet: fx.GraphModule) -> None:
    plan = int8_plan(resnet, images(3))
    pads = {node.name for node in nodes_of(resnet, "pad")}
    assert len(pads) == 6
    assert pads <= set(plan.int8_names())
    for node in nodes_of(resnet, "pad"):
        assert plan.ranges[node.name] == plan.ranges[node.all_input_nodes[0].name]
    # Rounded before it is padded or behind that: the same numbers.
    apart = replace(plan, operators=tuple(replace(o, precision="fp32") if o.name in pads else o for o in plan.operators))
    torch.testing.assert_close(outputs(Simulated(resnet, plan), images(2)), outputs(Simulated(resnet, apart), images(2)), rtol=0, atol=0)


@pytest.mark.parametrize("choose", [int8_plan, mixed_plan])
@pytest.mark.parametrize("network", [resnet_generator(), unet_generator()], ids=["resnet", "unet"])
def test_the_reference_has_the_plans_int8_operators(network: nn.Module, choose: Callable[[fx.GraphModule, list[Tensor]], PrecisionPlan]) -> None:
    module = graph(network)
    plan = choose(module, images(3))
    reference = reference_program(network, images(1)[0], plan)
    assert int8_operators(reference.graph) == set(plan.int8_names())
    in_fp32 = replace(plan, operators=tuple(replace(o, precision="fp32") if o.precision == "fp16" else o for o in plan.operators))
    torch.testing.assert_close(outputs(reference, images(2)), outputs(Simulated(module, in_fp32), images(2)), rtol=0, atol=1e-6)
    reasons = {kinds.kind_of(node): kinds.why_float(node) for node in kinds.operators(module.graph) if kinds.group_of(node) is None}
    assert all(reason is not None and "no INT8 kernel that all runtimes share" in reason for reason in reasons.values())
    assert set(reasons) <= {"instance_norm", "tanh"}


def test_channels_in_front_of_instance_norms_may_have_any_scale(resnet: fx.GraphModule) -> None:
    classes = channel_classes(resnet)
    before = [node.all_input_nodes[0] for node in nodes_of(resnet, "instance_norm")]
    assert all(node in classes.scalable and KEPT not in classes.of[node] for node in before)
    assert all(set(classes.of[node]) == {KEPT} for node in nodes_of(resnet, "instance_norm"))
    assert classes.count == 1 + sum(len(classes.of[node]) for node in before)
    scales = torch.rand(classes.count, generator=torch.Generator().manual_seed(1)) * 4 + 1
    scales[KEPT] = 1.0
    scaled = scale_channels(resnet, classes, scales)
    assert sqnr_db(outputs(resnet, images(2)), outputs(scaled, images(2))) > 50.0, "epsilon is all that can be seen"
    name = before[0].name
    weight, changed = ({n.name: n for n in m.graph.nodes}[name].args[1] for m in (resnet, scaled))
    assert not torch.equal(kinds.constant_of(resnet, weight), kinds.constant_of(scaled, changed))  # type: ignore[arg-type]


class Still(nn.Module):
    """One channel in front of the instance norm hardly varies: there epsilon counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.first.weight[0] *= 1e-3
            self.first.weight[1] *= 0.3

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.norm(self.first(x)))
        return found


def test_a_channel_whose_variance_is_not_far_above_epsilon_keeps_its_scale() -> None:
    module = graph_of(export_program(Still().eval(), images(1)[0]))
    plan = int8_plan(module, images(3))
    noise, classes = measure_noise(module, plan, [(one,) for one in images(3)], 0), channel_classes(module)
    assert noise.least_variance["instance_norm"][0] < 100 < 1000 < noise.least_variance["instance_norm"][1]
    (first, _) = [node for node in kinds.operators(module.graph) if node.target in kinds.WEIGHTED]
    scales, share = PredictedNoise(module, plan, noise, classes, {}).minimise()
    of_channels = scales[torch.from_numpy(classes.of[first])]
    assert of_channels[0] == 1.0
    assert of_channels[1] > 2.0 * of_channels[2:].max()
    assert share < 0.9
    assert sqnr_db(outputs(module, images(2)), outputs(equalize(module, plan, noise)[0], images(2))) > 60.0


def test_centred_channels_lie_around_zero_and_the_network_stays(resnet: fx.GraphModule) -> None:
    inputs = images(3)
    noise = measure_noise(resnet, int8_plan(resnet, inputs), [(one,) for one in inputs], 0)
    moved, model = centre(resnet, noise)
    assert sqnr_db(outputs(resnet, inputs), outputs(moved, inputs)) > 80.0
    again = measure_noise(moved, int8_plan(moved, inputs), [(one,) for one in inputs], 0)
    names = [node.name for node, _ in centred(resnet)]
    assert len(names) == 13
    for name in names:
        torch.testing.assert_close(again.low[name], -again.high[name], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again.low[name], model.low[name], rtol=1e-3, atol=1e-3)


def test_only_what_nothing_but_instance_norms_read_is_centred() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.without, self.plain, self.norm = (
                nn.Conv2d(3, 3, 1),
                nn.Conv2d(3, 3, 1, bias=False),
                nn.Conv2d(3, 3, 1),
                nn.InstanceNorm2d(3),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.both(x)
            return self.plain(self.norm(self.without(self.norm(y)))) + y  # type: ignore[no-any-return]

    assert centred(graph_of(export_program(Others().eval(), images(1)[0]))) == []
    assert centred(graph(unet_generator())) == []


def test_recovery_uses_that_instance_norms_remove_scale_and_shift(resnet: fx.GraphModule) -> None:
    """Channels of very different size and mean in front of an instance norm, as training leaves them there: nothing in its loss minds them."""
    source = torch.Generator().manual_seed(2)
    uneven = scale_channels(resnet, classes := channel_classes(resnet), _spread(classes.count, source))
    for node, bias in centred(uneven):
        with torch.no_grad():
            bias.add_(bias.abs().mean() * torch.randn(len(bias), generator=source) + (0.2 if node.name == "conv2d" else 0.0))
    inputs = images(10)
    plan = int8_plan(uneven, inputs)
    options = RecoveryOptions(input_ranges=((-1.0, 1.0),), round_weights=False, correct_biases=False)
    found = recover(options, uneven, plan, lambda: ((one,) for one in inputs), 0, MemoryCheckpoints(), lambda *_: None)
    assert {step.name: step.kept for step in found.steps} == {"centre": True, "equalize": True}
    exact = outputs(uneven, images(4))
    before = sqnr_db(exact, outputs(Simulated(uneven, plan), images(4)))
    after = sqnr_db(exact, outputs(Simulated(found.module, replace(plan, ranges=found.ranges)), images(4)))
    assert after > before + 6.0, (before, after)
    assert sqnr_db(exact, outputs(found.twin, images(4))) > 50.0


def _spread(count: int, source: torch.Generator) -> Tensor:
    scales = (2.0 * torch.randn(count, generator=source)).clamp(-2.5, 2.5).exp() * 8.0
    scales[KEPT] = 1.0
    return scales


def test_the_stage_plans_a_generator(make_context: Callable[..., StageContext], tmp_path: Path) -> None:
    from mcompress.compress.models.spec import ModelSpec

    class Translation(OneCall):
        input_range = output_range = (-1.0, 1.0)

        def calibration_samples(self, count: int, _shape: tuple[int, ...], _seed: int) -> Iterator[Sample]:
            return (Sample(f"{at}", (value,), value) for at, value in enumerate(images(count)))

        def quality(self, output: Tensor, truth: Tensor) -> float:
            return float(-(output - truth).square().mean().log())

    spec = ModelSpec("imdn", {"features": 16, "blocks": 1}, (), SHAPE)
    context = replace(make_context(spec, work=tmp_path), task=Translation(), model=resnet_generator(separable=False, width=16))  # type: ignore[arg-type]
    context = replace(context, spec=replace(spec, input_range=(-1.0, 1.0)))
    config = QuantizeConfig(samples=5, sensitivity_samples=1, verify_samples=2, sensitivity_size=32, within=5.0)
    found = quantize(config, context)
    assert found.plan is not None
    precisions = {operator.name: operator for operator in found.plan.operators}
    assert {o.precision for o in precisions.values() if o.kind in ("instance_norm", "tanh")} <= {"fp16", "fp32"}
    assert {o.precision for o in precisions.values() if o.kind in CONVOLUTIONS} == {"int8", "fp16"}, "INT8 pays for wide windows, not between norms"
    planned = found.details["planned_ms"]
    assert planned["chosen"]["cpu"] < min(planned["all float"]["cpu"], planned["all int8"]["cpu"])  # type: ignore[index,call-overload]
