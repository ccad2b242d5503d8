"""Recovery of INT8 losses: what must not change does not, and what must get better does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from everything_int8 import everything_int8, quiet, simulated_db
from torch import Tensor, fx, nn
from torch.nn import functional

from mcompress.compress.checkpoints import NoCheckpoints
from mcompress.compress.models.imdn import imdn
from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.models.rrdb import rrdb
from mcompress.compress.quantize import kinds
from mcompress.compress.quantize.fake_quant import fake_quantize_weight
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.quantize.recovery import parameters
from mcompress.compress.quantize.recovery.biases import correct_biases
from mcompress.compress.quantize.recovery.channels import KEPT, channel_classes
from mcompress.compress.quantize.recovery.distilled import DistillSettings, Student, distill
from mcompress.compress.quantize.recovery.equalize import PredictedNoise, equalize, scale_channels
from mcompress.compress.quantize.recovery.moments import patches_of
from mcompress.compress.quantize.recovery.noise import by_output_and_input, groups_of, input_channels, like_weight, measure_noise
from mcompress.compress.quantize.recovery.recover import KEPT_INPUTS, RecoveryOptions, recover
from mcompress.compress.quantize.recovery.rounding import feedback_shares, round_weights, rounded_rows
from mcompress.compress.quantize.representable import representable
from mcompress.errors import StageError

SIDE = 16


def images(count: int, side: int = SIDE) -> list[Tensor]:
    """Smooth, as photographs are, in 255 steps."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand((count, 3, 5, 5), generator=generator)
    smooth = functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return list(((smooth * 255).round() / 255).split(1))


