"""The networks by name: published parameter counts, arguments that are refused, intermediate features, edits, and the user's own modules."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from public_generators import trained
from torch import nn

from mcompress.compress.models import MODELS
from mcompress.compress.models.build import build, build_meta, example_inputs, find_builder, record_edits
from mcompress.compress.models.checkpoint import load_weights
from mcompress.compress.models.patchgan import patchgan
from mcompress.compress.models.spec import InputSpec, ModelSpec, PruningEdit
from mcompress.compress.models.vgg_discriminator import vgg_discriminator
from mcompress.compress.models.wav2lip import QUARTER_WIDTH, WITHOUT_BLOCKS
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.errors import PlanError, UsageError
from mcompress.estimating import count_model
from mcompress.targets.load import load_target
from mcompress.targets.schema import DataConfig

SMALL: dict[str, tuple[object, ...]] = {
    "rrdb": ({"features": 8, "blocks": 1, "growth": 4}, (1, 3, 16, 16)),
    "mfagan": ({"channels": 8, "blocks": [[2, 8], [1, 8]]}, (1, 3, 16, 16)),
    "imdn": ({"features": 16, "blocks": 2}, (1, 3, 16, 16)),
    "resnet_generator": ({"widths": [4, 4, 4, 4, 6, 4, 4, 6], "depths": [1, 0, 2], "convolutions": "separable"}, (1, 3, 16, 16)),
    "unet_generator": ({"features": 4, "downs": 3}, (1, 3, 16, 16)),
    "wav2lip": (
        {
            "face_widths": [4, 4, 6, 8, 8, 8],
            "audio_widths": [4, 4, 6, 8, 8],
            "decoder_widths": [8, 8, 8, 6, 6, 4, 4],
            "output_width": 4,
            "face_blocks": [1, 0, 1, 0, 0],
            "audio_blocks": [0, 1, 0, 0],
            "decoder_blocks": [0, 0, 0, 1, 0, 1],
        },
        (2, 6, 96, 96),
        (2, 1, 80, 16),
    ),
    "syncnet": ({"width": 16}, (2, 15, 48, 96), (2, 1, 80, 16)),
    "quality_discriminator": ({"width": 16}, (1, 3, 48, 96)),
    "patchgan": ({"features": 8}, (1, 3, 64, 64)),
    "vgg_discriminator": ({"features": 4}, (1, 3, 128, 128)),
    "diffusion_unet": (
        {
            "sample_size": 8,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
        (1, 4, 8, 8),
        (1,),
        (1, 6, 16),
    ),
    "latent_decoder": (
        {
            "block_out_channels": [8, 16],
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "layers_per_block": 1,
            "latent_channels": 4,
            "sample_size": 16,
            "norm_num_groups": 4,
        },
        (1, 4, 8, 8),
    ),
    "clip_text": (
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 8,
            "bos_token_id": 30,
            "eos_token_id": 31,
            "pad_token_id": 31,
        },
        (1, 8),
    ),
}
"""Name -> small arguments and input shapes; every line of MODELS must be here."""

CUT_ANYWHERE = [name for name in MODELS if name not in ("diffusion_unet", "latent_decoder", "clip_text")]
"""Those that can lose any channel; the others have them in groups and heads, and the decoder, which is pruned, is in tests/test_prune_uniform.py."""
SCALED = ("rrdb", "mfagan", "imdn")
TRANSLATED = ("resnet_generator", "unet_generator")
OUTPUTS = (
    "face_encoder.16.conv_block.0",
    "audio_encoder.13.conv_block.0",
    "conv_last",
    "tail",
    "ups.0.conv",
    "upsampler",
    "upsampler.0",
    "logits",
    "up2",
)
"""Layers whose output channels are the network's output."""


def small(name: str) -> ModelSpec:
    args, *shapes = SMALL[name]
    return ModelSpec.taking(tuple(InputSpec(f"input{index}", shape, (0.0, 1.0)) for index, shape in enumerate(shapes)), name, args)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "args", "published"),
    [
        ("rrdb", {}, 16_697_987),
        ("rrdb", {"blocks": 6}, 4_467_779),
        ("imdn", {}, 715_176),
        ("patchgan", {}, 2_764_737),
        ("patchgan", {"in_channels": 6}, 2_767_809),
        ("patchgan", {"in_channels": 6, "normalization": "batch"}, 2_768_705),
        ("patchgan", {"features": 128, "in_channels": 6}, 11_040_641),
        ("patchgan", {"features": 128, "in_channels": 6, "normalization": "batch"}, 11_042_433),
        ("wav2lip", {}, 36_298_035),
        ("wav2lip", WITHOUT_BLOCKS, 20_061_555),
        ("wav2lip", {"output_width": 8, **QUARTER_WIDTH, **WITHOUT_BLOCKS}, 1_258_143),
        ("syncnet", {}, 16_435_072),
        ("quality_discriminator", {}, 14_113_793),
        ("vgg_discriminator", {}, 14_499_401),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, args: dict[str, object], published: int) -> None:
    assert count(build_meta(ModelSpec(name, args))) == published


