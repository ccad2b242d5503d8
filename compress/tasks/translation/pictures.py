"""What translation has in common with pairs and without: inputs and outputs of one size in [-1, 1], the formula of the metric, the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.tasks.embedded_network import embedded_network
from mcompress.compress.tasks.task import SMALLEST_CROP, OneCall, Sample
from mcompress.compress.tasks.translation import crops


class PictureTranslation(OneCall):
    """Pictures in, pictures of the same size in another domain out."""

    name = "translation"
    baseline_name = "mean colour"
    input_range = output_range = (-1.0, 1.0)
    input_channels = 3
    scale = 1

    def __init__(self, held_out_inputs: Mapping[str, Tensor], targets: Sequence[Tensor], *, mirrors: bool) -> None:
        """Pictures are uint8 (3, H, W); the baseline is the mean colour of `targets`.

        `mirrors`: whether pictures mirrored left to right are as good.
        """
        self._held_out_inputs, self._targets, self.mirrors = held_out_inputs, targets, mirrors

    def input_specs(self, input_shape: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """The picture alone."""
        return (InputSpec("input", input_shape, self.input_range),)

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """The original that ships for edges to objects."""
        return embedded_network(self.name, self.input_specs(input_shape))

    @property
    def held_out_sizes(self) -> dict[str, tuple[int, int]]:
        """Name of a held-out sample -> height and width, pixels; sides are cut to a multiple of 4."""
        return {name: crops.whole_size(picture) for name, picture in self._held_out_inputs.items()}

    def reorient(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Each sample mirrored left to right or not, alike in all of `images`; unchanged for data with a right and a left."""
        return crops.mirrored(images, generator) if self.mirrors else images

    def smallest_crop(self) -> int:
        """Any that a network takes."""
        return SMALLEST_CROP

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """Peak signal-to-noise ratio over all RGB values, dB, after clipping to [-1, 1] and rounding to 8 bits."""
        return crops.psnr_db(output, truth)

    def baseline(self, sample: Sample) -> Tensor:
        """The mean colour of the targets that are trained on, everywhere."""
        return self._mean_colour.expand_as(sample.truth)

    @cached_property
    def _mean_colour(self) -> Tensor:
        return crops.mean_colour(self._targets)
