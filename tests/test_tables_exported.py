"""The same rows from a network, from its ONNX file and from its TFLite file; and what the converters really change, said exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from applied import Apply
from int8_plans import int8_plan
from operator_rows import Row, row_of
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.cost import operator_table
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.export import onnx as onnx_backend
from mcompress.export import tflite as tflite_backend
from mcompress.export.backend import captured
from mcompress.export.tables import FileTable, table_of_file
from mcompress.targets.columns import class_of
from mcompress.targets.exports import OnnxConfig, TFLiteConfig
from mcompress.targets.operators import Operator

pytestmark = pytest.mark.export
IMAGE = (1, 8, 16, 16)
TOKENS = (1, 10, 8)


def _conv(inputs: int = 8, outputs: int = 12, kernel: int = 3, **more: object) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, **({"padding": kernel // 2} | more))


def _shuffled(module: Apply, x: Tensor) -> Tensor:
    y = module.conv(x)
    return y.view(1, 3, 2, 2, 16, 16).permute(0, 1, 4, 2, 5, 3).reshape(1, 3, 32, 32)


def _excited(module: Apply, x: Tensor) -> Tensor:
    return x * torch.sigmoid(module.up(functional.relu(module.down(x.mean((2, 3), keepdim=True)))))


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * 0.5).softmax(-1) @ v


def _attended(whole: bool) -> Callable[[Apply, Tensor], Tensor]:
    def attend(module: Apply, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(1, 10, 2, 4).transpose(1, 2) for layer in (module.q, module.k, module.v))
        product = functional.scaled_dot_product_attention if whole else _written_out
        heads = product(q, k, v)
        return module.o(heads.transpose(1, 2).reshape(1, 10, 8))

    return attend


def _projections() -> dict[str, nn.Module]:
    return {name: nn.Linear(8, 8) for name in "qkvo"}


def _tokens(module: Apply, x: Tensor) -> Tensor:
    return module.linear(module.conv(x).flatten(2).transpose(1, 2))


class ByHand(nn.Module):
    """Normalization over the channels of an image, as ConvNeXt and many restoration networks write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        apart = x - x.mean(1, keepdim=True)
        return self.weight * (apart / torch.sqrt(apart.pow(2).mean(1, keepdim=True) + 1e-6)) + self.bias