class Paths(nn.Module):
    """All ways in which channels meet: grouped, depthwise, transposed convolutions; a residual, a split, a concatenation, pixel shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.prelu, self.grouped = nn.PReLU(8), nn.Conv2d(8, 12, 1, groups=2)
        self.up, self.skip = nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1, groups=2), nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.gate, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(6, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.first(x), 0.1)
        z = self.up(functional.relu(self.grouped(self.depthwise(y))))
        z = functional.max_pool2d(z, 2) + self.prelu(y)
        kept, rest = torch.split(z, [2, 6], 1)
        joined = torch.cat((kept, functional.interpolate(self.skip(z), scale_factor=2.0), rest), 1)
        joined = functional.pixel_shuffle(joined * 0.5, 2)
        gated = self.gate(z).mean((2, 3), keepdim=True)
        joined = functional.pixel_unshuffle(joined, 2)[:, :6] * torch.sigmoid(gated[:, :6])
        out: Tensor = functional.pixel_shuffle(self.last(joined), 2)
        return out


def network_of(name: str) -> nn.Module:
    torch.manual_seed(6)
    made: dict[str, nn.Module] = {
        "mfagan": mfagan(channels=8, blocks=((2, 8), (1, 8))),
        "imdn": imdn(features=16, blocks=1),
        "rrdb": rrdb(features=8, blocks=1, growth=4),
        "paths": Paths(),
    }
    network = made[name].eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    if name == "mfagan":
        nn.init.normal_(network.tail.weight, std=0.05)  # type: ignore[arg-type]
    return network


def graph(name: str) -> fx.GraphModule:
    return graph_of(export_program(network_of(name), images(1)[0]))


def output(module: fx.GraphModule, value: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(value)
    return found


def uneven(name: str) -> fx.GraphModule:
    """The network with channels of very different size, computing the same."""
    module = graph(name)
    classes = channel_classes(module)
    scales = (torch.randn(classes.count, generator=torch.Generator().manual_seed(1)) * 1.2).exp()
    scales[KEPT] = 1.0
    return scale_channels(module, classes, scales)


@pytest.mark.parametrize("name", ["mfagan", "imdn", "rrdb", "paths"])
def test_any_scales_of_the_classes_leave_the_float_output(name: str) -> None:
    module, scaled = graph(name), uneven(name)
    classes = channel_classes(module)
    assert classes.count > 8
    changed = [
        node.name
        for node, twin in zip(module.graph.nodes, scaled.graph.nodes, strict=True)
        if node.target in kinds.WEIGHTED and not torch.equal(parameters.weight_of(module, node), parameters.weight_of(scaled, twin))
    ]
    assert len(changed) > 2
    for value in images(2):
        exact = output(module, value)
        assert torch.allclose(output(scaled, value), exact, atol=2e-5 * float(exact.abs().max()))


def test_input_output_and_gates_keep_their_scale() -> None:
    classes = channel_classes(graph("imdn"))
    by_name = {node.name: ids for node, ids in classes.of.items()}
    assert not by_name["x"].any()
    assert not by_name["pixel_shuffle"].any()
    assert not by_name["sigmoid"].any()
    first = by_name["leaky_relu"]
    # A quarter of the channels goes to the attention, which divides by nothing that could be scaled; the rest goes on to the next convolution.
    assert not first[:4].any()
    assert len(set(first[4:])) == 12
    assert (first[4:] > 0).all()


def test_channels_that_are_added_share_a_class_and_shuffled_ones_too() -> None:
    classes = channel_classes(graph("mfagan"))
    by_name = {node.name: ids for node, ids in classes.of.items()}
    assert np.array_equal(by_name["relu"], by_name["add"])
    shuffled = channel_classes(graph("paths"))
    node = next(node for node in shuffled.of if node.target is torch.ops.aten.pixel_shuffle.default)
    given = shuffled.of[node.all_input_nodes[0]]
    assert np.array_equal(given.reshape(-1, 4), np.repeat(shuffled.of[node][:, None], 4, 1))


class Meeting(nn.Module):
    """Channels that meet something on the way from one layer to the next."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4 if what == "a part counted from the end" else 8, 3, 3, padding=1)
        self.one, self.linear, self.second = nn.Conv2d(3, 1, 1), nn.Linear(8, 8), nn.Linear(8, 8)
        self.each, self.rows = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(1, 8, 2, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        ways = {
            "itself, multiplied": lambda: y * y,
            "itself, divided": lambda: y / y,
            "a constant under it": lambda: torch.cat((y, self.rows), 2),
            "a part counted from the end": lambda: y.chunk(2, -3)[1],
            "one channel becomes many": lambda: self.one(x) * self.each,
            "tokens": lambda: self.second(torch.relu(self.linear(y[:, :, :2, :2].flatten(2).transpose(1, 2)))).transpose(1, 2).reshape(1, 8, 2, 2),
            "no batch": lambda: self.first(x[0])[None],
            "no batch, pooled": lambda: torch.cat([f(torch.max_pool2d(self.first(x[0]), 2)) for f in (torch.relu, torch.sigmoid)], 2)[None],
            "no batch, shuffled": lambda: torch.cat([torch.pixel_shuffle(self.first(x[0]), 2)] * 4)[None],
        }
        out: Tensor = self.last(ways[self.what]())
        return out


@pytest.mark.parametrize(
    ("what", "free"),
    [
        ("itself, multiplied", 0),
        ("itself, divided", 0),
        ("a constant under it", 0),
        ("a part counted from the end", 8),
        ("one channel becomes many", 8),
        ("tokens", 0),
        ("no batch", 0),
        ("no batch, pooled", 0),
        ("no batch, shuffled", 0),
    ],
)
def test_channels_are_scaled_only_where_all_that_they_meet_can_follow(what: str, free: int) -> None:
    torch.manual_seed(2)
    module = graph_of(export_program(Meeting(what).eval(), images(1)[0]))
    classes = channel_classes(module)
    assert classes.count == 1 + free
    scales = torch.rand(classes.count, generator=torch.Generator().manual_seed(1)) + 0.5
    scales[KEPT] = 1.0
    plan, (value,) = everything_int8(module, images(2)), images(1)
    equalized, _ = equalize(module, plan, measure_noise(module, plan, [(one,) for one in images(2)], 0))
    exact = output(module, value)
    for found in (scale_channels(module, classes, scales), equalized):
        assert torch.allclose(output(found, value), exact, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", ["imdn", "rrdb"])
def test_equalization_recovers_uneven_channels(name: str) -> None:
    module, inputs = uneven(name), images(4)
    plan = everything_int8(module, inputs)
    found, share = equalize(module, plan, measure_noise(module, plan, [(one,) for one in inputs], 0))
    assert share < 0.5
    for value in inputs[:1]:
        exact = output(module, value)
        assert torch.allclose(output(found, value), exact, atol=2e-5 * float(exact.abs().max()))
    gained = simulated_db(module, found, everything_int8(found, inputs), inputs) - simulated_db(module, module, plan, inputs)
    assert gained > 3


@pytest.mark.parametrize("name", ["imdn", "rrdb"])
def test_predicted_noise_is_the_simulated_noise(name: str) -> None:
    module, inputs = graph(name), images(8)
    plan = everything_int8(module, inputs, "minmax")
    classes = channel_classes(module)
    predicted = PredictedNoise(module, plan, measure_noise(module, plan, [(one,) for one in inputs], 0), classes, {})
    with torch.no_grad():
        noise = float(predicted.of(torch.zeros(classes.count)))
    signal = sum(float(output(module, value).square().sum()) for value in inputs) / len(inputs)
    assert 10 * np.log10(signal / noise) == pytest.approx(simulated_db(module, module, plan, inputs), abs=1.5)


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), (2, 4, 17)),
    "conv2d": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 4, 11, 13)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 9, 9)),
    "same": (nn.Conv2d(4, 6, 4, padding="same"), (2, 4, 9, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (2, 4, 5, 7)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=1, output_padding=(1, 2), groups=2, dilation=(1, 2)), (2, 4, 5, 7)),
    "linear": (nn.Linear(5, 7), (3, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", list(LAYERS))
def test_patches_times_weights_are_the_layer(name: str) -> None:
    layer, shape = LAYERS[name]
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    module = graph_of(export_program(layer, value))
    (node,) = parameters.weighted_operators(module.graph)
    weight, bias = parameters.weight_of(module, node), parameters.bias_of(module, node)
    assert bias is not None
    rows = by_output_and_input(weight, node).flatten(1)
    groups = groups_of(node)
    patches = patches_of(node, value, tuple(weight.shape[2:]))
    found = torch.cat([rows.chunk(groups)[group] @ patches[group] for group in range(groups)]) + bias[:, None]
    with torch.no_grad():
        expected = layer(value)
    expected = expected.T if name == "linear" else expected.transpose(0, 1).flatten(1)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["grouped", "depthwise", "transposed, grouped", "linear"])
def test_weights_by_output_and_input_go_back_into_place(name: str) -> None:
    layer, shape = LAYERS[name]
    module = graph_of(export_program(layer, torch.zeros(shape)))
    (node,) = parameters.weighted_operators(module.graph)
    weight = parameters.weight_of(module, node)
    factors = torch.rand(by_output_and_input(weight, node).shape[:2])
    changed = by_output_and_input(weight * like_weight(factors, weight, node), node)
    assert torch.allclose(changed, by_output_and_input(weight, node) * factors[:, :, None])
    assert int(input_channels(weight, node).max()) == shape[1] - 1


def test_error_feedback_beats_rounding_to_nearest_and_survives_export() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn((12, 40), generator=generator)
    base = torch.randn((40, 6), generator=generator, dtype=torch.float64)
    covariance = base @ base.T + 0.05 * torch.eye(40, dtype=torch.float64)
    found = rounded_rows(rows, covariance)

    def cost(values: Tensor) -> float:
        error = (rows - values).double()
        return float(torch.einsum("ri,ij,rj->", error, covariance, error))

    assert cost(found) < 0.3 * cost(fake_quantize_weight(rows, 0))
    assert torch.allclose(fake_quantize_weight(found, 0), found, atol=1e-6)
    assert bool((found.abs().amax(1) <= rows.abs().amax(1) * 1.0001).all())
    assert torch.equal(rounded_rows(torch.zeros(2, 40), covariance), torch.zeros(2, 40))


def test_with_independent_inputs_feedback_is_no_worse_than_nearest() -> None:
    rows = torch.randn((8, 20), generator=torch.Generator().manual_seed(2))
    found = rounded_rows(rows, torch.eye(20, dtype=torch.float64))
    assert float((found - rows).square().sum()) <= float((fake_quantize_weight(rows, 0) - rows).square().sum()) + 1e-9


@pytest.mark.parametrize("name", ["mfagan", "imdn", "paths"])
def test_rounded_networks_lose_less_and_keep_their_integers(name: str) -> None:
    module, inputs = graph(name), images(10)
    plan = everything_int8(module, inputs)
    found = round_weights(module, plan, [(one,) for one in inputs[:6]], 0)
    for node in parameters.weighted_operators(found.graph):
        weight = parameters.weight_of(found, node)
        if node.name in plan.int8_names() and (kinds.WEIGHTED[node.target] == 0 or groups_of(node) == 1):
            assert torch.allclose(fake_quantize_weight(weight, kinds.WEIGHTED[node.target]), weight, rtol=1e-5, atol=1e-8)
    assert simulated_db(module, found, plan, inputs[6:]) > simulated_db(module, module, plan, inputs[6:])
    shares = feedback_shares(module, plan, [(one,) for one in inputs[:6]], 0)
    rounded = [node for node in parameters.weighted_operators(module.graph) if node.name in plan.int8_names()]
    assert set(shares) == {node.name for node in rounded if kinds.WEIGHTED[node.target] == 0 or groups_of(node) == 1}
    assert float(shares[rounded[0].name].mean()) < 0.5  # it reads smooth images
    for node in parameters.weighted_operators(module.graph):
        if node.name in shares:
            assert shares[node.name].shape == by_output_and_input(parameters.weight_of(module, node), node).shape
            assert 0.0 <= float(shares[node.name].min()) <= float(shares[node.name].max()) <= 1.0


def test_corrected_biases_leave_no_mean_error() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    inputs = images(6)
    module = graph_of(export_program(network, inputs[0]))
    plan = everything_int8(module, inputs)
    coarse = replace(plan, ranges={**plan.ranges, "relu": replace(plan.ranges["relu"], scale=plan.ranges["relu"].scale * 0.6)})  # clips

    def mean_error(found: fx.GraphModule) -> Tensor:
        from mcompress.compress.quantize.simulate import simulate

        errors = [output(module, value) - simulate(found, coarse, value) for value in inputs]
        return torch.cat(errors).mean((0, 2, 3)).abs()

    found = correct_biases(module, coarse, module, [(one,) for one in inputs])
    step = coarse.ranges["conv2d_1"].scale
    assert float(mean_error(module).max()) > 2 * float(mean_error(found).max())
    assert float(mean_error(found).max()) < 0.1 * step


def test_distillation_learns_the_float_output_and_is_seeded() -> None:
    module, inputs = graph("mfagan"), images(6)
    plan = everything_int8(module, inputs)

    def run() -> tuple[fx.GraphModule, PrecisionPlan]:
        return distill(module, plan, module, [(one,) for one in inputs], DistillSettings(30, 2, 0.05), 5, NoCheckpoints(), quiet)

    (found, changed), (again, same) = run(), run()
    assert simulated_db(module, found, changed, inputs) > simulated_db(module, module, plan, inputs) + 0.5
    assert changed == same
    assert all(torch.equal(one, other) for one, other in zip(found.state_dict().values(), again.state_dict().values(), strict=True))
    assert changed.ranges["x"] == plan.ranges["x"]
    assert changed.ranges != plan.ranges
    for node in parameters.weighted_operators(found.graph):
        weight = parameters.weight_of(found, node)
        assert torch.allclose(fake_quantize_weight(weight, 0), weight, rtol=1e-5, atol=1e-8)


def test_learned_ranges_are_those_that_integer_kernels_take() -> None:
    module, inputs = graph("mfagan"), images(2)
    plan = everything_int8(module, inputs)
    student = Student(module, plan)
    last = student.group_of["pixel_shuffle"]
    with torch.no_grad():
        student.bounds[last].fill_(-30.0)  # a range so small that no kernel brings its sums to it
    found, changed = student.result()
    assert changed.ranges["pixel_shuffle"].scale > plan.ranges["pixel_shuffle"].scale * 1e-5
    assert changed.ranges == representable(found, changed.ranges)
    student.bounds[last].data.fill_(0.0)
    _, same = student.result()
    assert {name: found.scale for name, found in same.ranges.items()} == pytest.approx({name: found.scale for name, found in plan.ranges.items()})


@pytest.mark.parametrize("name", ["mfagan", "imdn"])
def test_recovery_helps_and_exports_under_the_same_names(name: str) -> None:
    module, inputs = uneven(name), images(12)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    plan = everything_int8(module, inputs)
    recovered = recover(RecoveryOptions(((0.0, 1.0),)), module, plan, lambda: ((one,) for one in inputs), 0, NoCheckpoints(), quiet)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert [step.name for step in recovered.steps] == ["equalize", "round weights", "correct biases"]
    for step in recovered.steps:
        assert step.kept == (step.after_db >= step.before_db + 0.02)
    assert set(recovered.ranges) == set(plan.ranges)
    after = replace(plan, ranges=recovered.ranges)
    fresh = images(20)[12:]
    assert simulated_db(module, recovered.module, after, fresh) > simulated_db(module, module, plan, fresh) + 2
    exported = graph_of(export_program(recovered.module, inputs[0]))
    assert [node.name for node in exported.graph.nodes] == [node.name for node in module.graph.nodes]
    assert [kinds.module_of(node) for node in kinds.operators(exported.graph)] == [kinds.module_of(node) for node in kinds.operators(module.graph)]
    assert simulated_db(module, exported, after, fresh[:2]) == pytest.approx(simulated_db(module, recovered.module, after, fresh[:2]), abs=1e-3)


def test_memory_does_not_grow_with_the_number_of_inputs() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).eval()
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[Tensor]:
        nonlocal most
        for value in images(60, 8):
            one = value.clone()
            alive.add(one)
            gc.collect(0)
            most = max(most, len(alive))
            yield (one,)

    module = graph_of(export_program(network, images(1, 8)[0]))
    recover(RecoveryOptions(((0.0, 1.0),)), module, everything_int8(module, images(4, 8)), stream, 0, NoCheckpoints(), quiet)
    assert most <= KEPT_INPUTS + 3


def test_no_inputs_is_an_error() -> None:
    module = graph("mfagan")
    plan = everything_int8(module, images(2))
    for attempt in (
        lambda: recover(RecoveryOptions(((0.0, 1.0),)), module, plan, lambda: iter(()), 0, NoCheckpoints(), quiet),
        lambda: measure_noise(module, plan, [], 0),
        lambda: correct_biases(module, plan, module, []),
        lambda: round_weights(module, plan, [], 0),
        lambda: distill(module, plan, module, [], DistillSettings(1), 0, NoCheckpoints(), quiet),
    ):
        with pytest.raises(StageError, match="at least one"):
            attempt()
