"""The decoder of the latents as a task: it learns to make what the original's decoder makes of latents that the original itself drew.

SnapFusion (arXiv 2306.00980, section 3.2) distils its decoder so: captions, the original's latents after all steps, and the error between the
pictures of both decoders. Latents of real pictures are not quite those that the U-Net draws, and the encoder has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256

import torch
from torch import Tensor, nn

from mcompress.compress.models.spec import InputSpec, ModelSpec, Sampling
from mcompress.compress.sampling import sample
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.tasks.text_to_image.components import AS_GOOD_AS_EQUAL_DB, Component
from mcompress.compress.tasks.text_to_image.likeness import LikenessToOriginal
from mcompress.compress.tasks.text_to_image.original import LATENT_RANGE, Original

LEARNT, VALIDATED = 1024, 16
"""Latents that are drawn for training, and for choosing between candidates."""
STEPS = 16
"""Of the original for these latents; more of them change latents little, and take longer."""
SEED, HELD_OUT_SEED = 23, 29


class Decoding(Component):
    """What the decoder learns and is judged by: likeness to the pictures of the original's decoder."""

    name = "latent_decoding"
    metric, metric_title = LikenessToOriginal.metric, "PSNR to what the original's decoder makes of the same latents, RGB"
    baseline_name = "a linear map of the latents"
    output_range = (-1.0, 1.0)

    def __init__(self, original: Original, captions: Sequence[str], held_out: Sequence[str], sampling: Sampling) -> None:
        """`sampling`: how the original draws."""
        self.original, self.captions, self.held_out_captions = original, tuple(captions), tuple(held_out)
        self.sampling = Sampling(sampling.prediction, min(sampling.steps, STEPS), sampling.guidance, sampling.method)
        self.input_channels, self.side, self.skipped = original.latents[1], original.latents[2], original.notes
        self.scale = original.enlarged
        low, high = LATENT_RANGE
        self.input_range = (low / original.scaling, high / original.scaling)

    def example(self) -> tuple[Tensor, Tensor]:
        """Latents, and a picture."""
        _, _, height, width = self.original.latents
        return torch.zeros(self.original.latents), torch.zeros(1, 3, height * self.scale, width * self.scale)

    @property
    def data_digest(self) -> str:
        """SHA-256 of the captions, of the original that draws, and of how many latents."""
        drawn = (self.original.digest, str(self.sampling), str(LEARNT))
        return sha256("\n".join((*self.captions, "", *self.held_out_captions, *drawn)).encode()).hexdigest()

    def input_specs(self, input_shape: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """Latents of the autoencoder, not scaled."""
        return self.original.decoder_inputs(input_shape)

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """The original's decoder."""
        return self.original.spec(self.original.decoder, self.input_specs(input_shape)), self.original.decoder.module

    @torch.no_grad()
    def _truth(self, latents: Tensor) -> Tensor:
        """Pictures of the original's decoder (N, 3, H, W)."""
        return torch.cat([self.original.decoder.module(some) for some in torch.split(latents, self.original.pictures_at_once)])

    @cached_property
    def _drawn(self) -> Tensor:
        return self._latents([self.captions[place % len(self.captions)] for place in range(LEARNT + VALIDATED)], SEED)

    @torch.no_grad()
    def _latents(self, captions: Sequence[str], seed: int) -> Tensor:
        """What the original draws for these captions (N, C, h, w), as its decoder takes them."""
        original, generator = self.original, torch.Generator().manual_seed(seed)
        noise, states = torch.randn((len(captions), *original.latents[1:]), generator=generator), original.states(captions)
        each = original.pictures_at_once
        drawn = [
            sample(original.unet.module, self.sampling, original.schedule, some, text, original.no_caption)
            for some, text in zip(torch.split(noise, each), torch.split(states, each), strict=True)
        ]
        return original.for_decoder(torch.cat(drawn))

    def held_out(self) -> tuple[Sample, ...]:
        """Latents of held-out captions, with the pictures of the original's decoder."""
        return self._held_out

    @cached_property
    def _held_out(self) -> tuple[Sample, ...]:
        latents = self._latents(self.held_out_captions, HELD_OUT_SEED)
        return tuple(Sample(f"latents-{place:02d}", (one[None],), self._truth(one[None])) for place, one in enumerate(latents))

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """Latents that are not trained on."""
        latents = self._drawn[LEARNT:]
        return (latents,), self._truth(latents)

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Inputs:  # noqa: ARG002  (never cut)
        """Latents (N, C, h, w) that the original drew for training captions."""
        return (self._drawn[torch.randint(LEARNT, (batch_size,), generator=generator)],)

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """Latents and pictures (N, 3, H, W)."""
        inputs = self.unlabelled_batch(batch_size, crop_size, generator)
        return inputs, self._truth(*inputs)

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Training latents."""
        generator = torch.Generator().manual_seed(seed)
        for index in range(count):
            inputs, truth = self.training_batch(input_shape[0], self.side, generator)
            yield Sample(f"latents #{index}", inputs, truth)

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """PSNR, dB, after clipping to [-1, 1] and rounding to 8 bits."""
        return LikenessToOriginal().quality(output, truth.clamp(-1.0, 1.0))

    def call_quality(self, output: Tensor, truth: Tensor) -> float:
        """The same, at most `AS_GOOD_AS_EQUAL_DB`."""
        return min(self.quality(output, truth), AS_GOOD_AS_EQUAL_DB)

    def baseline(self, sample: Sample) -> Tensor:
        """The best linear map from a latent to the mean colour of what is drawn in its place, enlarged."""
        return self._linear(sample.picture).repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)

    def _linear(self, latents: Tensor) -> Tensor:
        ones = torch.ones_like(latents[:, :1])
        return torch.einsum("nchw,cd->ndhw", torch.cat([latents, ones], 1), self._colours)

    @cached_property
    def _colours(self) -> Tensor:
        (latents,), pictures = self.validation_batch()
        small = torch.nn.functional.avg_pool2d(pictures, self.scale)
        known = torch.cat([latents, torch.ones_like(latents[:, :1])], 1).permute(0, 2, 3, 1).flatten(0, 2)
        solution: Tensor = torch.linalg.lstsq(known, small.permute(0, 2, 3, 1).flatten(0, 2)).solution
        return solution
