"""Uniform pruning of networks with group normalization: a decoder of half width is what its configuration of half width is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.stable_diffusion import DECODER, latent_decoder
from mcompress.compress.prune_channels import PrunableChannels, _weakest
from mcompress.targets.stages import PruneConfig

WHOLE = {**DECODER, "block_out_channels": [16, 32, 64, 64], "norm_num_groups": 8}
HALF = {**WHOLE, "block_out_channels": [8, 16, 32, 32]}
LATENTS = (1, 4, 4, 4)


def parameters(network: nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


def pruned(ratio: float) -> tuple[nn.Module, PrunableChannels]:
    torch.manual_seed(0)
    network, latents = latent_decoder(**WHOLE).eval(), torch.randn(LATENTS)
    network(latents).square().mean().backward()
    channels = PrunableChannels(network, (latents,), 8)
    for name in channels.prunable:
        chosen = channels.share(name, ratio)
        if chosen is not None:
            channels.remove(chosen)
    return network, channels


def test_half_of_every_layer_is_the_decoder_of_half_width() -> None:
    """At its published size, in the same way, 49,490,179 parameters become 12,387,459 (that takes 17 s)."""
    network, channels = pruned(0.5)
    assert not channels.fixed
    half = latent_decoder(**HALF)
    assert parameters(network) == parameters(half)
    assert {name: one.shape for name, one in network.state_dict().items()} == {name: one.shape for name, one in half.state_dict().items()}
    assert network(torch.randn(LATENTS)).shape == (1, 3, 32, 32)


def test_its_edits_build_it_again() -> None:
    network, channels = pruned(0.5)
    spec = ModelSpec("latent_decoder", dict(WHOLE), channels.edits(), LATENTS, (-1.0, 1.0), "latents")
    made = build(spec).eval()
    made.load_state_dict(network.state_dict())
    latents = torch.randn(LATENTS)
    torch.testing.assert_close(made(latents), network(latents))


def test_the_weakest_go_evenly_from_all_groups_of_a_normalization() -> None:
    scores = torch.tensor([5.0, 1.0, 2.0, 9.0, 8.0, 7.0, 6.0, 10.0])
    assert _weakest(scores, 4, 2) == (1, 2, 5, 6)
    assert _weakest(scores, 3, 1) == (0, 1, 2)


def test_a_group_norm_without_some_of_its_channels_in_every_group_keeps_the_others_where_they_were() -> None:
    """Channels that are zero and leave in equal numbers from each group: what is left is normalized by what is left."""
    norm = nn.GroupNorm(2, 4).eval()
    network = nn.Sequential(nn.Conv2d(1, 4, 1), norm, nn.Conv2d(4, 1, 1)).eval()
    image = torch.randn(1, 1, 6, 6)
    network(image).square().mean().backward()
    channels = PrunableChannels(network, (image,), 1)
    chosen = channels.share("0", 0.5)
    assert chosen is not None
    assert sorted(channel // 2 for channel in chosen.channels) == [0, 1]
    channels.remove(chosen)
    assert network[1].num_channels == 2
    assert network[1].num_groups == 2


def test_uniform_takes_a_ratio() -> None:
    assert PruneConfig(ratio=0.5, uniform=True).uniform
    for wrong in ({"latency_ratio": 0.5}, {"latency_ratio": 0.5, "blocks": True}):
        with pytest.raises(ValueError, match="uniform takes the share ratio from every layer"):
            PruneConfig(uniform=True, **wrong)
