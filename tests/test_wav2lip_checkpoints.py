"""Wav2Lip's public weights: they load under their own names, tell their sizes, are refused at another size, and turn from BGR to RGB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mcompress.compress.models.build import build
from mcompress.compress.models.checkpoint import load_weights
from mcompress.compress.models.checkpoint_names import args_of
from mcompress.compress.models.lip_checkpoints import COLOURS, for_rgb
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.models.wav2lip import QUARTER_WIDTH, WITHOUT_BLOCKS
from mcompress.compress.teacher import load_network
from mcompress.errors import CheckpointError, TargetError
from mcompress.targets.load import load_target
from mcompress.targets.schema import ModelConfig, NetworkConfig, TeacherConfig

Shape = tuple[int, ...]
PUBLISHED = {
    "face_widths": [16, 32, 64, 128, 256, 512],
    "audio_widths": [32, 64, 128, 256, 512],
    "decoder_widths": [512, 512, 512, 384, 256, 128, 64],
    "output_width": 32,
    "face_blocks": [2, 3, 2, 2, 1],
    "audio_blocks": [2, 2, 2, 1],
    "decoder_blocks": [1, 2, 2, 2, 2, 2],
}
NO_BLOCKS = {name: list(blocks) for name, blocks in WITHOUT_BLOCKS.items()}
COMPRESSED = {**{name: list(widths) for name, widths in QUARTER_WIDTH.items()}, **NO_BLOCKS, "output_width": 8}
SMALL = {
    "face_widths": [4, 4, 6, 8, 8, 10],
    "audio_widths": [4, 6, 8, 10, 12],
    "decoder_widths": [12, 8, 8, 6, 6, 4, 4],
    "output_width": 5,
    "face_blocks": [1, 0, 2, 0, 1],
    "audio_blocks": [0, 2, 0, 1],
    "decoder_blocks": [1, 0, 0, 2, 0, 1],
}
FACE, AUDIO = InputSpec("face", (2, 6, 96, 96), (0.0, 1.0)), InputSpec("audio", (2, 1, 80, 16), (-4.0, 4.0))
MOUTHS = InputSpec("mouths", (2, 15, 48, 96), (0.0, 1.0))


# --- the public naming, written down once more: a list of layers, each a convolution and its batch normalization ---


def convolution(name: str, inputs: int, outputs: int, kernel: int, *, transposed: bool = False) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.conv_block.0.weight", (inputs, outputs, kernel, kernel) if transposed else (outputs, inputs, kernel, kernel)
    yield f"{name}.conv_block.0.bias", (outputs,)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.conv_block.1.{part}", (outputs,)
    yield f"{name}.conv_block.1.num_batches_tracked", ()


def public_wav2lip() -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the public generator, layer by layer (research table of arXiv 2008.10010's code)."""
    face = [[(6, 16, 7)], [(16, 32, 3), *[(32, 32, 3)] * 2], [(32, 64, 3), *[(64, 64, 3)] * 3], [(64, 128, 3), *[(128, 128, 3)] * 2]]
    face += [[(128, 256, 3), *[(256, 256, 3)] * 2], [(256, 512, 3), (512, 512, 3)], [(512, 512, 3), (512, 512, 1)]]
    for stage, layers in enumerate(face):
        for number, layer in enumerate(layers):
            yield from convolution(f"face_encoder_blocks.{stage}.{number}", *layer)
    audio = [(1, 32, 3), *[(32, 32, 3)] * 2, (32, 64, 3), *[(64, 64, 3)] * 2, (64, 128, 3), *[(128, 128, 3)] * 2]
    audio += [(128, 256, 3), (256, 256, 3), (256, 512, 3), (512, 512, 1)]
    for number, layer in enumerate(audio):
        yield from convolution(f"audio_encoder.{number}", *layer)
    yield from convolution("face_decoder_blocks.0.0", 512, 512, 1)
    rising = [(1024, 512, 1), (1024, 512, 2), (768, 384, 2), (512, 256, 2), (320, 128, 2), (160, 64, 2)]
    for stage, (inputs, outputs, blocks) in enumerate(rising, 1):
        yield from convolution(f"face_decoder_blocks.{stage}.0", inputs, outputs, 3, transposed=True)
        for number in range(1, blocks + 1):
            yield from convolution(f"face_decoder_blocks.{stage}.{number}", outputs, outputs, 3)
    yield from convolution("output_block.0", 80, 32, 3)
    yield from (("output_block.1.weight", (3, 32, 1, 1)), ("output_block.1.bias", (3,)))