def test_every_network_has_a_small_form_here() -> None:
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize("name", list(MODELS))
def test_networks_run_and_learn(name: str) -> None:
    spec = small(name)
    network = build(spec)
    output = network(*example_inputs(spec))
    expected: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(SCALED, (1, 3, 64, 64)),
        **dict.fromkeys(TRANSLATED, (1, 3, 16, 16)),
        "patchgan": (1, 1, 6, 6),
        "wav2lip": (2, 3, 96, 96),
    }
    expected |= {"syncnet": (2,), "quality_discriminator": (1,)}
    expected |= {"diffusion_unet": (1, 4, 8, 8), "latent_decoder": (1, 3, 16, 16), "clip_text": (1, 8, 16)}
    assert output.shape == expected.get(name, (1, 1))
    output.sum().backward()
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@pytest.mark.parametrize("name", list(MODELS))
def test_one_seed_gives_one_network_and_building_on_meta_gives_its_shapes(name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build(small(name)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    meta = build_meta(small(name)).state_dict()
    assert {key: value.shape for key, value in meta.items()} == {key: value.shape for key, value in states[0].items()}
    assert all(value.is_meta for value in meta.values())


@pytest.mark.parametrize("name", list(MODELS))
def test_builders_take_keywords_only_and_have_a_summary(name: str) -> None:
    with pytest.raises(TypeError):
        MODELS[name](8)
    assert (MODELS[name].__doc__ or "").splitlines()[0].strip()


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("rrdb", {"blocks": 0}, "rrdb: blocks is 0; it must be a whole number from 1 to 128"),
        ("rrdb", {"features": 64.0}, "rrdb: features is 64.0; it must be a whole number from 1 to 1024"),
        ("rrdb", {"growth": True}, "rrdb: growth is True; it must be a whole number"),
        ("rrdb", {"block": 6}, "'rrdb' has no argument 'block' (did you mean 'blocks'?); it takes features, blocks, growth"),
        ("mfagan", {"blocks": []}, "mfagan: blocks is []; it must hold at least one pair (branches, width), for example [[3, 32], [2, 24]]"),
        ("mfagan", {"blocks": [[3]]}, "mfagan: blocks is [[3]]; it must hold"),
        ("mfagan", {"blocks": [[3, 0]]}, "mfagan: blocks[0] width is 0"),
        ("mfagan", {"blocks": "32"}, "mfagan: blocks is '32'"),
        ("imdn", {"features": 18}, "imdn: features is 18; it must be a multiple of 4"),
        ("imdn", {"features": 8}, "imdn: features is 8; it must be a whole number from 16"),
        ("patchgan", {"normalization": "layer"}, "patchgan: normalization is 'layer'; it must be one of instance, batch"),
        ("patchgan", {"layers": 9}, "patchgan: layers is 9"),
        ("vgg_discriminator", {"features": -1}, "vgg_discriminator: features is -1"),
        (
            "rrdbb",
            {},
            "network 'rrdbb' is not known (did you mean 'rrdb'?); known are clip_text, diffusion_unet, imdn, latent_decoder, mfagan, patchgan, "
            "quality_discriminator, resnet_generator, rrdb, syncnet, unet_generator, vgg_discriminator, wav2lip",
        ),
        ("my_network", {}, "written package.module:function, for example my_network:build"),
    ],
)
def test_wrong_names_and_arguments_are_refused_with_a_reason(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        build(ModelSpec(name, args))


def test_all_wrong_arguments_are_said_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        build(ModelSpec("rrdb", {"block": 1, "feature": 2}))
    assert len(caught.value.problems) == 2


def test_discriminators_show_what_they_see() -> None:
    image = torch.rand(2, 3, 128, 128)
    for network, blocks in (
        (patchgan(features=4), 4),
        (patchgan(features=4, layers=2, normalization="batch"), 3),
        (vgg_discriminator(features=2), 11),
    ):
        network.eval()
        features = network.forward_features(image)
        assert len(features) == blocks + 1
        assert all(feature.shape[0] == 2 for feature in features)
        assert torch.equal(features[-1], network(image))
        assert features[-1].shape[1] == 1


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_patchgan_judges_patches_of_the_published_size(layers: int, field: int) -> None:
    """One logit depends on exactly `field` pixels in each direction; without normalization, which mixes everything."""
    network = patchgan(features=2, layers=layers)
    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) == 3:
            module[1] = nn.Identity()
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
    image = torch.ones(1, 3, 320, 320, requires_grad=True)
    logits = network(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    touched = image.grad[0, 0].abs().sum(0).nonzero()
    assert int(touched.max() - touched.min()) + 1 == field


def test_the_vgg_discriminator_says_which_size_it_takes() -> None:
    with pytest.raises(UsageError, match=r"image is \(64, 64\) pixels; it must be \(128, 128\). Use patchgan"):
        vgg_discriminator(features=2)(torch.rand(1, 3, 64, 64))


# --- structural edits ---


def pruned(spec: ModelSpec, seed: int, cuts: int = 3) -> tuple[nn.Module, ModelSpec]:
    """A network with random channels removed through torch-pruning, and the specification with torch-pruning's history."""
    network = build(spec)
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=example_inputs(spec))
    fixed = {network.get_submodule(name) for name in OUTPUTS if name in dict(network.named_modules())}
    groups = [
        group
        for group in graph.get_all_groups(root_module_types=[nn.Conv2d])
        if not any(dep.target.module in fixed and graph.is_out_channel_pruning_fn(dep.handler) for dep, _ in group)
        and graph.get_out_channels(group[0].dep.target.module) > 1
    ]
    generator = torch.Generator().manual_seed(seed)
    for index in torch.randperm(len(groups), generator=generator)[:cuts].tolist():
        module = groups[index][0].dep.target.module
        width = graph.get_out_channels(module)
        gone = torch.randperm(width, generator=generator)[: max(1, width // 4)].sort().values.tolist()
        graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, gone).prune()
    return network, spec.with_edits(record_edits(graph.pruning_history()))


@pytest.mark.filterwarnings("ignore::UserWarning:torch_pruning")
@pytest.mark.parametrize("name", CUT_ANYWHERE)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_spec_and_weights_rebuild_any_pruned_network(name: str, seed: int) -> None:
    network, spec = pruned(small(name), seed)
    assert spec.edits
    again = build(ModelSpec.from_json(spec.to_json()))
    again.load_state_dict(network.state_dict())
    assert count(again) < count(build(small(name)))
    inputs = example_inputs(spec)
    with torch.no_grad():
        assert torch.equal(again.eval()(*inputs), network.eval()(*inputs))
    assert {k: v.shape for k, v in build_meta(spec).state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}


@pytest.mark.filterwarnings("ignore::UserWarning:torch_pruning")
@pytest.mark.parametrize("name", CUT_ANYWHERE)
def test_a_network_can_be_pruned_saved_and_pruned_again(name: str) -> None:
    """The second history was made on a graph of the pruned network; replay uses one graph of the original for both."""
    for seed in range(3):
        _, once = pruned(small(name), seed, cuts=2)
        twice_network, twice = pruned(once, seed + 100, cuts=2)
        again = build(twice)
        again.load_state_dict(twice_network.state_dict())


SHARED: dict[str, tuple[ModelSpec, tuple[str, ...]]] = {
    "imdn": (
        ModelSpec("imdn", {"features": 32, "blocks": 2}, (), (1, 3, 16, 16)),
        ("fea_conv", "IMDB1.c1", "IMDB2.c3", "IMDB1.c4", "IMDB2.cca.conv_du.0", "LR_conv"),
    ),
    "resnet_generator": (
        ModelSpec("resnet_generator", {"features": 8, "depths": [1, 0, 1], "convolutions": "separable"}, (), (1, 3, 16, 16)),
        ("head.conv", "downs.0.conv", "downs.1.conv", "groups.0.0.conv1.pointwise", "groups.2.0.conv2.pointwise", "ups.0.conv", "ups.1.conv"),
    ),
    "unet_generator": (
        ModelSpec("unet_generator", {"features": 8, "downs": 3}, (), (1, 3, 16, 16)),
        ("downs.0.conv", "downs.1.conv", "downs.2.conv", "ups.1.conv", "ups.2.conv"),
    ),
}
"""Networks in which several layers read a part of the same channels: split, joined, transposed."""


@pytest.mark.filterwarnings("ignore::UserWarning:torch_pruning")
@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name, (_, layers) in SHARED.items() for layer in layers])
def test_pruning_through_splits_and_joins_removes_what_it_should(name: str, layer: str) -> None:
    """The pruned network equals the whole one with the removed channels unread by every layer that takes them."""
    spec, _ = SHARED[name]
    torch.manual_seed(3)
    network = build(spec).eval() if name == "imdn" else trained(build(spec))
    whole = copy.deepcopy(network)
    x = example_inputs(spec)[0]
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=x)
    module = network.get_submodule(layer)
    channels = [1] if module.out_channels < 8 else [1, 5, 12][: module.out_channels // 8]
    group = graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, channels)
    names = {m: name for name, m in network.named_modules()}
    for dep, gone in group:
        reader = dep.target.module
        # A depthwise convolution reads nothing of other channels; who reads what it gives is in the group as well.
        if isinstance(reader, nn.Conv2d | nn.ConvTranspose2d) and reader.groups == 1 and graph.is_in_channel_pruning_fn(dep.handler):
            weight = whole.get_submodule(names[reader]).weight.data
            (weight.transpose(0, 1) if isinstance(reader, nn.ConvTranspose2d) else weight)[:, gone] = 0
    group.prune()
    with torch.no_grad():
        torch.testing.assert_close(network(x), whole(x), atol=1e-6, rtol=1e-5)


