"""What the operator table says of single operators: where their channels are, what is unknown, what is a constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from applied import Apply
from made_up_device import DEVICE
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.compress.counting.steps import assumed_macs
from mcompress.export.comparison import plain_operators
from mcompress.targets.columns import class_of
from mcompress.targets.latency import estimate, weight_bytes
from mcompress.targets.operators import Operator

Function = Callable[[Apply, Tensor], Tensor]


def rows(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> tuple[Operator, ...]:
    return operator_table(model, shape, dtype=dtype).operators


def channels(row: Operator) -> tuple[int, int]:
    return row.input_shape[row.channel_axis], row.output_shape[row.channel_axis]


def test_tokens_have_the_same_channels_whichever_axis_is_the_sequence() -> None:
    first, sequence = (
        [(row.kind, channels(row)) for row in rows(nn.TransformerEncoderLayer(64, 4, 128, batch_first=flag), shape)]
        for flag, shape in ((True, (1, 49, 64)), (False, (49, 1, 64)))
    )
    assert first == sequence
    assert [found for kind, found in first if kind in ("elementwise", "normalization")] == [(64, 64)] * 4
    assert (64, 128) in [found for kind, found in first if kind == "matmul"]


def test_attention_in_an_image_network() -> None:
    """(batch, channels, height, width) goes to tokens and back; the sizes are all different, so that a wrong axis shows."""

    def attend(module: Apply, x: Tensor) -> Tensor:
        y = functional.silu(module.norm(module.into(x)))
        tokens = module.rows(y.flatten(2).transpose(1, 2))
        weighed = functional.gelu(module.queries(tokens)) + tokens
        back = weighed.transpose(1, 2).reshape(y.shape) + y
        return module.out(torch.cat((back, y), 1))

    network = Apply(
        attend,
        into=nn.Conv2d(3, 24, 3, padding=1),
        norm=nn.GroupNorm(4, 24),
        rows=nn.LayerNorm(24),
        queries=nn.Linear(24, 24),
        out=nn.Conv2d(48, 5, 1),
    )
    found = [(row.operation, row.channel_axis, channels(row)) for row in rows(network, (1, 3, 10, 6))]
    assert found == [
        ("convolution", 1, (3, 24)),
        ("group_norm", 1, (24, 24)),
        ("layer_norm", -1, (24, 24)),
        ("addmm", -1, (24, 24)),
        ("add", -1, (24, 24)),
        ("add", 1, (24, 24)),
        ("cat", 1, (24, 48)),
        ("convolution", 1, (48, 5)),
    ]


def test_channels_of_audio() -> None:
    network = nn.Sequential(nn.Conv1d(1, 32, 9), nn.Tanh(), nn.MaxPool1d(2), nn.GroupNorm(4, 32), nn.Conv1d(32, 7, 3), nn.ConvTranspose1d(7, 2, 4))
    assert [channels(row) for row in rows(network, (1, 1, 400))] == [(1, 32), (32, 32), (32, 32), (32, 7), (7, 2)]
    # What is computed before the first convolution is of the same signal.
    (scaled, _) = rows(Apply(lambda m, x: m.conv(x * x), conv=nn.Conv1d(6, 4, 3)), (1, 6, 50))
    assert scaled.channel_axis == 1


def test_a_convolution_over_tokens_finds_them_transposed() -> None:
    network = Apply(lambda m, x: m.conv(functional.relu(x).transpose(1, 2)), conv=nn.Conv1d(64, 8, 3))
    assert channels(rows(network, (1, 49, 64))[0]) == (64, 64)


def test_channels_through_views_shuffles_and_parts() -> None:
    def block(module: Apply, x: Tensor) -> Tensor:
        y = module.depthwise(x)
        rows_ = module.out(functional.gelu(module.into(module.norm(y.permute(0, 2, 3, 1)))))
        return x + rows_.permute(0, 3, 1, 2) * module.scale

    network = Apply(block, depthwise=nn.Conv2d(12, 12, 7, padding=3, groups=12), norm=nn.LayerNorm(12), into=nn.Linear(12, 48), out=nn.Linear(48, 12))
    network.scale = nn.Parameter(torch.ones(12, 1, 1))
    for row in rows(network, (1, 12, 10, 8)):
        assert set(channels(row)) <= {12, 48}, row

    shuffled = Apply(lambda m, x: m.conv(x).reshape(1, 4, 2, 2, 16, 16).permute(0, 1, 4, 2, 5, 3).reshape(1, 4, 32, 32), conv=nn.Conv2d(3, 16, 1))
    assert channels(rows(shuffled, (1, 3, 16, 16))[1]) == (16, 4)  # 16 is also how wide the image is
    halves = Apply(lambda m, x: torch.tanh(m.conv(x).chunk(2, 1)[0]), conv=nn.Conv2d(3, 16, 1))
    assert channels(rows(halves, (1, 3, 16, 16))[1]) == (8, 8)


def test_channels_of_words_and_softmaxes() -> None:
    words = nn.Sequential(nn.Embedding(100, 12), nn.ReLU(), nn.LayerNorm(12))
    assert [(row.channel_axis, row.output_shape[-1]) for row in rows(words, (1, 9), torch.int64)] == [(-1, 12)] * 3
    for axis, expected in ((1, 1), (3, -1)):
        network = Apply(lambda m, x, axis=axis: m.conv(x).softmax(axis), conv=nn.Conv2d(3, 5, 1))
        assert rows(network, (1, 3, 8, 6))[1].channel_axis == expected


TOKENS, WIDTH = 77, 64
LOOKUPS: dict[str, Function] = {
    "embedding": lambda m, x: m.table(x),
    "index": lambda m, x: m.table.weight[x],
    "index_select": lambda m, x: torch.index_select(m.table.weight, 0, x[0]),
    "take": lambda m, x: torch.take(m.table.weight, x[..., None] + x[..., :WIDTH, None].mT),
    "_embedding_bag_forward_only": lambda m, x: functional.embedding_bag(x, m.table.weight),
}


@pytest.mark.parametrize("operation", LOOKUPS)
def test_a_table_costs_what_is_looked_up_in_it(operation: str) -> None:
    """What is stored is the whole; what an inference reads is one row of each token."""
    tables = [
        operator_table(Apply(LOOKUPS[operation], table=nn.Embedding(words, WIDTH)), (1, TOKENS), dtype=torch.int64)
        for words in (10, 100, 10_000, 49_408)
    ]
    found = [next(row for row in table.operators if row.operation == operation) for table in tables]
    looked_up = TOKENS * WIDTH
    assert [row.weight_elements // WIDTH for row in found] == [10, 100, 10_000, 49_408]
    assert [row.weights_read for row in found] == [None, looked_up, looked_up, looked_up]
    assert [(row.moved_elements - row.elements_read - row.elements_written) // WIDTH for row in found] == [10, TOKENS, TOKENS, TOKENS]
    assert {(row.kind == "other", row.macs) for row in found} == {(False, 0)}
    small, *large = (estimate(table, DEVICE, "cpu", "int8").value for table in tables)
    assert small < large[0] == large[1] == large[2]
    assert [weight_bytes(table, "int8") // WIDTH for table in tables] == [10, 100, 10_000, 49_408]
    # Bundles of before know nothing of it: all is read.
    stored = [{name: value for name, value in one.items() if name != "weights_read"} for one in plain_operators(tables[2])]  # type: ignore[union-attr]
    (old,) = (row for row in TypeAdapter(tuple[Operator, ...]).validate_python(stored) if row.operation == operation)
    assert old == replace(found[2], weights_read=None)
    assert old.moved_elements > found[2].moved_elements
    assert all(replace(row, weights_read=None) == row for row in rows(nn.Conv2d(3, 4, 1), (1, 3, 5, 5)))


def test_lines_that_are_repeated_stay_an_image() -> None:
    twice = torch.arange(16).repeat_interleave(2)
    found = rows(Apply(lambda m, x: functional.relu(m.conv(x)[:, :, twice]), conv=nn.Conv2d(3, 8, 1)), (1, 3, 16, 16))
    assert [(row.operation, row.channel_axis, channels(row)) for row in found[1:]] == [("index", 1, (8, 8)), ("relu", 1, (8, 8))]


@pytest.mark.parametrize(
    ("sizes", "inside"),
    [
        ((1, 1, 1, 1), True),
        ((0, 2, 0, 1), True),
        ((0, 0, 0, 0, 0, 1), False),  # another channel
        ((-1, -1, -1, -1), False),
        ((-1, 1, 2, 2), False),
    ],
)
def test_a_convolution_takes_in_zeros_around_its_positions_and_nothing_else(sizes: tuple[int, ...], inside: bool) -> None:
    inputs = 3 + sum(sizes[4:])
    found = rows(Apply(lambda m, x: m.conv(functional.pad(x, sizes)), conv=nn.Conv2d(inputs, 8, 3, padding=1)), (1, 3, 32, 32))
    assert [row.operation for row in found] == ["convolution"] if inside else ["constant_pad_nd", "convolution"]
    row = found[-1]
    assert row.macs == 8 * row.input_shape[1] * 9 * row.output_shape[2] * row.output_shape[3]


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_borders_have_one_name_in_any_number_of_dimensions(mode: str, axes: int) -> None:
    (row,) = rows(Apply(lambda _, x: functional.pad(x, (1, 2) * axes, mode=mode)), (1, 3, 6, 7, 8)[: axes + 2])
    assert (row.kind, row.operation, class_of(row)) == ("copy", {"reflect": "reflection_pad", "replicate": "replication_pad"}[mode], "pad")


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda _, x: x.max(1)[0], (1, 1, 6, 8)),
        (lambda _, x: x.min(-1)[0], (1, 4, 6, 1)),
        (lambda _, x: x.max(), (1, 1, 1, 1)),
        (lambda _, x: x.argmax(1), (1, 1, 6, 8)),
        (lambda _, x: x.argmin(dim=2), (1, 4, 1, 8)),
        (lambda _, x: x.argmax(), (1, 1, 1, 1)),
        (lambda _, x: x.any(1), (1, 1, 6, 8)),
        (lambda _, x: x.all(dim=3), (1, 4, 6, 1)),
        (lambda _, x: x.median(2)[0], (1, 4, 1, 8)),
    ],
)
def test_what_is_reduced_stays_with_size_1(function: Function, shape: tuple[int, ...]) -> None:
    (row,) = rows(Apply(function), (1, 4, 6, 8))
    assert (row.kind, row.output_shape) == ("reduction", shape)
    assert row.elements_written == torch.Size(shape).numel()


def test_noise_is_written_and_not_read_and_what_is_filled_is_a_constant() -> None:
    noise, added = rows(Apply(lambda _, x: x + torch.randn_like(x)), (1, 4, 8, 8))
    assert (noise.kind, noise.elements_read, noise.elements_written, noise.macs) == ("elementwise", 0, 256, 0)
    assert added.elements_read == 512
    assert [row.operation for row in rows(Apply(lambda _, x: x + torch.randn(x.shape)), (1, 4, 8, 8))] == ["randn", "add"]
    filled: tuple[Function, ...] = (
        lambda _, x: x + torch.zeros_like(x),
        lambda _, x: x + x.new_ones(x.shape),
        lambda _, x: x + torch.full_like(x, 2.0),
        lambda _, x: x + torch.zeros(x.shape),
    )
    for function in filled:
        (row,) = rows(Apply(function), (1, 4, 8, 8))
        assert (row.operation, row.elements_read, row.weight_elements, row.macs) == ("add", 256, 256, 0)
    (copied,) = rows(Apply(lambda _, x: torch.empty_like(x).copy_(x)), (1, 4, 8, 8))
    assert (copied.kind, copied.elements_read, copied.weight_elements) == ("copy", 256, 0)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda _, x: torch.rot90(x, 1, (2, 3)), "copy"),
        (lambda _, x: x.masked_scatter(x > 0, x), "copy"),
        (lambda _, x: torch.diag_embed(x), "copy"),
        (lambda _, x: (x > 0).nonzero(), "copy"),
        (lambda _, x: x.masked_fill(x > 0, 0.0), "elementwise"),
        (lambda _, x: torch.searchsorted(torch.linspace(0, 1, 9), x), "elementwise"),
        (lambda _, x: torch.bucketize(x, torch.linspace(0, 1, 9)), "elementwise"),
        (lambda _, x: torch.complex(x, x).abs(), "elementwise"),
        (lambda _, x: torch.bernoulli(x), "elementwise"),
        (lambda _, x: functional.dropout(x, training=True), "elementwise"),
        (lambda _, x: torch.unique(x), "reduction"),
        (lambda _, x: torch.renorm(x, 2, 1, 1.0), "normalization"),
    ],
)
def test_operators_that_only_move_memory(function: Function, kind: str) -> None:
    found = rows(Apply(function), (1, 4, 6, 8))
    assert {row.kind for row in found} <= {kind, "elementwise"}
    assert kind in {row.kind for row in found}
    assert sum(row.macs for row in found) == 0


NAMES = ("convolution", "adaptive_conv", "conv_norm_relu", "add", "cat", "silu", "upsample_conv", "avg_pool_conv", "scaled_dot_product_attention")


@pytest.fixture
def library() -> Iterator[torch.library.Library]:
    with torch.library._scoped_library("mcompress_tests", "FRAGMENT") as made:
        for name in NAMES:
            made.define(f"{name}(Tensor x, Tensor w) -> Tensor")
            made.impl(name, lambda x, w: functional.conv2d(x, w, padding=1), "CPU")
            made.impl(name, lambda x, w: x.new_empty(x.shape[0], w.shape[0], *x.shape[2:]), "Meta")
        yield made


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_of_another_library_is_unknown_whatever_it_is_called(library: torch.library.Library, name: str) -> None:
    del library
    network = Apply(lambda m, x: getattr(torch.ops.mcompress_tests, name)(x, m.conv.weight), conv=nn.Conv2d(8, 6, 3))
    (row,) = rows(network, (1, 8, 10, 10))
    assert (row.kind, row.operation) == ("other", f"mcompress_tests::{name}")
    assert row.macs == 6 * 8 * 9 * 100  # what the convolution that it is does


def test_an_unknown_operator_with_weights_uses_them_once_per_token() -> None:
    assert assumed_macs([49 * 64], 64 * 64, (1, 49, 64)) == 64 * 64 * 49
    assert assumed_macs([49 * 64], 64 * 64, (1, 64, 49), 1) == 64 * 64 * 49
    assert assumed_macs([8 * 100], 6 * 8 * 9, (1, 6, 10, 10)) == 6 * 8 * 9 * 100


def test_a_gate_halves_its_channels_and_runs_inside_nothing() -> None:
    found = rows(nn.Sequential(nn.Conv2d(3, 8, 1), nn.GLU(1)), (1, 3, 5, 5))
    assert [(row.operation, row.fused) for row in found] == [("convolution", ()), ("sigmoid", ()), ("mul", ())]
    assert [(row.elements_read, row.elements_written) for row in found[1:]] == [(100, 100), (200, 100)]
    assert [channels(row) for row in found[1:]] == [(4, 4), (4, 4)]