def learned(shapes: dict[str, Shape]) -> int:
    """How many parameters these are; batch statistics are none."""
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if not re.search(r"running_|num_batches", name))


def test_the_networks_have_the_names_and_shapes_of_the_public_files() -> None:
    shapes = dict(public_wav2lip())
    assert learned(shapes) == 36_298_035
    with torch.device("meta"):
        own = build(ModelSpec("wav2lip")).state_dict()
    assert {name: tuple(value.shape) for name, value in own.items()} == shapes
    assert args_of("wav2lip", own) == PUBLISHED


@pytest.mark.parametrize(
    ("network", "args", "parameters"),
    [
        ("wav2lip", PUBLISHED, 36_298_035),
        ("wav2lip", {**PUBLISHED, **NO_BLOCKS}, 20_061_555),
        ("wav2lip", COMPRESSED, 1_258_143),
        ("wav2lip", SMALL, None),
        ("wav2lip", {**COMPRESSED, "audio_widths": [8] * 5}, None),
        ("syncnet", {"width": 512}, 16_435_072),
        ("syncnet", {"width": 24}, None),
        ("quality_discriminator", {"width": 512}, 14_113_793),
    ],
)
def test_shapes_tell_the_arguments(network: str, args: dict[str, object], parameters: int | None) -> None:
    with torch.device("meta"):
        made = build(ModelSpec(network, dict(args)))  # type: ignore[arg-type]
    assert parameters in (None, sum(one.numel() for one in made.parameters()))
    assert args_of(network, made.state_dict()) == args


def trained(network: nn.Module) -> nn.Module:
    """With statistics that batch normalization has seen, so that nothing of it is left out unnoticed."""
    generator = torch.Generator().manual_seed(5)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and "conv_block.1" in name:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return network.eval()