def test_replay_leaves_training_mode_and_frozen_parameters_alone(tmp_path: Path, own_module) -> None:
    own_module(
        "frozen_network",
        "from torch import nn\n"
        "def build():\n"
        "    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8).eval(), nn.Conv2d(8, 3, 3))\n"
        "    network[0].requires_grad_(False)\n"
        "    return network\n",
    )
    network = build(ModelSpec("frozen_network:build", {}, (PruningEdit("0", True, (1, 2)),), (1, 3, 8, 8)))
    assert [module.training for module in network] == [True, False, True]
    assert [parameter.requires_grad for parameter in network.parameters()] == [False, False, True, True, True, True]
    assert network[0].weight.shape[0] == network[1].num_features == network[2].weight.shape[1] == 6


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (PruningEdit("body.0.rdb1.conv9", True, (0,)), "edit 1 of 1 names the layer 'body.0.rdb1.conv9', which the network does not have (did"),
        (PruningEdit("body", True, (0,)), "names the layer 'body' (Sequential), which has no channels to remove"),
        (PruningEdit("conv_first", True, (8,)), "removes channel 8 of 'conv_first', which has 8"),
        (PruningEdit("conv_first", True, tuple(range(8))), "removes all 8 channels of 'conv_first'"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit: PruningEdit, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        build(small("rrdb").with_edits((edit,)))


def test_input_channels_can_be_the_root_of_an_edit() -> None:
    network = build(small("rrdb").with_edits((PruningEdit("conv_hr", False, (3,)),)))
    assert network.conv_hr.in_channels == network.conv_up2.out_channels == 7


# --- the user's own network ---

GOOD = "from torch import nn\ndef build(width: int = 4, *, depth: int):\n    return nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(depth)))\n"


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module into a folder that can be imported from during the test."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_an_own_network_is_built_and_imported_only_when_it_is_named(own_module) -> None:
    own_module("own_a", GOOD)
    build(ModelSpec("mfagan"))
    assert "own_a" not in sys.modules
    assert len(build(ModelSpec("own_a:build", {"depth": 3}))) == 3
    assert find_builder("own_a:build") is sys.modules["own_a"].build


@pytest.mark.parametrize(
    ("text", "network", "args", "message"),
    [
        (GOOD, "no_such:build", {}, "network 'no_such:build': there is no module 'no_such'; put the file beside the target file"),
        (GOOD, "own_b.inner:build", {}, "there is no module 'own_b.inner'|importing own_b.inner failed|not a package"),
        (GOOD, "own_b:biuld", {}, r"own_b has no function 'biuld' \(did you mean 'build'\?\) \(.*own_b.py\)"),
        ("build = 3\n", "own_b:build", {}, "build is a int; it must be a function that returns a torch.nn.Module"),
        (GOOD, "own_b:build", {}, "needs the argument 'depth'; add it under args; it takes width, depth"),
        (GOOD, "own_b:build", {"depth": 1, "widht": 2}, r"has no argument 'widht' \(did you mean 'width'\?\)"),
        (GOOD, "own_b:build", {"depth": "two"}, r"building it with args \{'depth': 'two'\} failed: TypeError"),
        (GOOD, "own_b:build", {"depth": 0}, "has no parameters with args"),
        ("def build():\n    return 3\n", "own_b:build", {}, "returned a int; it must return a torch.nn.Module"),
        ("import no_such_package\n", "own_b:build", {}, "own_b needs the module 'no_such_package', which is not installed"),
        ("def build(:\n", "own_b:build", {}, "importing own_b failed: SyntaxError"),
        ("raise RuntimeError('boom')\n", "own_b:build", {}, "importing own_b failed: RuntimeError: boom"),
        ("def build(width, /):\n    pass\n", "own_b:build", {"width": 1}, "can only be given by position|has no argument 'width'"),
    ],
)
def test_an_own_network_that_cannot_be_built_says_why(own_module, text: str, network: str, args: dict[str, object], message: str) -> None:
    own_module("own_b", text)
    with pytest.raises(PlanError, match=message):
        build(ModelSpec(network, args))


def test_an_own_network_that_needs_real_numbers_is_counted_all_the_same(own_module) -> None:
    text = "from torch import nn\ndef build():\n    c = nn.Conv2d(3, 4, 3)\n    c.bias.data.fill_(float(c.weight.sum().item()))\n    return c\n"
    own_module("own_c", text)
    assert count(build_meta(ModelSpec("own_c:build"))) == 3 * 4 * 9 + 4


def test_an_own_network_that_does_not_run_on_the_input_shape_says_so(own_module) -> None:
    own_module("own_d", "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))\n")
    with pytest.raises(PlanError, match=r"network 'own_d:build' does not run on an input of \(1, 3, 8, 8\)"):
        build(ModelSpec("own_d:build", {}, (PruningEdit("0", True, (0,)),), (1, 3, 8, 8)))


def test_the_example_input_is_repeatable_and_in_range() -> None:
    spec = ModelSpec("rrdb", input_shape=(2, 3, 8, 8), input_range=(-1.0, 1.0))
    x = example_inputs(spec)[0]
    assert torch.equal(x, example_inputs(spec)[0])
    assert x.shape == (2, 3, 8, 8)
    assert -1 <= float(x.min()) < -0.5
    assert 0.5 < float(x.max()) <= 1


# --- the example of an own network ---

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_network"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """The example's target, its folder importable."""
    monkeypatch.syspath_prepend(EXAMPLE)
    yield load_target(EXAMPLE / "own_network.yaml")
    sys.modules.pop("my_network", None)


@pytest.mark.filterwarnings("ignore::UserWarning:torch_pruning")
def test_the_example_is_built_loaded_pruned_and_rebuilt(example) -> None:
    teacher = example.model.teacher
    assert teacher.network.partition(":")[0] not in MODELS
    spec = ModelSpec(teacher.network, teacher.args, (), (1, 3, 16, 16))
    network = build(spec)
    load_weights(network, teacher.checkpoint, teacher.network)
    narrow, narrow_spec = pruned(spec, seed=1)
    again = build(narrow_spec)
    again.load_state_dict(narrow.state_dict())
    x = example_inputs(spec)[0]
    with torch.no_grad():
        assert torch.equal(again(x), narrow(x))
        assert network(x).shape == (1, 3, 64, 64)
    exported = torch.export.export(again, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), again(x))


def test_the_examples_weights_are_better_than_bicubic(example) -> None:
    """On the held-out photographs, so that what the example compresses is worth compressing."""
    network = build(ModelSpec(example.model.teacher.network, example.model.teacher.args))
    load_weights(network, example.model.teacher.checkpoint, example.model.teacher.network)
    task = SuperResolution.from_config(DataConfig())
    with torch.no_grad():
        gains = [task.quality(network(*s.inputs), s.truth) - task.quality(task.baseline(s), s.truth) for s in task.held_out()]
    assert sum(gains) / len(gains) > 0


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("wav2lip", 36_298_035, 3_966_984_192), ("syncnet", 16_435_072, 1_210_281_984), ("quality_discriminator", 14_113_793, 1_255_850_496)],
)
def test_networks_of_one_size_are_counted_without_being_told_their_inputs(name: str, params: int, macs: int) -> None:
    figures = count_model(name).figures
    assert (figures["params"], figures["macs"]) == (params, macs)
