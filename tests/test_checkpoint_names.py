"""Weights under the names of the public pix2pix and CycleGAN code: they load, compute the same, and tell which network they belong to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from public_generators import PublicResnet, PublicUnet, trained
from torch import Tensor, nn

from mcompress.compress.models.build import build
from mcompress.compress.models.checkpoint import load_weights
from mcompress.compress.models.checkpoint_names import args_of
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.teacher import load_network
from mcompress.errors import CheckpointError
from mcompress.targets.schema import TeacherConfig

RESNET = {"features": 4, "depths": [1, 1, 1], "convolutions": "plain", "normalization": "instance", "in_channels": 3, "out_channels": 3}
UNET = {"features": 4, "downs": 5, "normalization": "batch", "in_channels": 3, "out_channels": 3}
LEVELS = [4, 8, 16, 32, 32]
CASES = {
    "CycleGAN": (PublicResnet(4, [16] * 3), "resnet_generator", RESNET),
    "pix2pix ResNet": (PublicResnet(4, [16] * 3, "batch", dropout=True), "resnet_generator", {**RESNET, "normalization": "batch"}),
    "batch without dropout": (PublicResnet(4, [16] * 3, "batch"), "resnet_generator", {**RESNET, "normalization": "batch"}),
    "dropout": (PublicResnet(4, [16] * 3, dropout=True), "resnet_generator", RESNET),
    "seven blocks": (PublicResnet(4, [16] * 7), "resnet_generator", {**RESNET, "depths": [2, 2, 3]}),
    "no blocks": (PublicResnet(4, []), "resnet_generator", {**RESNET, "depths": [0, 0, 0]}),
    "mobile": (PublicResnet(4, [16] * 3, separable=True, dropout=True), "resnet_generator", {**RESNET, "convolutions": "separable"}),
    "mobile sub-network": (
        PublicResnet(4, [24, 24, 16, 16, 32, 32], separable=True, dropout=True),
        "resnet_generator",
        {
            **{k: v for k, v in RESNET.items() if k != "features"},
            "widths": [4, 4, 4, 6, 4, 8, 4, 4],
            "depths": [2, 2, 2],
            "convolutions": "separable",
        },
    ),
    "pix2pix": (PublicUnet(LEVELS), "unet_generator", UNET),
    "pix2pix with dropout": (PublicUnet(LEVELS, dropout=True), "unet_generator", UNET),
    "U-Net, instance": (PublicUnet(LEVELS, "instance"), "unet_generator", {**UNET, "normalization": "instance"}),
    "two levels": (PublicUnet([4, 8]), "unet_generator", {**UNET, "downs": 2}),
    "U-Net of other widths": (
        PublicUnet([4, 4, 12, 8]),
        "unet_generator",
        {**{k: v for k, v in UNET.items() if k != "features"}, "widths": [4, 2, 3, 1], "downs": 4},
    ),
}


def image() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("case", list(CASES))
def test_public_weights_tell_their_arguments_load_and_compute_the_same(case: str, tmp_path: Path) -> None:
    public, network, args = CASES[case]
    trained(public)
    torch.save(public.state_dict(), tmp_path / "latest_net_G.pth")
    inputs = (InputSpec("input", (1, 3, 32, 32), (-1.0, 1.0)),)
    spec, loaded = load_network(TeacherConfig(network=network, checkpoint=tmp_path / "latest_net_G.pth"), inputs)
    assert spec.args == args
    with torch.no_grad():
        torch.testing.assert_close(loaded(image()), public(image()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", list(CASES))
def test_weights_under_our_own_names_tell_the_same(case: str) -> None:
    _, network, args = CASES[case]
    assert args_of(network, build(ModelSpec(network, dict(args))).state_dict()) == args


def test_files_of_the_published_sizes_tell_the_defaults() -> None:
    with torch.device("meta"):
        resnet, unet = PublicResnet(64, [256] * 9, dropout=True), PublicUnet([64, 128, 256, *[512] * 5], dropout=True)
        mobile = PublicResnet(16, [64] * 9, separable=True, dropout=True)
    assert [sum(p.numel() for p in network.parameters()) for network in (resnet, mobile, unet)] == [11_378_179, 137_347, 54_413_955]
    assert {"model.1.weight", "model.10.conv_block.1.weight", "model.18.conv_block.6.bias", "model.19.weight", "model.26.bias"} <= set(
        resnet.state_dict()
    )
    assert args_of("resnet_generator", resnet.state_dict()) == {**RESNET, "features": 64, "depths": [3, 3, 3]}
    found = args_of("resnet_generator", mobile.state_dict())
    assert found == {**RESNET, "features": 16, "depths": [3, 3, 3], "convolutions": "separable"}
    assert args_of("unet_generator", unet.state_dict()) == {**UNET, "features": 64, "downs": 8}


def test_old_statistics_of_instance_normalization_are_left_out_and_said(tmp_path: Path) -> None:
    public = trained(PublicResnet(4, [16] * 3))
    state = dict(public.state_dict())
    for name, module in public.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state |= {f"{name}.running_mean": torch.ones(module.num_features), f"{name}.running_var": torch.ones(module.num_features)}
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, tmp_path / "old.pth")
    network = build(ModelSpec("resnet_generator", dict(RESNET)))
    report = load_weights(network, tmp_path / "old.pth", "resnet_generator")
    assert report.notes == ("left out 33 running statistics of instance normalization, which does not use them",)
    assert report.naming == "pix2pix and CycleGAN"
    assert args_of("resnet_generator", state) == RESNET
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image()), public(image()), rtol=1e-6, atol=1e-6)


def test_statistics_of_batch_normalization_stay_and_must_be_there(tmp_path: Path) -> None:
    state = trained(PublicUnet(LEVELS)).state_dict()
    without = {name: value for name, value in state.items() if not name.endswith("running_var")}
    torch.save(without, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"7 of \d+ missing in the file: 'downs.1.norm.running_var'"):
        load_weights(build(ModelSpec("unet_generator", dict(UNET))), tmp_path / "w.pth", "unet_generator")


def test_groups_may_be_told_in_another_way_than_thirds(tmp_path: Path) -> None:
    public = trained(PublicResnet(4, [16] * 4))
    torch.save(public.state_dict(), tmp_path / "w.pth")
    for depths in ([4, 0, 0], [0, 1, 3]):
        network = build(ModelSpec("resnet_generator", {"features": 4, "depths": depths}))
        load_weights(network, tmp_path / "w.pth", "resnet_generator")
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(image()), public(image()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "args", "parts"),
    [
        (
            "resnet_generator",
            {"features": 8, "depths": [1, 1, 1]},
            ("'head.conv.weight' is (4, 3, 7, 7)", "The file is a ResNet generator with {'fea"),
        ),
        ("resnet_generator", {"features": 4, "depths": [1, 1, 0]}, ("not in the network: 'groups.2.0.conv1.weight'", "'depths': [1, 1, 1]")),
        ("resnet_generator", {"features": 4, "depths": [1, 2, 1]}, ("missing in the file: 'groups.2.0.conv1.weight'", "'depths': [1, 1, 1]")),
        (
            "unet_generator",
            {"features": 4},
            ("missing in the file: 'downs.0.conv.weight'", "not the weights of a U-Net generator", "'model.1.weight'"),
        ),
    ],
)
def test_another_size_or_network_is_refused_with_what_the_file_is(
    network: str, args: dict[str, object], parts: tuple[str, ...], tmp_path: Path
) -> None:
    torch.save(trained(PublicResnet(4, [16] * 3)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(build(ModelSpec(network, dict(args))), tmp_path / "w.pth", network)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("network", "public", "message"),
    [
        ("resnet_generator", PublicUnet(LEVELS), "'head.conv.weight' is missing or of no convolution; the first keys are 'model.model.0.weight'"),
        ("resnet_generator", PublicResnet(4, [16, 16, 16, 12, 16, 16]), "the blocks of group 1 have [12, 16] channels inside"),
        (
            "resnet_generator",
            PublicResnet(4, [15] * 3),
            "channels are 4, 8, 16, 15, 15, 15, 8, 4; those of resnet_generator are multiples of 1, 2, 4",
        ),
        ("unet_generator", PublicUnet([4, 8, 14]), "channels are 4, 8, 14; those of unet_generator are multiples of 1, 2, 4"),
        ("unet_generator", nn.Conv2d(3, 3, 3), "'downs.0.conv.weight' is missing"),
    ],
)
def test_weights_that_no_arguments_fit_say_why(network: str, public: nn.Module, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        args_of(network, public.state_dict())


def test_networks_whose_weights_tell_nothing_are_told_apart() -> None:
    assert args_of("patchgan", {}) is None