def as_published(network: nn.Module, path: Path) -> Path:
    """Saved as the public training program does it: from several devices, with its optimiser."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "optimizer": optimizer.state_dict(), "global_step": 250_000, "global_epoch": 12}, path)
    return path


def values(*inputs: InputSpec, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    spans = [one.value_range for one in inputs]
    return tuple(torch.rand(one.shape, generator=generator, dtype=dtype) * (high - low) + low for one, (low, high) in zip(inputs, spans, strict=True))


@pytest.mark.parametrize("args", [SMALL, {**COMPRESSED, "output_width": 6}], ids=["with blocks", "compressed"])
def test_a_public_file_loads_without_arguments_and_computes_the_same(args: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    public = trained(build(ModelSpec("wav2lip", dict(args))))  # type: ignore[arg-type]
    path = as_published(public, tmp_path / "wav2lip.pth")
    spec, loaded = load_network(TeacherConfig(network="wav2lip", checkpoint=path), (FACE, AUDIO))
    assert spec.args == args
    assert [one.name for one in spec.inputs] == ["face", "audio"]
    with torch.no_grad():
        assert torch.equal(loaded(*values(FACE, AUDIO)), public(*values(FACE, AUDIO)))
    report = load_weights(build(spec), path, "wav2lip")
    assert (report.wrapper, report.format, report.notes) == ("state_dict", "pth", ())


def test_the_lip_sync_expert_loads_the_same_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    public = trained(build(ModelSpec("syncnet", {"width": 16})))
    path = as_published(public, tmp_path / "lipsync_expert.pth")
    spec, loaded = load_network(NetworkConfig(network="syncnet", checkpoint=path), (MOUTHS, AUDIO))
    assert spec.args == {"width": 16}
    with torch.no_grad():
        assert torch.equal(loaded(*values(MOUTHS, AUDIO)), public(*values(MOUTHS, AUDIO)))


@pytest.mark.parametrize(
    ("network", "args", "said"),
    [
        (
            "wav2lip",
            {**SMALL, "output_width": 6},
            (
                "of another shape: 'output_block.0.conv_block.0.weight' is (5, 8, 3, 3), the network's is (6, 8, 3, 3)",
                "The file is Wav2Lip's generator with {'face_widths': [4, 4, 6, 8, 8, 10]",
                "'output_width': 5",
                "give these as args, or leave args out",
            ),
        ),
        ("wav2lip", {**SMALL, "face_blocks": [1, 0, 1, 0, 1]}, ("7 of ", " not in the network: 'face_encoder_blocks.3.2.conv_block.0.weight'")),
        ("wav2lip", {**SMALL, "face_blocks": [1, 0, 3, 0, 1]}, ("missing in the file: 'face_encoder_blocks.3.3.conv_block.0.weight'",)),
        ("syncnet", {"width": 16}, ("these are not the weights of SyncNet: 'face_encoder.16.conv_block.0.weight' is missing", "the first keys are")),
    ],
)
def test_another_size_is_refused_with_what_the_file_is(network: str, args: dict[str, object], said: tuple[str, ...], tmp_path: Path) -> None:
    path = as_published(build(ModelSpec("wav2lip", dict(SMALL))), tmp_path / "w.pth")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError) as refused:
        load_network(TeacherConfig(network=network, args=args, checkpoint=path), (FACE, AUDIO))  # type: ignore[arg-type]
    for part in said:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("network", "other", "said"),
    [
        ("wav2lip", ("syncnet", {"width": 16}), "these are not the weights of Wav2Lip's generator: 'face_encoder_blocks.0.0.conv_block.0.weight'"),
        ("syncnet", ("quality_discriminator", {"width": 16}), "these are not the weights of SyncNet"),
        ("quality_discriminator", ("syncnet", {"width": 16}), "these are not the weights of Wav2Lip's quality discriminator: 'binary_pred.0.weight'"),
        (
            "wav2lip",
            ("wav2lip", {**SMALL, "audio_widths": [4, 4, 8, 10, 12]}),
            "3 of the 9 layers of its audio encoder change the number of channels, which does not tell where the 4 stages begin",
        ),
    ],
)
def test_files_that_do_not_tell_are_refused(network: str, other: tuple[str, dict[str, object]], said: str, tmp_path: Path) -> None:
    path = as_published(build(ModelSpec(other[0], dict(other[1]))), tmp_path / "w.pth")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {said}")):
        load_network(TeacherConfig(network=network, checkpoint=path), (FACE, AUDIO))


@pytest.mark.parametrize("layer", ["audio_encoder.3", "face_encoder_blocks.2.1", "face_decoder_blocks.0.0", "output_block.0"])
def test_a_layer_that_is_no_convolution_is_refused(layer: str) -> None:
    state = build(ModelSpec("wav2lip", dict(SMALL))).state_dict()  # type: ignore[arg-type]
    state[f"{layer}.conv_block.0.weight"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match=re.escape(f"Wav2Lip's generator: '{layer}.conv_block.0.weight' is missing or of no convolution")):
        args_of("wav2lip", state)


def test_stages_of_equal_width_load_with_their_arguments(tmp_path: Path) -> None:
    args = {**SMALL, "audio_widths": [4, 4, 8, 10, 12]}
    path = as_published(build(ModelSpec("wav2lip", dict(args))), tmp_path / "w.pth")  # type: ignore[arg-type]
    spec, _ = load_network(TeacherConfig(network="wav2lip", args=args, checkpoint=path), (FACE, AUDIO))  # type: ignore[arg-type]
    assert spec.args == args


@pytest.mark.parametrize("key", ["module.audio_encoder.5.conv_block.0.weight", "module.output_block.1.bias"])
def test_a_diverged_file_is_refused(key: str, tmp_path: Path) -> None:
    path = as_published(build(ModelSpec("wav2lip", dict(SMALL))), tmp_path / "w.pth")  # type: ignore[arg-type]
    saved = torch.load(path, weights_only=True)
    saved["state_dict"][key].view(-1)[0] = float("nan")
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=re.escape(key.removeprefix("module.")) + "' holds NaN"):
        load_network(TeacherConfig(network="wav2lip", checkpoint=path), (FACE, AUDIO))


# --- BGR ---


def swapped(pictures: Tensor) -> Tensor:
    """Pictures of the other order, (N, 3 k, H, W), one behind the other."""
    return torch.cat([picture.flip(1) for picture in pictures.split(3, 1)], 1)


def test_a_generator_of_bgr_takes_and_gives_rgb(tmp_path: Path) -> None:
    torch.manual_seed(0)
    public = trained(build(ModelSpec("wav2lip", dict(SMALL))))  # type: ignore[arg-type]
    path = as_published(public, tmp_path / "w.pth")
    _, loaded = load_network(TeacherConfig(network="wav2lip", checkpoint=path, colour_order="BGR"), (FACE, AUDIO))
    _, as_it_is = load_network(TeacherConfig(network="wav2lip", checkpoint=path), (FACE, AUDIO))
    face, audio = values(FACE, AUDIO, dtype=torch.float64)
    with torch.no_grad():
        wanted = swapped(public.double()(swapped(face), audio))
        torch.testing.assert_close(loaded.double()(face, audio), wanted, rtol=0, atol=1e-13)
        assert float((as_it_is.double()(face, audio) - wanted).abs().max()) > 1e-3, "which a network that is taken as it is does not"
    changed = {name for name, value in loaded.state_dict().items() if not torch.equal(value, as_it_is.state_dict()[name])}
    assert changed == {name for name, _ in COLOURS["wav2lip"]}


@pytest.mark.parametrize(
    ("network", "inputs"), [("syncnet", (MOUTHS, AUDIO)), ("quality_discriminator", (InputSpec("m", (2, 3, 48, 96), (0.0, 1.0)),))]
)
def test_what_judges_bgr_judges_rgb(network: str, inputs: tuple[InputSpec, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    public = trained(build(ModelSpec(network, {"width": 32})))
    path = as_published(public, tmp_path / "w.pth")
    _, loaded = load_network(NetworkConfig(network=network, checkpoint=path, colour_order="BGR"), inputs)
    picture, *audio = values(*inputs, dtype=torch.float64)
    with torch.no_grad():
        judged = public.double()(swapped(picture), *audio)
        torch.testing.assert_close(loaded.double()(picture, *audio), judged, rtol=0, atol=1e-13)
        assert not torch.allclose(loaded(swapped(picture), *audio), judged, rtol=0, atol=1e-9)


def test_swapping_twice_is_nothing_and_is_said_once(tmp_path: Path) -> None:
    network = build(ModelSpec("wav2lip", dict(SMALL)))  # type: ignore[arg-type]
    state = network.state_dict()
    twice = for_rgb("wav2lip", for_rgb("wav2lip", state))
    assert all(torch.equal(twice[name], value) for name, value in state.items())
    report = load_weights(network, as_published(network, tmp_path / "w.pth"), "wav2lip", colour_order="BGR")
    assert report.notes == ("trained on BGR; the weights of its colours changed places, so that it takes and gives RGB",)


def test_colours_of_other_networks_are_not_guessed(tmp_path: Path) -> None:
    network = build(ModelSpec("patchgan", {"features": 4}))
    torch.save(network.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="colour_order is BGR, and which weights of the network 'patchgan' stand for colours is not known"):
        load_weights(network, tmp_path / "w.pth", "patchgan", colour_order="BGR")
    for config in (NetworkConfig, TeacherConfig):
        with pytest.raises(ValidationError, match=r"colour_order is BGR, .* and there is no checkpoint; remove it"):
            config(network="wav2lip", colour_order="BGR")
    with pytest.raises(ValidationError, match="'RGB' or 'BGR'"):
        TeacherConfig.model_validate({"network": "wav2lip", "checkpoint": "w.pth", "colour_order": "GBR"})


def test_a_target_says_the_order_of_the_colours(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    start = "name: t\ndevice: snapdragon865\nstages: [{stage: quantize}]\nexports: [{backend: onnx}]\n"
    for file in ("w.pth", "e.pth"):
        (tmp_path / file).write_bytes(b"x")
    path.write_text(
        f"{start}model: {{task: talking_face, network: wav2lip, checkpoint: w.pth, colour_order: BGR, "
        "expert: {network: syncnet, checkpoint: e.pth, colour_order: BGR}}\n"
    )
    model = load_target(path).model
    assert model == ModelConfig(
        task="talking_face",
        teacher=TeacherConfig(network="wav2lip", checkpoint=tmp_path / "w.pth", colour_order="BGR"),
        expert=NetworkConfig(network="syncnet", checkpoint=tmp_path / "e.pth", colour_order="BGR"),
        input_shape=(1, 6, 96, 96),
    )
    for wrong, said in (
        (
            "teacher: {network: wav2lip, colour_order: BGR}",
            "t.yaml:5: model.teacher.colour_order is BGR, that of the pictures that a checkpoint was trained on, and there is no checkpoint",
        ),
        ("network: wav2lip, checkpoint: w.pth, colour_order: bgr", "t.yaml:5: model.colour_order is 'bgr'; it must be one of RGB, BGR"),
        (
            "expert: {network: syncnet, checkpoint: none.pth}",
            "t.yaml:5: model.expert.checkpoint is 'none.pth'; there is no such file (relative paths",
        ),
    ):
        path.write_text(f"{start}model: {{task: talking_face, {wrong}}}\n")
        with pytest.raises(TargetError) as refused:
            load_target(path)
        assert said in str(refused.value)
