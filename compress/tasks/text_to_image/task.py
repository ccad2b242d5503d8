"""Text to image: captions and noise in, pictures out, by a U-Net that is called again and again in the latents of an autoencoder.

The pipeline compresses the U-Net as it does any network; the text encoder and the decoder are components with tasks of their own
(`text_encoding`, `decoding`). One call of the U-Net is judged by the signal-to-noise ratio of what it predicts, a whole network by the pictures that
it draws for held-out captions, with the original's text encoder and decoder.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor, nn

from mcompress.compress.diffusion import noisy, velocity
from mcompress.compress.models.spec import InputSpec, ModelSpec, Sampling
from mcompress.compress.models.stable_diffusion import GUIDANCE
from mcompress.compress.sampling import further_noises, sample
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.tasks.performance import Run
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.tasks.text_to_image.components import Component, snr_db
from mcompress.compress.tasks.text_to_image.data import VALIDATION, Captioned, EncodedPictures, LatentExamples
from mcompress.compress.tasks.text_to_image.gallery import Gallery
from mcompress.compress.tasks.text_to_image.likeness import AttributeAccuracy, LikenessToOriginal, PictureQuality
from mcompress.compress.tasks.text_to_image.original import LATENT_RANGE, Original

NOISE_SEED, VALIDATION_SEED = 17, 7_919
SAMPLES = 15
"""About so many of the held-out captions are drawn by each network and file alone; all of them by the three components together (`gallery`)."""
LONGEST_NAME = 60
"""Letters that the name of a caption's picture has: file systems take 255 bytes, and reports put more behind it."""


