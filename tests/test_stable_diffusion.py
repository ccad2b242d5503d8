"""Stable Diffusion's networks: published counts to the digit, and blocks that are left out or doubled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.stable_diffusion import (
    BK_SDM_BASE,
    BK_SDM_SMALL,
    BK_SDM_TINY,
    DECODER,
    SD_2,
    SD_15,
    clip_text,
    diffusion_unet,
    latent_decoder,
    removable,
)
from mcompress.errors import UsageError

SMALL = {"sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 4, "block_out_channels": [32, 64, 64, 64]}


def parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


@pytest.mark.parametrize(
    ("config", "count"),
    [(SD_15, 859_520_964), (SD_2, 865_910_724), (BK_SDM_BASE, 579_384_964), (BK_SDM_SMALL, 482_346_884), (BK_SDM_TINY, 323_384_964)],
    ids=["SD-1.5", "SD-2.x", "BK-SDM Base", "BK-SDM Small", "BK-SDM Tiny"],
)
def test_unets_have_their_published_parameters(config: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        assert parameters(diffusion_unet(**config)) == count


def test_decoders_and_the_text_model_have_their_published_parameters() -> None:
    half = {**DECODER, "block_out_channels": [64, 128, 256, 256]}
    with torch.device("meta"):
        assert parameters(latent_decoder().decoder) == 49_490_179
        assert parameters(latent_decoder(**half).decoder) == 12_387_459
        assert parameters(clip_text()) == 123_060_480


def test_the_operator_table_counts_what_is_published() -> None:
    """338.61 G in convolutions and linear layers, 63.03 G between queries, keys and values (SD-1.5, 64 x 64 latents, 77 tokens)."""
    with torch.device("meta"):
        unet = diffusion_unet().eval()
    table = operator_table(unet, (1, 4, 64, 64), (1,), (1, 77, 768))
    attention = sum(one.macs for one in table.operators if one.kind == "attention")
    assert (table.macs - attention) / 1e9 == pytest.approx(338.61, abs=0.005)
    assert attention / 1e9 == pytest.approx(63.03, abs=0.005)


@pytest.mark.parametrize("count", [0, 2])
def test_every_block_that_can_be_left_out_or_doubled_runs_so(count: int) -> None:
    whole = diffusion_unet(**SMALL).eval()
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 7, 16)
    with torch.no_grad():
        for name in removable(whole.unet):
            block = whole.unet.get_submodule(name)
            if count == 2 and ".resnets." in name and block.in_channels != block.out_channels:
                continue
            made = diffusion_unet(**SMALL, repeats={name: count}).eval()
            assert made(*inputs).shape == (1, 4, 8, 8)
            assert parameters(made) == parameters(whole) + (count - 1) * parameters(block)


def test_a_block_that_cannot_be_left_out_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'down_blocks\.1\.resnets\.0' is no block that can be left out or doubled; these can: down_blocks\.0"):
        diffusion_unet(**SMALL, repeats={"down_blocks.1.resnets.0": 0})
    with pytest.raises(UsageError, match="takes 128 channels and gives 64, so it cannot stand behind itself"):
        diffusion_unet(**SMALL, repeats={"up_blocks.1.resnets.1": 2})
