"""Stable Diffusion as diffusers saves it: a folder with model_index.json and a sub-folder for each part.

Taken are pipelines of UNet2DConditionModel, AutoencoderKL, CLIPTextModel and CLIPTokenizer, and of their schedulers the noise that the U-Net was
trained with. Everything about a folder is found out before a weight is read, and all that is wrong with it is said at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from mcompress.compress.models.build import FAILURES, build, build_meta
from mcompress.compress.models.diffusers_folder.fields import Config, Fields, from_config
from mcompress.compress.models.diffusers_folder.networks import TEXT, UNET, VAE, TextFacts, UnetFacts, VaeFacts, text_facts, unet_facts, vae_facts
from mcompress.compress.models.diffusers_folder.pipeline import INDEX, TokenizerFacts, check_pipeline, present, tokenizer_facts
from mcompress.compress.models.diffusers_folder.scheduler import SchedulerFacts, scheduler_facts
from mcompress.compress.models.diffusers_folder.weights import (
    DIFFUSERS_STEM,
    TRANSFORMERS_STEM,
    StoredWeights,
    differences,
    stored_weights,
    text_name,
    today,
)
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.stable_diffusion import LATENT_CHANNELS
from mcompress.errors import PlanError, Problems

Facts = TypeVar("Facts")
CONFIG, SCHEDULER_CONFIG = "config.json", "scheduler_config.json"


@dataclass(frozen=True)
class FolderPart:
    """One network: its name in `MODELS`, the arguments of its builder, and where its weights lie."""

    network: str
    args: Config
    weights: StoredWeights = field(repr=False)

    def load(self) -> nn.Module:
        """The network with its weights, float32, in evaluation mode. Raises `CheckpointError`."""
        network = build(ModelSpec(self.network, dict(self.args)))
        self.weights.load_into(network)
        return network.eval()


@dataclass(frozen=True)
class DiffusersFolder:
    """What a folder holds; no weights are read before they are asked for."""

    folder: Path
    unet: FolderPart
    decoder: FolderPart
    text_encoder: FolderPart
    autoencoder_weights: StoredWeights = field(repr=False)
    """Of the decoder and the encoder."""
    tokenizer_folder: Path
    scheduler: SchedulerFacts
    scaling_factor: float
    """Latents of the autoencoder times this have a standard deviation of about 1."""
    latents: tuple[int, int, int, int]
    """(1, C, h, w), as the U-Net was trained."""
    pixels_per_latent: int
    """A picture's side by that of its latents."""
    longest: int
    """Tokens of a text, with start and end."""
    takes_guidance: bool
    """The U-Net takes the guidance scale, as latent consistency models do."""
    files: tuple[Path, ...]
    """What says everything about it: configurations, weights, the tokenizer."""
    notes: tuple[str, ...]
    """What was left out, converted or is done otherwise (`file: what and why`)."""

    def load_autoencoder(self) -> nn.Module:
        """diffusers' AutoencoderKL, whose encoder makes latents of pictures, float32, in evaluation mode. Raises `CheckpointError`."""
        network = _autoencoder(self.decoder.args)
        self.autoencoder_weights.load_into(network)
        return network.eval()


def read_diffusers_folder(folder: Path) -> DiffusersFolder:
    """Everything about the pipeline in `folder` but its weights. Raises `PlanError`, which lists every problem, and `MissingBackendError`."""
    problems = Problems()
    left_out = problems.of(lambda: check_pipeline(folder))
    parts = present(folder)

    def of(part: str, read: Callable[[Path], Facts]) -> Facts | None:
        return problems.of(lambda: read(folder / part)) if part in parts else None

    unet, vae, text = of("unet", _read_unet), of("vae", _read_vae), of("text_encoder", _read_text)
    scheduler = of("scheduler", lambda place: scheduler_facts(Fields(place / SCHEDULER_CONFIG)))
    tokenizer = of("tokenizer", tokenizer_facts)
    if unet is not None and text is not None:
        problems.of(lambda: _check_widths(folder, unet[0], text[0]))
    if tokenizer is not None and text is not None:
        problems.of(lambda: _check_vocabulary(folder, tokenizer, text[0]))
    if problems.found or left_out is None or unet is None or vae is None or text is None or scheduler is None or tokenizer is None:
        raise PlanError(problems.found)
    weights = (unet[1], vae[1], text[1])
    return DiffusersFolder(
        folder=folder,
        unet=FolderPart("diffusion_unet", unet[0].args, unet[1].within("unet")),
        decoder=FolderPart("latent_decoder", vae[0].args, vae[1].only("decoder.", "post_quant_conv.")),
        text_encoder=FolderPart("clip_text", text[0].args, text[1].within("text_model")),
        autoencoder_weights=vae[1],
        tokenizer_folder=folder / "tokenizer",
        scheduler=scheduler,
        scaling_factor=vae[0].scaling_factor,
        latents=(1, LATENT_CHANNELS, *unet[0].latent_size),
        pixels_per_latent=vae[0].pixels_per_latent,
        longest=min(text[0].longest, tokenizer.longest or text[0].longest),
        takes_guidance=unet[0].takes_guidance,
        files=_files(folder, weights),
        notes=(*left_out, *(note for facts in (unet, vae, text) for one in facts for note in one.notes), *scheduler.notes),
    )