class TextToImage(Component):
    """What the U-Net learns and is judged by."""

    name = "text_to_image"
    baseline_name = "an empty latent"
    input_range = LATENT_RANGE
    output_range = (-1.0, 1.0)

    def __init__(self, original: Original, training: Captioned, held_out: Captioned, judged: PictureQuality, sampling: Sampling) -> None:
        """`sampling`: how the original draws."""
        self.original, self.held_out_pictures, self.judged, self.sampling = original, held_out, judged, sampling
        self.metric, self.metric_title, self.like_the_original = judged.metric, judged.title, isinstance(judged, LikenessToOriginal)
        self._of_original, self._originals = sampling, dict[str, Tensor]()
        self._scales: tuple[float, float] | None = None
        """Of guidance, for a network that takes it as an input."""
        self.encoded = EncodedPictures(original, training)
        count = len(training.captions)
        apart = count - min(VALIDATION, count // 2)
        self.training, self.validation = LatentExamples(self.encoded, range(apart)), LatentExamples(self.encoded, range(apart, count))
        self.skipped, self.input_channels, self.side = original.notes, original.latents[1], original.latents[2]

    def example(self) -> tuple[Tensor, Tensor]:
        """Latents, and what is to be predicted of them."""
        return torch.zeros(self.original.latents), torch.zeros(self.original.latents)

    @property
    def data_digest(self) -> str:
        """SHA-256 of the captioned pictures, of the networks that turn them into latents and states, of how the original draws, and of who judges."""
        parts = (self.encoded.source.digest, self.held_out_pictures.digest, self.original.digest, str(self._of_original), self.judged.digest)
        return sha256(":".join(parts).encode()).hexdigest()

    def input_specs(self, input_shape: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """Noisy latents, the timestep, and the states of the text."""
        return self.original.unet_inputs(input_shape)

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """The original's U-Net, embedded or from a folder."""
        unet = self.original.unet
        return self.original.spec(unet, self.input_specs(input_shape), self.sampling), unet.module

    def gallery(self) -> Gallery:
        """Whole pictures of the held-out captions, drawn by all three networks together."""
        return Gallery(self.original, self.held_out_pictures, self.judged.judge if isinstance(self.judged, AttributeAccuracy) else None)

    def diffusion(self) -> Diffusion:
        """Latents, states and noise for the stages that know of them."""
        return Diffusion(self.training, self.validation.all(), self.original.no_caption, self.original.schedule)

    def for_network(self, spec: ModelSpec) -> TextToImage:
        """With pictures drawn as this network draws them, and samples that have all that it takes."""
        made = copy.copy(self)
        made.sampling = spec.sampling or self.sampling
        made._scales = next((one.value_range for one in spec.further_inputs if one.name == GUIDANCE), None)
        return made

    @torch.no_grad()
    def answer(self, run: Run, sample_: Sample) -> Tensor:
        """The picture (1, 3, H, W) in [-1, 1] that the original's decoder makes of the latents after all steps."""
        noise, _, text, *_ = sample_.inputs
        generator = _generator_of(sample_)
        further = [torch.randn(noise.shape, generator=generator) for _ in range(further_noises(self.sampling))]
        latents = sample(run, self.sampling, self.original.schedule, noise, text, self.original.no_caption, further)
        return self.original.decoded(latents)

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """What a picture is worth beside a true one of its caption."""
        return self.judged.quality(output, truth)

    def call_quality(self, output: Tensor, truth: Tensor) -> float:
        """Signal-to-noise ratio of what was predicted, dB."""
        return snr_db(output, truth)

    def held_out(self) -> tuple[Sample, ...]:
        """A caption each, with its noise and the first timestep, and a true picture of it, or the original's from the same noise."""
        if self._scales is None:
            return self._held_out
        scale = torch.full((1,), self.sampling.guidance)
        return tuple(replace(one, inputs=(*one.inputs, scale)) for one in self._held_out)

    @cached_property
    def _held_out(self) -> tuple[Sample, ...]:
        captions, generator = self.held_out_pictures.captions, torch.Generator().manual_seed(NOISE_SEED)
        shown = range(0, len(captions), max(1, len(captions) // SAMPLES))
        noise = torch.randn((len(captions), *self.original.latents[1:]), generator=generator)
        states, first = self.original.states(captions), torch.tensor([float(self.original.schedule.settings.num_train_timesteps - 1)])
        names, inputs = _names(captions), {place: (noise[[place]], first, states[[place]]) for place in shown}
        if self.like_the_original:
            return tuple(Sample(names[place], given, self._drawn_by_original(Sample(names[place], given, noise))) for place, given in inputs.items())
        truths = torch.cat(list(self.held_out_pictures.pictures()))
        return tuple(Sample(names[place], given, truths[[place]]) for place, given in inputs.items())

    def _drawn_by_original(self, sample_: Sample) -> Tensor:
        """The original's own picture, with its own steps, whichever network the task is for; drawn once for all of them."""
        if sample_.name not in self._originals:
            made = copy.copy(self)
            made.sampling = self._of_original
            self._originals[sample_.name] = made.answer(self.original.unet.module, sample_)
        return self._originals[sample_.name]

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """Latents that are not trained on, at all sorts of timesteps, always the same."""
        latents, states = self.validation.all()
        return self._noised(latents, states, torch.Generator().manual_seed(VALIDATION_SEED))

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:  # noqa: ARG002  (never cut)
        """Noisy latents (N, C, h, w), timesteps (N,), text states (N, L, D), of a network that takes it the scale of guidance (N,), and what is to be
        predicted of them, the noise or the velocity.
        """
        latents, states = self.training.drawn(batch_size, generator)
        return self._noised(latents, states, generator)

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Training latents with noise, at all timesteps in turn, every eighth one without its caption."""
        generator = torch.Generator().manual_seed(seed)
        for index in range(count):
            latents, states = self.training.drawn(input_shape[0], generator)
            if index % 8 == 7:
                states = self.original.no_caption.expand_as(states)
            inputs, truth = self._noised(latents, states, generator)
            yield Sample(f"latents #{index}", inputs, truth)

    def baseline(self, sample: Sample) -> Tensor:
        """What the decoder makes of latents that are zero everywhere."""
        return self.original.decoded(torch.zeros_like(sample.picture))

    def _noised(self, latents: Tensor, states: Tensor, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        total = self.original.schedule.settings.num_train_timesteps
        timesteps, noise = torch.randint(total, (len(latents),), generator=generator), torch.randn(latents.shape, generator=generator)
        alpha, sigma = self.original.schedule.at(timesteps)
        truth = noise if self.sampling.prediction == "epsilon" else velocity(latents, noise, alpha, sigma)
        inputs = (noisy(latents, noise, alpha, sigma), timesteps.float(), states)
        if self._scales is None:
            return inputs, truth
        low, high = self._scales
        return (*inputs, low + (high - low) * torch.rand(len(latents), generator=generator)), truth


def _generator_of(sample_: Sample) -> torch.Generator:
    """Of the noise that is added on the way, always the same for a caption."""
    return torch.Generator().manual_seed(int(sha256(sample_.name.encode()).hexdigest()[:8], 16))


def _names(captions: Sequence[str]) -> list[str]:
    """The captions as names of files, of which no two are equal."""
    names, seen = [], Counter[str]()
    for caption in captions:
        slug = "-".join("".join(letter if letter.isalnum() else " " for letter in caption).split())[:LONGEST_NAME] or "no-caption"
        seen[slug.lower()] += 1
        names.append(slug if seen[slug.lower()] == 1 else f"{slug}.{seen[slug.lower()]}")
    return names
