"""Cost tables against hand-computed figures, to the digit."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from applied import Apply
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import count, operator_table
from mcompress.compress.models.mfagan import mfagan
from mcompress.compress.models.rrdb import rrdb
from mcompress.errors import StageError
from mcompress.targets.operators import Operator


def rows(model: nn.Module, shape: tuple[int, ...]) -> tuple[Operator, ...]:
    return operator_table(model, shape).operators


def test_rrdbnet_is_what_is_published() -> None:
    with torch.device("meta"):
        model = rrdb()
    table = operator_table(model, (1, 3, 16, 12))
    pixels = 16 * 12
    assert table.params == 16_697_987
    assert table.macs == table.macs_output_convention == 17_926_848 * pixels
    assert table.peak_activation_elements == 2_048 * pixels
    convolutions = [row for row in table.operators if row.kind == "convolution"]
    assert len(convolutions) == 23 * 15 + 6
    assert sum(row.elements_read + row.elements_written for row in convolutions) == 63_283 * pixels


def test_six_block_rrdbnet() -> None:
    assert count(rrdb(blocks=6), (1, 3, 8, 8))["params"] == 4_467_779


def test_count_is_in_bytes_of_fp32() -> None:
    figures = count(nn.Conv2d(3, 8, 1), (1, 3, 10, 10))
    assert figures == {
        "params": 32,
        "macs": 2_400,
        "macs_output_convention": 2_400,
        "peak_activation_bytes": 4 * 1_100,
        "planned_peak_bytes": 4 * (304 + 800),
        "activation_traffic_bytes": 4 * 1_100,
    }


def test_convolution_row() -> None:
    (row,) = rows(nn.Conv2d(6, 10, (3, 5), stride=2, padding=(1, 2)), (2, 6, 9, 12))
    assert (row.kind, row.groups, row.kernel, row.stride) == ("convolution", 1, (3, 5), 2)
    assert (row.input_shape, row.output_shape) == ((2, 6, 9, 12), (2, 10, 5, 6))
    assert row.macs == 2 * 10 * 5 * 6 * 6 * 15
    assert row.weight_elements == 10 * 6 * 15 + 10
    assert (row.elements_read, row.elements_written) == (2 * 6 * 9 * 12, 2 * 10 * 5 * 6)
    assert row.live_elements == row.elements_read + row.elements_written


@pytest.mark.parametrize(
    ("groups", "outputs", "kind"), [(8, 8, "depthwise_convolution"), (8, 16, "depthwise_convolution"), (4, 8, "grouped_convolution")]
)
def test_grouped_convolutions(groups: int, outputs: int, kind: str) -> None:
    (row,) = rows(nn.Conv2d(8, outputs, 3, padding=1, groups=groups), (1, 8, 7, 7))
    assert row.kind == kind
    assert row.macs == outputs * 49 * 9 * (8 // groups)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_has_two_conventions(groups: int) -> None:
    (row,) = rows(nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups), (1, 4, 5, 5))
    assert row.kind == "transposed_convolution"
    assert row.output_shape == (1, 6, 10, 10)
    assert row.macs == 4 * 25 * (6 // groups) * 9
    assert row.macs_output_convention == 6 * 100 * (4 // groups) * 9


def test_pix2pix_style_pair_of_conventions() -> None:
    """Systems are published in the output convention: a stride of 2 makes it four times the work."""
    table = operator_table(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)), (1, 3, 16, 16))
    assert table.macs == 8 * 64 * 27 + 8 * 64 * 3 * 16
    assert table.macs_output_convention == 8 * 64 * 27 + 3 * 256 * 8 * 16


@pytest.mark.parametrize("shape", [(4, 16), (2, 7, 16), (2, 3, 7, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    (row,) = rows(nn.Sequential(nn.Linear(16, 5, bias=bias), nn.ReLU()), shape)
    assert (row.kind, row.fused) in (("matmul", ("relu",)), ("matmul", ("add", "relu")))
    tokens = torch.Size(shape).numel() // 16
    assert row.macs == tokens * 16 * 5
    assert row.weight_elements == 16 * 5 + 5 * bias
    assert (row.elements_read, row.elements_written) == (tokens * 16, tokens * 5)


def test_attention_products_are_counted_once() -> None:
    def attend(module: Apply, x: Tensor) -> Tensor:
        heads = x.view(2, 10, 4, 8).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads[:, :, :6], value=heads[:, :, :6])

    (row,) = rows(Apply(attend), (2, 10, 32))
    assert row.kind == "attention"
    assert row.macs == 2 * 4 * (10 * 6 * 8 + 10 * 6 * 8)


def test_multihead_attention_equals_its_formula() -> None:
    layer = nn.MultiheadAttention(32, 4, batch_first=True)
    table = operator_table(Apply(lambda m, x: m.layer(x, x, x, need_weights=False)[0], layer=layer), (1, 9, 32))
    assert table.macs == 9 * 32 * 96 + 9 * 32 * 32 + 2 * 9 * 9 * 32


def test_matrix_product_of_activations() -> None:
    (row,) = rows(Apply(lambda _, x: x @ x.transpose(1, 2)), (3, 5, 7))
    assert (row.macs, row.elements_read) == (3 * 5 * 5 * 7, 3 * 5 * 7)


def test_fusion_of_normalization_and_activation() -> None:
    (row,) = rows(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (1, 3, 8, 8))
    assert (row.kind, row.fused) == ("convolution", ("native_batch_norm", "relu"))
    assert row.elements_read + row.elements_written == 3 * 64 + 4 * 64


def test_instance_normalization_cannot_be_folded() -> None:
    kinds = [(row.kind, row.fused) for row in rows(nn.Sequential(nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4), nn.ReLU()), (1, 3, 8, 8))]
    assert kinds == [("convolution", ()), ("normalization", ("relu",))]


def test_what_is_read_twice_is_written() -> None:
    def skip(module: Apply, x: Tensor) -> Tensor:
        y = module.conv(x)
        return functional.relu(y) + y

    table = rows(Apply(skip, conv=nn.Conv2d(4, 4, 1)), (1, 4, 8, 8))
    assert [row.kind for row in table] == ["convolution", "activation", "elementwise"]


def test_an_activation_that_is_also_returned_is_not_hidden() -> None:
    model = Apply(lambda m, x: (lambda y: (y, functional.relu(y)))(m.conv(x)), conv=nn.Conv2d(4, 4, 1))
    assert [row.kind for row in rows(model, (1, 4, 8, 8))] == ["convolution", "activation"]


def test_in_place_and_out_of_place_cost_the_same() -> None:
    plain, in_place = (rows(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(flag), nn.Conv2d(4, 4, 1)), (1, 4, 8, 8)) for flag in (False, True))
    assert [(r.kind, r.fused, r.live_elements) for r in plain] == [(r.kind, r.fused, r.live_elements) for r in in_place]


def test_addition_takes_in_the_activation() -> None:
    table = rows(Apply(lambda m, x: functional.relu(m.conv(x) + x), conv=nn.Conv2d(4, 4, 1)), (1, 4, 8, 8))
    assert [(row.kind, row.fused) for row in table] == [("convolution", ()), ("elementwise", ("relu",))]


def test_views_are_free_and_copies_are_not() -> None:
    def views(_: Apply, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat((first.flatten(1), second.permute(0, 2, 3, 1).flatten(1)), 1)

    table = rows(Apply(views), (1, 4, 6, 6))
    assert [row.kind for row in table] == ["copy", "concatenate"]
    assert table[1].elements_written == 4 * 36


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda _, x: functional.pixel_shuffle(x, 2), "shuffle"),
        (lambda _, x: functional.pixel_unshuffle(x, 2), "shuffle"),
        (lambda _, x: functional.interpolate(x, scale_factor=2.0), "resize"),
        (lambda _, x: functional.interpolate(x, scale_factor=2.0, mode="bicubic", antialias=True), "resize"),
        (lambda _, x: functional.max_pool2d(x, 2), "pooling"),
        (lambda _, x: functional.avg_pool2d(x, 2), "pooling"),
        (lambda _, x: functional.pad(x, (1, 1, 1, 1), mode="reflect"), "copy"),
        (lambda _, x: functional.group_norm(x, 2), "normalization"),
        (lambda _, x: functional.layer_norm(x, (8,)), "normalization"),
        (lambda _, x: x.softmax(1), "normalization"),
        (lambda _, x: x.mean((2, 3)), "reduction"),
        (lambda _, x: functional.silu(x), "activation"),
        (lambda _, x: x * x, "elementwise"),
        (lambda _, x: x.contiguous(memory_format=torch.channels_last), "copy"),
    ],
)
def test_kinds(function, kind: str) -> None:
    (row,) = rows(Apply(function), (1, 4, 8, 8))
    assert row.kind == kind
    assert row.elements_read == 256
    assert row.elements_written == torch.Size(row.output_shape).numel()


def test_live_memory_of_a_skip_connection() -> None:
    """x lives until the addition: three tensors exist at the second convolution and at the addition."""
    model = Apply(lambda m, x: x + m.two(m.one(x)), one=nn.Conv2d(4, 8, 1), two=nn.Conv2d(8, 4, 1))
    assert [row.live_elements for row in rows(model, (1, 4, 5, 5))] == [12 * 25, 16 * 25, 12 * 25]


def test_an_output_lives_to_the_end() -> None:
    def branches(module: Apply, x: Tensor) -> dict[str, list[Tensor]]:
        y = module.one(x)
        return {"all": [y, module.two(x)]}

    model = Apply(branches, one=nn.Conv2d(2, 6, 1), two=nn.Conv2d(2, 3, 1))
    assert [row.live_elements for row in rows(model, (1, 2, 4, 4))] == [8 * 16, 11 * 16]


def test_what_depends_on_parameters_only_is_folded() -> None:
    def normalized(module: Apply, x: Tensor) -> Tensor:
        weight = module.conv.weight
        table = torch.arange(8).float().view(1, 8, 1, 1)
        return functional.conv2d(x, weight / weight.norm()) + table

    (row,) = rows(Apply(normalized, conv=nn.Conv2d(4, 8, 1, bias=False)), (1, 4, 6, 6))
    assert row.fused == ("add",)
    assert row.weight_elements == 32 + 8


def test_names_are_module_paths_and_unique() -> None:
    table = operator_table(mfagan(blocks=((2, 8),), channels=8), (1, 3, 16, 16))
    names = [row.name for row in table.operators]
    assert names[0] == "head"
    assert "blocks.0.scales.1" in names
    assert "blocks.0.add_1" in names
    assert len(set(names)) == len(names)


def test_a_shared_module_has_two_rows_and_counts_its_weights_once() -> None:
    conv = nn.Conv2d(4, 4, 1)
    table = operator_table(nn.Sequential(conv, conv), (1, 4, 4, 4))
    assert [(row.name, row.weights_of) for row in table.operators] == [("0", ""), ("0_1", "0")]
    assert table.params == 20


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    operator_table(model, (1, 3, 8, 8))
    assert model.training
    assert not model[0]._forward_hooks
    assert all(torch.equal(tensor, before[name]) and tensor.device.type == "cpu" for name, tensor in model.state_dict().items())


def test_plain_tensors_half_precision_and_shape_branches() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.full((1, 4, 1, 1), 2.0, dtype=torch.float16)
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * self.scale if x.shape[-1] > 4 else x

    assert [(row.kind, row.fused) for row in rows(Odd().half(), (1, 4, 8, 8))] == [("convolution", ("mul",))]
    assert rows(Odd().half(), (1, 4, 4, 4)) == ()


def test_a_network_that_needs_numbers_runs_on_the_cpu() -> None:
    def branch(module: Apply, x: Tensor) -> Tensor:
        return module.conv(x) if x.sum().item() > 0 else x

    table = rows(Apply(branch, conv=nn.Conv2d(3, 4, 1)), (1, 3, 8, 8))
    assert [row.kind for row in table] == ["reduction", "convolution"]


def test_a_network_that_fails_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(5, 4, 1)))
    with pytest.raises(StageError, match=r"module '1\.0' of Sequential failed on an input of shape \(1, 3, 8, 8\).*5 channels"):
        operator_table(model, (1, 3, 8, 8))
    with torch.device("meta"):
        empty = Apply(lambda m, x: m.conv(x) if x.sum().item() else x, conv=nn.Conv2d(3, 4, 1))
    with pytest.raises(StageError, match="meta device"):
        operator_table(empty, (1, 3, 8, 8))
    with pytest.raises(StageError, match="every size must be at least 1"):
        operator_table(model, (1, 3, 0, 8))


@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    size=st.integers(1, 9),
    kernel=st.sampled_from((1, 3)),
)
@settings(max_examples=25, deadline=None)
def test_chains_agree_with_arithmetic(widths: list[int], size: int, kernel: int) -> None:
    channels = [3, *widths]
    layers = [layer for a, b in itertools.pairwise(channels) for layer in (nn.Conv2d(a, b, kernel, padding=kernel // 2), nn.LeakyReLU())]
    table = operator_table(nn.Sequential(*layers), (1, 3, size, size))
    pairs = list(itertools.pairwise(channels))
    assert table.macs == sum(a * b for a, b in pairs) * kernel**2 * size**2
    assert table.peak_activation_elements == max(a + b for a, b in pairs) * size**2
    assert table.activation_traffic_elements == sum(a + b for a, b in pairs) * size**2
    assert table.params == sum(p.numel() for layer in layers for p in layer.parameters())


def test_hundreds_of_candidates_are_affordable() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(50)))
    operator_table(model, (1, 8, 32, 32))
    best_s = min(_timed(model) for _ in range(5))
    assert best_s < 0.1  # about 0.01 s on an idle core; the limit leaves room for a busy one


def _timed(model: nn.Module) -> float:
    start = time.process_time()
    operator_table(model, (1, 8, 32, 32))
    return time.process_time() - start
