"""Whole pictures: a text encoder, a U-Net and a decoder draw the held-out captions together, and what they drew is judged.

Everybody starts from the same noise, so that pictures can be compared one by one, and files with the PyTorch networks that they were written from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mcompress.compress.models.spec import Sampling
from mcompress.compress.sampling import further_noises, sample
from mcompress.compress.tasks.performance import Run
from mcompress.compress.tasks.text_to_image.captions import Scene
from mcompress.compress.tasks.text_to_image.data import Captioned, DrawnScenes
from mcompress.compress.tasks.text_to_image.judge import Judge, attributes_right, scene_distance
from mcompress.compress.tasks.text_to_image.original import Original
from mcompress.errors import ParityError
from mcompress.record import ATTRIBUTE_ACCURACY
from mcompress.targets.schema import Measurement

NOISE_SEED = 19
REAL_PER_CAPTION = 4


@dataclass(frozen=True)
class Painters:
    """The three networks, or files, that draw together, and how the U-Net is called; `batch` captions at once."""

    text_encoder: Run
    unet: Run
    decoder: Run
    sampling: Sampling
    batch: int = 1


class Gallery:
    """Held-out captions, and the pictures that are drawn for them: (N, 3, H, W) in [-1, 1]."""

    def __init__(self, original: Original, held_out: Captioned, judge: Judge | None) -> None:
        """`judge`: who sees attributes in pictures; None for captions of one's own."""
        self.original, self.held_out, self._judge = original, held_out, judge
        self.captions = held_out.captions

    @property
    def missing(self) -> tuple[str, ...]:
        """What cannot be judged: `what: why`."""
        if self._judge is not None:
            return ()
        return (
            "attribute accuracy and distribution distance: the classifier that ships knows the embedded scenes alone, and none was given for these",
        )

    @torch.no_grad()
    def draw(self, painters: Painters, places: Sequence[int] | None = None) -> Tensor:
        """One picture of each caption, or of those at `places`. Raises `ParityError` for NaN or infinity."""
        schedule, drawn = self.original.schedule, []
        wanted = range(len(self.captions)) if places is None else places
        nothing = painters.text_encoder(self.original.tokens([""]))
        for first in range(0, len(wanted), painters.batch):
            some = wanted[first : first + painters.batch]
            text = painters.text_encoder(self.original.tokens([self.captions[place] for place in some]))
            noise, *further = (torch.stack(each) for each in zip(*(self._noises(place, painters.sampling) for place in some), strict=True))
            latents = sample(painters.unet, painters.sampling, schedule, noise, text, nothing, further)
            drawn.append(painters.decoder(self.original.for_decoder(latents)))
        pictures = torch.cat(drawn)
        if not torch.isfinite(pictures).all():
            raise ParityError("there are NaN or infinite values in the pictures that were drawn; the network must not be used")
        return pictures.clamp(-1.0, 1.0)

    def _noises(self, place: int, sampling: Sampling) -> tuple[Tensor, ...]:
        """The noise that a caption's picture begins with, and what is added on the way."""
        generator = torch.Generator().manual_seed(NOISE_SEED * 1_000_003 + place)
        return tuple(torch.randn(self.original.latents[1:], generator=generator) for _ in range(1 + further_noises(sampling)))

    def judge(self, pictures: Tensor, on: str) -> tuple[Measurement, ...]:
        """How many attributes are as the captions say, and how far the pictures as a whole are from real ones."""
        if self._judge is None or not isinstance(self.held_out, DrawnScenes):
            return ()
        right = attributes_right(self._judge, pictures, self.held_out.scenes)
        count = len(self.captions)
        return (
            Measurement(what=ATTRIBUTE_ACCURACY, value=round(100.0 * float(right.mean()), 3), unit="%", how="host", on=on, n=count),
            Measurement(what="whole captions right", value=round(100.0 * float(right.prod(1).mean()), 3), unit="%", how="host", on=on, n=count),
            Measurement(
                what="scene distance", value=round(scene_distance(self._judge, pictures, self._real), 4), unit="", how="host", on=on, n=count,
                source="Fréchet distance of the features of a classifier of scenes; no FID",
            ),
        )  # fmt: skip

    @cached_property
    def _real(self) -> Tensor:
        """Several drawn pictures of each held-out caption."""
        if not isinstance(self.held_out, DrawnScenes):
            raise TypeError("only drawn scenes have real pictures without end")
        scenes: tuple[Scene, ...] = self.held_out.scenes * REAL_PER_CAPTION
        return torch.cat(list(DrawnScenes(scenes, NOISE_SEED).pictures()))

    def truths(self) -> Tensor:
        """One true picture of each caption."""
        return torch.cat(list(self.held_out.pictures()))


def psnr_db(pictures: Tensor, others: Tensor) -> Tensor:
    """(N,), of pictures in [-1, 1]; infinite for equal ones."""
    return -10.0 * torch.log10((pictures - others).square().mean((1, 2, 3)) / 4.0)
