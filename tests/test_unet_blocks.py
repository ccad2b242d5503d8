"""Blocks of diffusion UNets that go, come twice or are passed by, and the weights that networks of other layouts inherit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mcompress.compress.models.build import build, build_meta, example_inputs
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.models.stable_diffusion import BK_SDM_BASE, BK_SDM_SMALL, BK_SDM_TINY, SD_2
from mcompress.compress.models.unet_blocks import (
    blocks_of,
    doubled,
    passed_by,
    plain,
    standing,
    with_copy,
    with_count,
    without,
    without_blocks,
)
from mcompress.compress.models.unet_weights import BkSdmSize, bk_sdm, inherited, repeats_of
from mcompress.errors import PlanError, UsageError

SMALL = {
    "sample_size": 8, "cross_attention_dim": 8, "attention_head_dim": 4, "norm_num_groups": 4, "block_out_channels": [8, 8, 16, 16],
}  # fmt: skip
"""Stable Diffusion's layout, narrow: 16 attention and 22 residual blocks."""
INPUTS = (InputSpec("latents", (1, 4, 8, 8), (-2.0, 2.0)), InputSpec("timestep", (1,), (0.0, 999.0)), InputSpec("text", (1, 5, 8), (-1.0, 1.0)))
SPEC = ModelSpec.taking(INPUTS, "diffusion_unet", SMALL)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build(SPEC).eval()


@torch.no_grad()
def computed(network: nn.Module) -> Tensor:
    return network(*example_inputs(SPEC))


def rebuilt(spec: ModelSpec, network: nn.Module) -> nn.Module:
    made = build(ModelSpec.from_json(spec.to_json())).eval()
    made.load_state_dict(network.state_dict())
    return made


def test_stable_diffusion_has_the_blocks_of_snapfusions_table() -> None:
    counted: dict[str, list[int]] = {}
    for block in blocks_of(ModelSpec("diffusion_unet", {}, (), (1, 4, 64, 64))):
        counted.setdefault(f"{block.stage} {block.side} {block.channels}", [0, 0])[block.attention] += 1
    assert counted == {
        "Down-1 64 320": [2, 2],
        "Down-2 32 640": [2, 2],
        "Down-3 16 1280": [2, 2],
        "Mid 8 1280": [7, 1],
        "Up-1 16 1280": [3, 3],
        "Up-2 32 640": [3, 3],
        "Up-3 64 320": [3, 3],
    }


def test_without_a_block_is_the_network_whose_block_gives_its_input_on(network: nn.Module) -> None:
    whole = computed(network)
    for name, block in list(standing(SPEC).items())[::3]:
        with passed_by(network, [(name, block)]):
            wanted = computed(network)
        spec, left = without_blocks(SPEC, network, [name])
        assert torch.allclose(computed(left), wanted, atol=1e-6)
        assert not torch.allclose(wanted, whole, atol=1e-5)
        assert torch.equal(computed(rebuilt(spec, left)), computed(left))
        assert name not in standing(spec)
    assert torch.equal(computed(network), whole)


def test_several_blocks_go_at_once_and_one_after_the_other_alike(network: nn.Module) -> None:
    gone = list(standing(SPEC))[::7]
    spec, left, blocks = SPEC, network, standing(SPEC)
    for name in gone:
        spec, left = without_blocks(spec, left, [name])
    assert without(SPEC, gone) == spec
    with passed_by(network, [(name, blocks[name]) for name in gone]):
        assert torch.allclose(computed(network), computed(left), atol=1e-6)
    at_once = without_blocks(SPEC, network, gone)[1]
    assert at_once.state_dict().keys() == left.state_dict().keys()
    assert torch.equal(computed(at_once), computed(left))


def test_doubling_and_removing_the_copy_gives_the_original_back(network: nn.Module) -> None:
    whole = network.state_dict()
    for block in [one for one in blocks_of(SPEC) if one.repeatable][::5]:
        spec, twice = with_copy(SPEC, network, block.name)
        assert spec == doubled(SPEC, block.name)
        assert repeats_of(spec) == {block.name: 2}
        assert {f"{block.name}.0", f"{block.name}.1"} <= standing(spec).keys()
        assert torch.equal(computed(rebuilt(spec, twice)), computed(twice))
        with passed_by(twice, [(f"{block.name}.1", standing(spec)[f"{block.name}.1"])]):
            assert torch.equal(computed(twice), computed(network))
        for copy in (0, 1):
            once, left = without_blocks(spec, twice, [f"{block.name}.{copy}"])
            assert once == SPEC
            assert all(torch.equal(value, whole[name]) for name, value in left.state_dict().items())


def test_the_copy_that_goes_is_the_one_that_was_named(network: nn.Module) -> None:
    name = "mid_block.attentions.0"
    spec, twice = with_copy(SPEC, network, name)
    with torch.no_grad():
        for parameter in twice.get_submodule(f"unet.{name}.1").parameters():
            parameter.add_(1.0)  # of the copy alone: it shares nothing
    for copy, other in ((0, 1), (1, 0)):
        with passed_by(twice, [(f"{name}.{copy}", standing(spec)[f"{name}.{copy}"])]):
            wanted = computed(twice)
        assert torch.allclose(computed(without_blocks(spec, twice, [f"{name}.{copy}"])[1]), wanted, atol=1e-6)
        kept = without_blocks(spec, twice, [f"{name}.{copy}"])[1].get_submodule(f"unet.{name}").state_dict()
        assert all(torch.equal(value, kept[key]) for key, value in twice.get_submodule(f"unet.{name}.{other}").state_dict().items())


def test_a_block_that_stands_once_is_not_listed() -> None:
    assert with_count(with_count(SPEC, "mid_block.attentions.0", 2), "mid_block.attentions.0", 1) == SPEC
    assert plain(with_count(SPEC, "mid_block.attentions.0", 0)) == SPEC


