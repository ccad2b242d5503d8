"""Attention of Stable Diffusion's U-Net head by head: the same numbers, the layout that a device runs fastest, and what its memory is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from applied import Apply
from pydantic import JsonValue
from torch import nn
from torch.nn import functional

from mcompress.compress.attention_layout import fastest_attention, layout_note, layout_of, original_by_heads, with_attention
from mcompress.compress.cost import operator_table
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.models.split_attention import PIECE, PIECES_BEYOND, HeadByHead, split_attention
from mcompress.compress.models.stable_diffusion import SD_15, SNAPFUSION_REPEATS, diffusion_unet, with_guidance
from mcompress.errors import UsageError
from mcompress.export import backend_named
from mcompress.export.backend import captured
from mcompress.export.walked import confirm
from mcompress.targets.device_files import load_device
from mcompress.targets.exports import CoreMLConfig, ExportConfig, OnnxConfig, TFLiteConfig
from mcompress.targets.latency import estimate
from mcompress.targets.operators import OperatorTable

TINY: dict[str, JsonValue] = {
    "sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 2, "norm_num_groups": 4, "block_out_channels": [16, 24], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "mid_block_type": None,
}  # fmt: skip
LARGE = ((1, 4, 64, 64), (1,), (1, 77, 768))
CONFIGS: dict[str, ExportConfig] = {"onnx": OnnxConfig(), "tflite": TFLiteConfig(), "coreml": CoreMLConfig()}


def spec_of(args: dict[str, JsonValue], side: int = 8, states: tuple[int, int] = (8, 16)) -> ModelSpec:
    further = (InputSpec("timestep", (1,), (0, 999)), InputSpec("text", (1, *states), (-4, 4)))
    return ModelSpec("diffusion_unet", args, (), (1, 4, side, side), (-4, 4), "latents", further)


def inputs(side: int, batch: int = 1) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.randn(batch, 4, side, side), torch.full((batch,), 500.0), torch.randn(batch, 8, 16)


def pair(args: dict[str, JsonValue]) -> tuple[nn.Module, nn.Module]:
    """The network whole and in heads, with the same weights."""
    torch.manual_seed(0)
    whole, heads = (diffusion_unet(**args, attention=layout).eval() for layout in ("whole", "heads"))
    heads.load_state_dict(whole.state_dict())
    return whole, heads


def meta_table(args: dict[str, JsonValue], layout: str, shapes: tuple[tuple[int, ...], ...]) -> OperatorTable:
    with torch.device("meta"):
        return operator_table(diffusion_unet(**args, attention=layout).eval(), *shapes)


@pytest.fixture(scope="module")
def stable_diffusion() -> dict[str, OperatorTable]:
    """Stable Diffusion 1.5's U-Net in both layouts, SnapFusion's whole."""
    return {
        **{layout: meta_table(SD_15, layout, LARGE) for layout in ("whole", "heads")},
        "snapfusion": meta_table({**SD_15, "repeats": SNAPFUSION_REPEATS}, "whole", LARGE),
    }


@pytest.mark.parametrize(("side", "batch"), [(8, 1), (8, 3), (36, 1), (36, 2)])
def test_heads_compute_what_the_whole_computes(side: int, batch: int) -> None:
    """36 x 36 places are 1,296 queries: three pieces, the last of 272."""
    whole, heads = pair(TINY)
    with torch.no_grad():
        expected, got = (network(*inputs(side, batch)) for network in (whole, heads))
    assert 2 * PIECE < 36 * 36 < 3 * PIECE
    assert PIECES_BEYOND < 36 * 36
    assert float((got - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))
    assert expected.std() > 0.01


def test_weights_and_their_names_are_the_same_and_every_copy_of_a_block_is_split() -> None:
    whole, heads = pair({**TINY, "repeats": {"down_blocks.0.attentions.0": 2}})
    assert list(whole.state_dict()) == list(heads.state_dict())
    layers = [layer for layer in heads.modules() if hasattr(layer, "set_processor")]
    assert len(layers) == 8
    assert all(isinstance(layer.processor, HeadByHead) for layer in layers)
    assert not any(isinstance(getattr(layer, "processor", None), HeadByHead) for layer in whole.modules())


def test_gradients_of_training_are_those_of_the_whole() -> None:
    whole, heads = pair(TINY)
    gradients = []
    for network in (whole, heads):
        network.train()
        network(*inputs(8)).square().mean().backward()
        gradients.append(network.get_parameter("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight").grad)
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-9)


def test_no_matrix_of_scores_is_larger_than_a_piece() -> None:
    shapes = ((1, 4, 36, 36), (1,), (1, 8, 16))
    table = operator_table(pair(TINY)[1], *shapes)
    softmaxes = [row for row in table.operators if row.operation == "_softmax"]
    assert {row.kind for row in softmaxes} == {"normalization"}
    assert max(row.elements_written for row in softmaxes) == PIECE * 36 * 36
    assert not [row for row in table.operators if row.kind == "attention"]
    assert table.macs == operator_table(pair(TINY)[0], *shapes).macs, "the same products"
    assert table.unknown == ()


def test_the_original_is_laid_out_again_only_where_its_compression_begins_so() -> None:
    whole = spec_of(TINY)
    heads, smaller = with_attention(whole, "heads"), with_attention(spec_of({**TINY, "block_out_channels": [8, 16]}), "heads")
    assert original_by_heads(whole, heads) == heads
    assert original_by_heads(whole, smaller) == heads, "its own channels, not the student's"
    for original, start in ((whole, whole), (heads, heads), (heads, whole), (replace(whole, network="unet"), heads), (whole, ModelSpec("unet"))):
        assert original_by_heads(original, start) is None


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="attention: 'split' is no layout; allowed: whole, heads"):
        diffusion_unet(**TINY, attention="split")
    _, heads = pair(TINY)
    layer = next(layer for layer in heads.modules() if hasattr(layer, "set_processor"))
    with pytest.raises(UsageError, match="takes no mask"):
        layer(torch.zeros(1, 4, 16), attention_mask=torch.zeros(1, 4))
    layer.residual_connection = True
    with pytest.raises(UsageError, match="a residual of its own; use attention: whole"):
        split_attention(heads)


def test_the_neural_engine_gets_heads_and_what_apple_publishes(stable_diffusion: dict[str, OperatorTable]) -> None:
    """2.69 iterations a second of two calls each on iPhone 14 Pro Max (apple/ml-stable-diffusion, README): 186 ms a call."""
    device = load_device("apple-a16")
    found = {name: estimate(table, device, "npu", "fp16").value for name, table in stable_diffusion.items()}
    assert found["whole"] == pytest.approx(1700, rel=0.25), "SnapFusion, table 1"
    assert found["heads"] == pytest.approx(186, rel=0.25)
    assert found["heads"] < found["snapfusion"], "which has fewer blocks, and whole attention"


def test_the_estimator_chooses_the_layout() -> None:
    device = load_device("apple-a16")
    spec = spec_of(TINY, 64)
    for unit in ("npu", "cpu"):
        chosen, milliseconds = fastest_attention(spec, device, device.unit(unit), "fp16")
        assert set(milliseconds) == {"whole", "heads"}
        assert milliseconds[layout_of(chosen)] == min(milliseconds.values())
        for layout, value in milliseconds.items():
            table = operator_table(diffusion_unet(**TINY, attention=layout).eval(), *spec.input_shapes)
            assert value == estimate(table, device, unit, "fp16").value
        assert layout_of(chosen) in (note := layout_note(chosen, milliseconds, f"apple-a16 {unit}"))
        assert "whole " in note
    chosen, milliseconds = fastest_attention(spec, device, device.unit("npu"), "fp16")
    assert layout_of(chosen) == "heads"
    other = ModelSpec("rrdb", {}, ())
    assert fastest_attention(other, device, device.unit("npu"), "fp16") == (other, {})
    assert layout_note(other, {}, "") == ""


def test_a_layout_is_named_once_and_leaves_everything_else() -> None:
    published = spec_of({}, 64, (77, 768))
    heads = with_attention(published, "heads")
    assert heads.args == {**SD_15, "attention": "heads"}
    assert with_attention(heads, "whole").args == SD_15
    assert with_attention(replace(published, args=SD_15), "whole").args == SD_15
    repeated = replace(published, args={"repeats": {"down_blocks.0.attentions.0": 0}})
    assert with_attention(repeated, "heads").args == {**SD_15, **repeated.args, "attention": "heads"}
    assert with_guidance(heads, (2.0, 14.0)).args["attention"] == "heads"


def test_scores_are_live_while_attention_runs() -> None:
    """Queries, keys, values and result of 2 heads of 30 places and 4 columns, and 2 x 30 x 30 scores before and behind the softmax."""

    def attention(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(x * 2, x * 3, x * 4)

    def written_out(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return ((x * 2) @ (x * 3).transpose(2, 3) / math.sqrt(4)).softmax(-1) @ (x * 4)

    for way in (attention, written_out):
        table = operator_table(Apply(way), (1, 2, 30, 4))
        (row,) = [row for row in table.operators if row.kind == "attention"]
        assert row.live_elements >= 2 * 2 * 30 * 30 + 2 * 2 * 30 * 4
        assert table.peak_activation_elements == row.live_elements <= 2 * 2 * 30 * 30 + 5 * 2 * 30 * 4
        assert table.planned_peak_elements >= 2 * 2 * 30 * 30


def test_memory_of_both_layouts_at_full_size(stable_diffusion: dict[str, OperatorTable]) -> None:
    """8 heads of 4,096 places: 134 million scores, twice; of a piece 512 x 4,096, twice, beside what the U-Net keeps for its way up."""
    whole, heads = stable_diffusion["whole"], stable_diffusion["heads"]
    assert whole.peak_activation_elements > 2 * 8 * 4096 * 4096
    assert whole.planned_peak_elements > 2 * 8 * 4096 * 4096
    assert heads.peak_activation_elements < whole.peak_activation_elements / 8


@pytest.mark.export
@pytest.mark.parametrize("layout", ["whole", "heads"])
def test_the_exported_graph_confirms_work_and_memory(layout: str, tmp_path: Path) -> None:
    """A second count, of the file's own products and softmaxes; 20 x 20 places, so that scores are what peaks."""
    network = pair(TINY)[layout == "heads"]
    given = dict(zip(("latents", "timestep", "text"), inputs(20), strict=True))
    with captured(tmp_path / "log.txt"):
        path = backend_named("onnx").write(OnnxConfig(), network, given, None, tmp_path / "network").path
    cost, doubts = confirm(path, operator_table(network, *(tuple(value.shape) for value in given.values())))
    assert cost is not None
    assert not doubts, doubts
    assert cost.peak_activation_elements > 2 * 400 * 400


@pytest.mark.export
@pytest.mark.parametrize("backend", CONFIGS)
def test_heads_are_exported_and_run(backend: str, tmp_path: Path) -> None:
    _, network = pair(TINY)
    given = dict(zip(("latents", "timestep", "text"), inputs(8), strict=True))
    with captured(tmp_path / "log.txt"):
        written = backend_named(backend).write(CONFIGS[backend], network, given, None, tmp_path / "network")
        assert not [operator for operator in written.operators if "attention" in operator.kind.lower()]
        if backend == "coreml":  # which only Core ML itself executes
            return
        got = torch.from_numpy(backend_named(backend).load(written.path, 1).run(*(value.numpy() for value in given.values())))
    with torch.no_grad():
        assert torch.allclose(got, network(*given.values()), atol=1e-4)