def _read_unet(folder: Path) -> tuple[UnetFacts, StoredWeights]:
    return _network(folder, UNET, unet_facts, DIFFUSERS_STEM, str, lambda facts: _on_meta("diffusion_unet", facts.args, "unet"))


def _read_vae(folder: Path) -> tuple[VaeFacts, StoredWeights]:
    def on_meta(facts: VaeFacts) -> nn.Module:
        with torch.device("meta"):
            return _autoencoder(facts.args)

    return _network(folder, VAE, vae_facts, DIFFUSERS_STEM, today, on_meta)


def _read_text(folder: Path) -> tuple[TextFacts, StoredWeights]:
    return _network(folder, TEXT, text_facts, TRANSFORMERS_STEM, text_name, lambda facts: _on_meta("clip_text", facts.args, "text_model"))


def _network(
    folder: Path, name: str, read: Callable[[Fields], Facts], stem: str, renamed: Callable[[str], str], on_meta: Callable[[Facts], nn.Module]
) -> tuple[Facts, StoredWeights]:
    """The facts of a network's configuration and its weights, which fit together. Raises `PlanError`."""
    problems = Problems()
    facts = problems.of(lambda: _configured(folder / CONFIG, name, read))
    weights = problems.of(lambda: stored_weights(folder, stem, renamed))
    if facts is None or weights is None:
        raise PlanError(problems.found)
    made = problems.of(lambda: on_meta(facts), str(folder / CONFIG))
    if made is None:
        raise PlanError(problems.found)
    unlike = differences({key: tuple(value.shape) for key, value in made.state_dict().items()}, weights.tensors)
    if unlike:
        raise PlanError([f"{folder}: the weights are not those of the network in {CONFIG}:\n" + "\n".join(unlike) + "\nTake both from one place."])
    return facts, weights


def _configured(path: Path, name: str, read: Callable[[Fields], Facts]) -> Facts:
    config = Fields(path)
    if not config.is_of(name):
        config.finish()
    return read(config)


def _on_meta(network: str, args: Config, child: str) -> nn.Module:
    return build_meta(ModelSpec(network, args)).get_submodule(child)


def _autoencoder(args: Config) -> nn.Module:
    try:
        return from_config(VAE, args)
    except FAILURES as error:
        raise PlanError([f"{VAE} cannot be built with {args}: {type(error).__name__}: {error}"]) from error


def _check_widths(folder: Path, unet: UnetFacts, text: TextFacts) -> None:
    if unet.text_width != text.width:
        raise PlanError(
            [
                f"{folder}: the U-Net's cross_attention_dim is {unet.text_width}, the text encoder's hidden_size {text.width}; they must be equal: "
                "take all parts from one pipeline"
            ]
        )


def _check_vocabulary(folder: Path, tokenizer: TokenizerFacts, text: TextFacts) -> None:
    if tokenizer.largest >= text.vocabulary:
        raise PlanError(
            [
                f"{folder}: the tokenizer's largest token is {tokenizer.largest}, and the text encoder's vocab_size {text.vocabulary}; it must be "
                "above it: take all parts from one pipeline"
            ]
        )


def _files(folder: Path, weights: tuple[StoredWeights, ...]) -> tuple[Path, ...]:
    configurations = [folder / INDEX, *(folder / part / CONFIG for part in ("unet", "vae", "text_encoder")), folder / "scheduler" / SCHEDULER_CONFIG]
    tokenizer = [path for path in (folder / "tokenizer").iterdir() if path.is_file()]
    return tuple(sorted({*configurations, *tokenizer, *(file for one in weights for file in one.files)}))