@pytest.mark.parametrize(("size", "args"), [("base", BK_SDM_BASE), ("small", BK_SDM_SMALL), ("tiny", BK_SDM_TINY)])
def test_bk_sdm_is_made_from_stable_diffusions_layout(size: BkSdmSize, args: dict[str, object]) -> None:
    original = ModelSpec("diffusion_unet", {}, (), (1, 4, 64, 64))
    spec = bk_sdm(original, size)
    assert spec.args == args
    made = build_meta(spec).state_dict()
    weights = inherited(build_meta(original).state_dict(), original, spec)
    assert {name: value.shape for name, value in weights.items()} == {name: value.shape for name, value in made.items()}
    assert sum(value.numel() for value in weights.values()) == {"base": 579_384_964, "small": 482_346_884, "tiny": 323_384_964}[size]


@pytest.mark.parametrize("size", ["base", "small", "tiny"])
def test_bk_sdms_network_is_the_original_that_passes_its_blocks_by(size: BkSdmSize, network: nn.Module) -> None:
    blocks = standing(SPEC)
    gone = {name for name in blocks if name.split(".")[-1] == "1" and not name.startswith("mid_block")}
    if size != "base":
        gone |= {name for name in blocks if name.startswith("mid_block")}
    samplers = {"down_blocks.2.downsamplers": None, "up_blocks.0.upsamplers": None}
    if size == "tiny":
        gone |= {name for name in blocks if name.startswith(("down_blocks.3.", "up_blocks.0."))}
    original = network.get_submodule("unet")
    with passed_by(network, [(name, blocks[name]) for name in sorted(gone)]):
        for name in samplers if size == "tiny" else ():
            stage, _, which = name.rpartition(".")
            samplers[name] = getattr(original.get_submodule(stage), which)
            setattr(original.get_submodule(stage), which, nn.ModuleList([Same()]))
        wanted = computed(network)
        for name, modules in samplers.items():
            stage, _, which = name.rpartition(".")
            if modules is not None:
                setattr(original.get_submodule(stage), which, modules)
    spec = bk_sdm(SPEC, size)
    made = build(spec).eval()
    made.load_state_dict(inherited(network.state_dict(), SPEC, spec))
    assert torch.allclose(computed(made), wanted, atol=1e-6)
    assert not torch.allclose(wanted, computed(network), atol=1e-5)


class Same(nn.Module):
    """A sampler that leaves the resolution as it is."""

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        return hidden


def test_every_weight_comes_from_the_original_and_the_ends_of_a_stage_correspond(network: nn.Module) -> None:
    weights = network.state_dict()
    given = inherited(weights, SPEC, bk_sdm(SPEC, "tiny"))
    for name, source in (
        ("conv_in.weight", "conv_in.weight"),
        ("down_blocks.1.resnets.0.conv1.weight", "down_blocks.1.resnets.0.conv1.weight"),
        ("up_blocks.0.attentions.0.proj_in.weight", "up_blocks.1.attentions.0.proj_in.weight"),
        ("up_blocks.0.resnets.1.conv1.weight", "up_blocks.1.resnets.2.conv1.weight"),
        ("up_blocks.1.upsamplers.0.conv.bias", "up_blocks.2.upsamplers.0.conv.bias"),
    ):
        assert given[f"unet.{name}"] is weights[f"unet.{source}"]


def test_weights_are_not_inherited_from_what_does_not_have_them(network: nn.Module) -> None:
    gone = with_count(SPEC, "mid_block.attentions.0", 0)
    with pytest.raises(UsageError, match=r"nothing in the original corresponds to unet\.mid_block\.attentions\.0\.norm\.weight, and \d+ more"):
        inherited(without_blocks(SPEC, network, ["mid_block.attentions.0"])[1].state_dict(), gone, SPEC)
    wider = replace(SPEC, args={**SMALL, "block_out_channels": [16, 16, 16, 16]})
    with pytest.raises(UsageError, match=r"unet\.conv_in\.weight is \(16, 4, 3, 3\), and unet\.conv_in\.weight of the original is \(8, 4, 3, 3\)"):
        inherited(network.state_dict(), SPEC, wider)
    heads = replace(SPEC, args={**SMALL, "attention_head_dim": 2})
    with pytest.raises(UsageError, match="attention_head_dim is 2 here and 4 in the original"):
        inherited(network.state_dict(), SPEC, heads)


def test_bk_sdm_needs_a_whole_network_of_two_layers_a_stage() -> None:
    with pytest.raises(UsageError, match="start from a whole network"):
        bk_sdm(with_count(SPEC, "mid_block.attentions.0", 0), "base")
    with pytest.raises(UsageError, match="layers_per_block of this network is 1"):
        bk_sdm(bk_sdm(SPEC, "base"), "base")
    with pytest.raises(UsageError, match="one stage only"):
        bk_sdm(replace(SPEC, args={**SMALL, "block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}), "tiny")


def test_tiny_of_a_network_with_heads_stage_by_stage_keeps_the_heads_of_what_is_left() -> None:
    original = ModelSpec("diffusion_unet", SD_2, (), (1, 4, 96, 96))
    tiny = bk_sdm(original, "tiny")
    tiny = replace(tiny, args={**tiny.args, "attention_head_dim": [5, 10, 20]})
    assert inherited(build_meta(original).state_dict(), original, tiny).keys() == build_meta(tiny).state_dict().keys()


def test_repeats_that_the_network_does_not_have_are_refused() -> None:
    with pytest.raises(PlanError, match="is no block that can be left out or doubled"):
        build(with_count(SPEC, "mid_block.attentions.7", 0))