class Permuted(nn.Module):
    """A layer on the channels of an image."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "clamps": (lambda: nn.Sequential(_conv(), nn.ReLU(), _conv(12, 12), nn.ReLU6(), _conv(12, 8), nn.Hardtanh()), IMAGE),
    "gates": (lambda: nn.Sequential(_conv(), nn.SiLU(), _conv(12, 12), nn.GELU(), _conv(12, 8), nn.Hardswish(), _conv(8, 8), nn.LeakyReLU()), IMAGE),
    "saturations": (lambda: nn.Sequential(_conv(), nn.Sigmoid(), _conv(12, 12), nn.Tanh(), nn.MaxPool2d(2), nn.ReLU()), IMAGE),
    "batch norm": (lambda: nn.Sequential(_conv(bias=False), nn.BatchNorm2d(12), nn.ReLU(), _conv(12, 8), nn.BatchNorm2d(8)), IMAGE),
    "windows": (
        lambda: nn.Sequential(_conv(stride=2), _conv(12, 12, 3, padding=2, dilation=2), _conv(12, 8, 5), _conv(8, 8, 2, stride=2, padding=0)),
        IMAGE,
    ),
    "groups": (lambda: nn.Sequential(_conv(8, 8, groups=8), _conv(8, 16, groups=8, stride=2), _conv(16, 12, groups=4)), IMAGE),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(8, 12, 2, 2), nn.ConvTranspose2d(12, 6, 4, 2, 1)), IMAGE),
    "pixel shuffle": (lambda: nn.Sequential(_conv(), nn.PixelShuffle(2), _conv(3, 8), nn.PixelUnshuffle(2), _conv(32, 8)), IMAGE),
    "shuffle by hand": (lambda: Apply(_shuffled, conv=_conv()), IMAGE),
    "channel shuffle": (lambda: nn.Sequential(_conv(), nn.ChannelShuffle(3), _conv(12, 8)), IMAGE),
    "resize": (lambda: nn.Sequential(_conv(), nn.Upsample(scale_factor=2), _conv(12, 8), nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE),
    "pooling": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), IMAGE),
    "squeeze and excite": (lambda: Apply(_excited, down=_conv(8, 4, 1), up=_conv(4, 8, 1)), IMAGE),
    "residual": (lambda: Apply(lambda m, x: functional.relu(x + 0.2 * m.conv(x)), conv=_conv(8, 8)), IMAGE),
    "elementwise": (lambda: Apply(lambda _, x: torch.exp(x * x - x) / (x.abs() + 1)), IMAGE),
    "concatenate and split": (
        lambda: Apply(lambda m, x: torch.cat([m.one(x[:, :4]), m.two(x[:, 4:])], 1)[:, :, 2:-2, 2:-2], one=_conv(4, 8), two=_conv(4, 8)),
        IMAGE,
    ),
    "padding": (
        lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), _conv(8, 8, stride=2, padding=0), nn.ReflectionPad2d(1), _conv(8, 8, padding=0)),
        IMAGE,
    ),
    "reductions": (lambda: Apply(lambda m, x: m.conv(x).sum(1).amax(-1), conv=_conv()), IMAGE),
    "linear": (lambda: nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 4), nn.ReLU(), nn.Softmax(-1)), TOKENS),
    "flattened": (lambda: nn.Sequential(_conv(8, 4), nn.Flatten(), nn.Linear(1024, 10)), IMAGE),
    "tokens": (lambda: Apply(_tokens, conv=_conv(8, 12, 4, stride=4, padding=0), linear=nn.Linear(12, 6)), IMAGE),
    "attention": (lambda: Apply(_attended(whole=True), **_projections()), TOKENS),
    "attention by hand": (lambda: Apply(_attended(whole=False), **_projections()), TOKENS),
    "einsum": (lambda: Apply(lambda m, x: torch.einsum("bnd,bmd->bnm", m.q(x), m.k(x)), q=nn.Linear(8, 8), k=nn.Linear(8, 8)), TOKENS),
    "einsum of one": (
        lambda: Apply(lambda m, x: torch.sin(torch.einsum("bnd->bn", m.k(torch.einsum("bnd->bdn", m.q(x))))), q=nn.Linear(8, 8), k=nn.Linear(10, 10)),
        TOKENS,
    ),
    "einsum of three": (
        lambda: Apply(lambda m, x: torch.einsum("bnd,bmd,bme->bne", m.q(x), m.k(x), m.v(x)), q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8)),
        TOKENS,
    ),
    "transposed in three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(6, 2, 2, 2)),
        (1, 4, 4, 6, 6),
    ),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.ReLU()), (1, 4, 6, 6, 6)),
    "instance norm": (lambda: nn.Sequential(_conv(), nn.InstanceNorm2d(12, affine=True), nn.ReLU()), IMAGE),
    "group norm": (lambda: nn.Sequential(_conv(), nn.GroupNorm(3, 12), nn.ReLU(), _conv(12, 8), nn.GroupNorm(1, 8), nn.SiLU()), IMAGE),
    "layer norm": (lambda: Apply(lambda m, x: x + m.norm(x), norm=nn.LayerNorm(8)), TOKENS),
    "layer norm of images": (lambda: nn.Sequential(_conv(), nn.LayerNorm((12, 16, 16))), IMAGE),
    "layer norm by hand": (lambda: nn.Sequential(_conv(), ByHand(12)), IMAGE),
    "limits": (lambda: Apply(lambda m, x: (m.conv(x) - x.amax(1, keepdim=True)).clamp(min=0).clamp(max=2).sum((2, 3)), conv=_conv(8, 8)), IMAGE),
    "gelu of tanh": (lambda: nn.Sequential(_conv(), nn.GELU(approximate="tanh"), _conv(12, 8)), IMAGE),
    "softmax over channels": (lambda: Apply(lambda m, x: functional.softmax(m.conv(x), 1) + x, conv=_conv(8, 8)), IMAGE),
    "pooling in three dimensions": (lambda: nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2)), (1, 4, 6, 6, 6)),
    "group norm of single channels": (lambda: nn.Sequential(_conv(), nn.GroupNorm(12, 12), nn.SiLU()), IMAGE),
    "root mean square norm": (lambda: nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8)), TOKENS),
    # What the converters change:
    "prelu": (lambda: nn.Sequential(_conv(), nn.PReLU(12)), IMAGE),
    "layer norm before linear": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), TOKENS),
    "layer norm of channels": (lambda: nn.Sequential(_conv(), Permuted(nn.LayerNorm(12))), IMAGE),
    "group norm without weights": (lambda: nn.Sequential(_conv(), nn.GroupNorm(3, 12, affine=False)), IMAGE),
    "multi-head attention": (
        lambda: Apply(lambda m, x: m.layer(x, x, x, need_weights=False)[0], layer=nn.MultiheadAttention(8, 2, batch_first=True)),
        TOKENS,
    ),
    "batch norm alone": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU()), IMAGE),
    "padded max pool": (lambda: nn.Sequential(_conv(), nn.MaxPool2d(3, 2, 1)), IMAGE),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(8, 12, 3, padding=1), nn.ReLU()), (1, 8, 32)),
    "lstm": (lambda: Apply(lambda m, x: m.layer(x)[0], layer=nn.LSTM(8, 6, batch_first=True)), (1, 3, 8)),
}
SPECS = {
    "rrdb": ModelSpec("rrdb", {"features": 8, "blocks": 1, "growth": 4}, (), (1, 3, 16, 16)),
    "mfagan": ModelSpec("mfagan", {"channels": 8, "blocks": [[2, 8], [1, 8]]}, (), (1, 3, 16, 16)),
    "imdn": ModelSpec("imdn", {}, (), (1, 3, 16, 16)),
    "patchgan": ModelSpec("patchgan", {}, (), (1, 3, 32, 32)),
    "vgg_discriminator": ModelSpec("vgg_discriminator", {}, (), (1, 3, 128, 128)),
}
DIFFERS: dict[tuple[str, str], str] = {
    ("tflite", "prelu"): "litert-torch writes PReLU out as relu(x) - a * relu(-x), and LiteRT executes each",
    ("tflite", "layer norm before linear"): "litert-torch folds factor and shift of the normalization into the linear layer",
    ("tflite", "layer norm of channels"): "litert-torch makes one axis of height and width, behind the transposition that the network has",
    ("onnx", "group norm without weights"): "torch writes a factor and a shift per channel nevertheless, ones and zeros",
    ("onnx", "multi-head attention"): "the exporter drops `contiguous`, a copy in PyTorch; the transposition before it, which stays, is a view here",
    ("tflite", "multi-head attention"): "likewise, and it merges heads into one batch",
    ("tflite", "batch norm alone"): "a factor and a shift, two operators",
    ("tflite", "padded max pool"): "LiteRT's pooling does not pad so: PADV2 with -infinity is an operator of its own",
    ("tflite", "padding"): "XNNPACK mirrors no borders: slices of the image are joined, rows and then columns",
    ("tflite", "instance norm"): "written in steps that XNNPACK has; the shift is an addition of its own",
    ("tflite", "conv1d"): "LiteRT has no one-dimensional convolution: it is a two-dimensional one of height 1",
    ("tflite", "lstm"): "litert-torch unrolls the steps of the sequence",
    ("onnx", "imdn"): "the exporter drops `+ 1e-12` below the root of the variance",
    ("tflite", "imdn"): "statistics of channels have two axes instead of four; XNNPACK joins five tensors at most, so six are joined in two steps",
    ("onnx", "patchgan"): "InstanceNormalization in ONNX always has a factor and a shift, here ones and zeros",
}
"""(Format, network) -> why its rows are others. Everything that is not here must be the same."""
WRITTEN_OUT: dict[tuple[str, str], str] = {
    ("tflite", "prelu"): "convolution relu mul+relu mul sub",
    ("tflite", "layer norm before linear"): "layer_norm linear",
    ("tflite", "layer norm of channels"): "convolution layer_norm",
    ("onnx", "group norm without weights"): "convolution group_norm",
    ("onnx", "multi-head attention"): "linear+add attention+bmm+_softmax clone linear",
    ("tflite", "multi-head attention"): "linear attention+bmm+_softmax clone linear",
    ("tflite", "batch norm alone"): "max_pool sub mul mul add+relu",
    ("tflite", "padded max pool"): "convolution constant_pad_nd max_pool",
    ("tflite", "padding"): "convolution+constant_pad_nd cat cat convolution",
    ("tflite", "instance norm"): "convolution instance_norm add+relu",
    ("tflite", "conv1d"): "convolution+relu",
    ("tflite", "lstm"): "linear add sigmoid tanh sigmoid mul tanh mul linear add sigmoid sigmoid tanh sigmoid mul mul add tanh mul "
    "linear add sigmoid sigmoid tanh sigmoid mul mul add+tanh mul cat",
}
"""What stands in the file instead."""
NAMED_OTHERWISE = {
    *(("addmm", "linear"), ("bmm", "linear")),  # products with a matrix that is held
    *((name, "clone") for name in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")),  # written as a movement
    ("group_norm", "instance_norm"),  # of single channels
}
"""Operation in the network and in the file, where the row is the same."""


def _random(network: nn.Module) -> nn.Module:
    """No constants that a converter can see through: ones, zeros."""
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[list[Operator], FileTable, Path]]:
    """Rows of a network, the table of its file, and the file; each is made once."""
    folder = tmp_path_factory.mktemp("tables")
    made: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    @cache
    def make(name: str, suffix: str) -> tuple[list[Operator], FileTable, Path]:
        if name not in made:
            torch.manual_seed(0)
            spec = SPECS.get(name)
            made[name] = (_random(build(spec)), spec.input_shape) if spec else (_random(NETWORKS[name][0]()), NETWORKS[name][1])
        network, shape = made[name]
        path = folder / f"{name.replace(' ', '_')}.{suffix}"
        with captured(folder / "log.txt"):
            if suffix == "onnx":
                onnx_backend.write(OnnxConfig(), network, {"input": torch.rand(shape)}, None, path.with_suffix(""))
            elif len(shape) == 4:
                tflite_backend.write(TFLiteConfig(), network, {"input": torch.rand(shape)}, None, path.with_suffix(""))
            else:
                import litert_torch

                with warnings.catch_warnings(action="ignore"):
                    litert_torch.convert(network, (torch.rand(shape),)).export(str(path))
        return list(operator_table(network, shape).operators), table_of_file(path), path

    return make


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
@pytest.mark.parametrize("name", [*NETWORKS, *SPECS])
def test_rows_are_the_same_from_the_network_and_from_its_file(name: str, suffix: str, exported) -> None:
    rows, read, _ = exported(name, suffix)
    ours, theirs = [row_of(row) for row in rows], [row_of(row) for row in read.table.operators]
    assert not read.table.unknown
    assert set(read.precisions.values()) == {"fp32"}
    if (suffix, name) not in DIFFERS:
        assert theirs == ours
        assert [class_of(row) for row in read.table.operators] == [class_of(row) for row in rows]
        names = {(one.operation, other.operation) for one, other in zip(rows, read.table.operators, strict=True)}
        assert {(ours, theirs) for ours, theirs in names if ours != theirs} <= NAMED_OTHERWISE
        return
    assert theirs != ours, "this difference is gone: take it out of the list"
    if name != "lstm":  # the first step of an unrolled one multiplies with no state
        assert read.table.macs == sum(row.macs for row in rows)
    if (suffix, name) in WRITTEN_OUT:
        assert ["+".join((row.operation, *row.fused)) for row in read.table.operators] == WRITTEN_OUT[suffix, name].split()
    if name == "conv1d":
        assert [without_ones(row) for row in read.table.operators] == [without_ones(row) for row in rows]


def test_the_differences_of_the_zoo_are_these(exported) -> None:
    rows, read, _ = exported("imdn", "onnx")
    dropped = [row for row in rows if row.operation == "add" and (row.elements_read, row.elements_written) == (64, 64)]
    assert len(dropped) == 6
    assert [row_of(row) for row in read.table.operators] == [row_of(row) for row in rows if row not in dropped]
    rows, read, _ = exported("imdn", "tflite")
    joined = next(index for index, row in enumerate(read.table.operators) if row.kind == "concatenate" and row.output_shape[1] == 128)
    theirs = [
        replace(row, input_shape=read.table.operators[joined].input_shape) if index == joined + 1 else row
        for index, row in enumerate(read.table.operators)
    ]
    del theirs[joined]
    assert [without_ones(row) for row in theirs] == [without_ones(row) for row in rows]
    rows, read, _ = exported("patchgan", "onnx")
    light = [row_of(replace(row, weight_elements=0 if row.kind == "normalization" else row.weight_elements)) for row in read.table.operators]
    assert light == [row_of(row) for row in rows]


def test_a_written_out_normalization_costs_what_the_layer_costs(exported) -> None:
    """Weights that a converter folded, moved or added are all that differs."""
    for name, suffix in (("layer norm before linear", "tflite"), ("group norm without weights", "onnx")):
        rows, read, _ = exported(name, suffix)
        light = [[row_of(replace(row, weight_elements=0)) for row in table] for table in (rows, read.table.operators)]
        assert light[0] == light[1]
    rows, read, _ = exported("layer norm of channels", "tflite")
    assert read.table.operators[0] == replace(rows[0], name=read.table.operators[0].name, live_elements=read.table.operators[0].live_elements)
    ours, theirs = rows[1], read.table.operators[1]
    assert (theirs.kind, theirs.weight_elements, theirs.elements_read) == (ours.kind, ours.weight_elements, ours.elements_read)


def without_ones(row: Operator) -> Row:
    return tuple(tuple(size for size in value if size != 1) if isinstance(value, tuple) else value for value in row_of(row))


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_an_int8_file_has_the_rows_of_the_network_in_int8_and_conversions_at_its_border(suffix: str, tmp_path: Path) -> None:
    network = _random(nn.Sequential(_conv(3, 8), nn.ReLU(), _conv(8, 8), nn.ReLU(), _conv(8, 12), nn.PixelShuffle(2)))
    shape = (1, 3, 16, 16)
    with captured(tmp_path / "log.txt"):
        plan = int8_plan(network, [torch.rand(shape)])
        if suffix == "onnx":
            path = onnx_backend.write(OnnxConfig(), network, {"input": torch.rand(shape)}, plan, tmp_path / "int8").path
        else:
            path = tflite_backend.write(TFLiteConfig(), network, {"input": torch.rand(shape)}, plan, tmp_path / "int8").path
    read = table_of_file(path)
    conversions = [row for row in read.table.operators if row.operation in ("quantize", "dequantize")]
    rest = [row for row in read.table.operators if row not in conversions]
    assert [row_of(row) for row in rest] == [row_of(row) for row in operator_table(network, shape).operators]
    assert {read.precisions[row.name] for row in rest if row.macs} == {"int8"}
    assert len(conversions) <= 2
    assert all(row.input_shape in (shape, (1, 3, 32, 32), (1, 12, 16, 16)) for row in conversions)


def _pooled(module: Apply, x: Tensor) -> Tensor:
    y = functional.relu(module.a(x))
    z = functional.interpolate(module.b(functional.max_pool2d(y, 2)), scale_factor=2)
    return module.d(torch.cat([y, z], 1))


def _summed(module: Apply, x: Tensor) -> Tensor:
    y = module.a(x)
    w = (y + module.b(functional.relu(y))) * y
    return functional.interpolate(module.d(functional.avg_pool2d(w, 2)), scale_factor=4, mode="bilinear")


@pytest.mark.parametrize("function", [_pooled, _summed])
def test_planned_memory_is_what_litert_allocates(function: Callable[[Apply, Tensor], Tensor], tmp_path: Path) -> None:
    """Convolutions of 1x1, which need no scratch memory; without the delegate, which has an arena of its own."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    widths = (24, 24, 40, 64) if function is _pooled else (16, 16, 16, 16)
    network = Apply(function, a=_conv(8, widths[0], 1), b=_conv(widths[1], widths[2], 1), d=_conv(widths[3], 3, 1)).eval()
    with captured(tmp_path / "log.txt"):
        path = tflite_backend.write(TFLiteConfig(), network, {"input": torch.rand(IMAGE)}, None, tmp_path / "plan").path
        interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        interpreter.allocate_tensors()
    indices = {int(index) for op in interpreter._get_ops_details() for index in op["outputs"]} | {interpreter.get_input_details()[0]["index"]}
    places = [(view.__array_interface__["data"][0], view.nbytes) for index in indices for view in (interpreter.tensor(index)(),)]
    allocated = max(start + size for start, size in places) - min(start for start, _ in places)
    planned = [4 * table.planned_peak_elements for table in (operator_table(network, IMAGE), table_of_file(path).table)]
    assert planned == [allocated, allocated]
    assert all(size % 64 == 0 for _, size in places)
