"""Super-resolution x4 as a task: photographs, PSNR on held-out photographs, bicubic enlargement as the baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.tasks import photographs
from mcompress.compress.tasks.embedded_network import embedded_network
from mcompress.compress.tasks.super_resolution import photos
from mcompress.compress.tasks.task import SMALLEST_CROP, Inputs, OneCall, Sample
from mcompress.targets.schema import DataConfig

SMALLEST_SIDE = 128  # pixels; shorter photographs cannot give a training crop of 32 low-resolution pixels
VALIDATION_CROPS, VALIDATION_SIZE = 24, 32
VALIDATION_SEED = 7_919  # fixed, so that every candidate of every run is judged on the same crops


class SuperResolution(OneCall):
    """Photographs in, the same photographs four times as large out."""

    name = "super_resolution"
    metric = "psnr_db"
    metric_title = "PSNR on held-out photographs, RGB"
    baseline_name = "bicubic"
    input_range = output_range = (0.0, 1.0)
    input_channels = 3
    scale = photos.SCALE
    validation_side = VALIDATION_SIZE
    paired = True

    def __init__(self, training: photographs.PhotoSet, held_out: photographs.PhotoSet) -> None:
        self.training_photos, self.held_out_photos = training, held_out

    @classmethod
    def from_config(cls, data: DataConfig) -> SuperResolution:
        """The user's folders, or the embedded photographs. Raises `PlanError` for a folder without a usable image."""
        if data.training is None or data.held_out is None:
            return cls(photographs.embedded_photos(photographs.TRAINING_PHOTOS), photographs.embedded_photos(photographs.HELD_OUT_PHOTOS))
        return cls(photographs.folder_photos(data.training, SMALLEST_SIDE), photographs.folder_photos(data.held_out, photos.SCALE))

    @property
    def data_digest(self) -> str:
        """SHA-256 of training and held-out photographs."""
        return hashlib.sha256(f"{self.training_photos.digest}{self.held_out_photos.digest}".encode()).hexdigest()

    @property
    def skipped(self) -> tuple[str, ...]:
        """Photographs that could not be used: `name: why`."""
        return self.training_photos.skipped + self.held_out_photos.skipped

    @cached_property
    def _levels(self) -> tuple[Tensor, ...]:
        return photos.pyramid(self.training_photos.photos, SMALLEST_SIDE)

    def input_specs(self, input_shape: tuple[int, ...]) -> tuple[InputSpec, ...]:
        """The picture alone."""
        return (InputSpec("input", input_shape, self.input_range),)

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """A small RRDBNet; `teacher.json` beside its weights says how it was made and `teacher.py` makes it again."""
        return embedded_network(self.name, self.input_specs(input_shape))

    def held_out(self) -> tuple[Sample, ...]:
        """The held-out photographs as pairs."""
        pairs = ((photo.name, *photos.whole_pair(photo)) for photo in self.held_out_photos.photos)
        return tuple(Sample(name, (low,), high) for name, low, high in pairs)

    @property
    def held_out_sizes(self) -> dict[str, tuple[int, int]]:
        """Name of a held-out photograph -> height and width at low resolution, pixels."""
        return {photo.name: (photo.pixels.shape[1] // photos.SCALE, photo.pixels.shape[2] // photos.SCALE) for photo in self.held_out_photos.photos}

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """Fixed crops of the training photographs, augmented as in training: (24, 3, 32, 32) and (24, 3, 128, 128)."""
        return self.training_batch(VALIDATION_CROPS, VALIDATION_SIZE, torch.Generator().manual_seed(VALIDATION_SEED))

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """Random augmented crops: low (N, 3, crop_size, crop_size) and high (N, 3, 4*crop_size, 4*crop_size), in [0, 1]."""
        fitting = tuple(level for level in self._levels if min(level.shape[1:]) >= crop_size * photos.SCALE)
        low, high = photos.random_batch(fitting, batch_size, crop_size, generator)
        return (low,), high

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Inputs:
        """Low crops as in training: of photographs the truth is always known."""
        return self.training_batch(batch_size, crop_size, generator)[0]

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """High crops as in training, of the size that outputs have for inputs of `crop_size`."""
        return self.training_batch(batch_size, crop_size, generator)[1]

    def reorient(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Flips and a transposition; the eight orientations of a square crop are equally likely."""
        return photos.reorient(images, generator)

    def smallest_crop(self) -> int:
        """Any that a network takes."""
        return SMALLEST_CROP

    def largest_crop(self) -> int:
        """The largest training crop (low-resolution pixels) that at least one photograph can give."""
        return max(min(level.shape[1:]) for level in self._levels) // photos.SCALE

    def count_fitting(self, crop_size: int) -> tuple[int, int]:
        """Training photographs that are large enough for a crop of this size (low-resolution pixels), and all of them."""
        sides = [min(photo.pixels.shape[1:]) for photo in self.training_photos.photos]
        return sum(side >= crop_size * photos.SCALE for side in sides), len(sides)

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Crops of training photographs, reduced to `input_shape`, mirrored at the border where a photograph is too small."""
        batch, _, height, width = input_shape
        highs = [photo.pixels[None].float() / 255.0 for photo in self.training_photos.photos]
        generator = torch.Generator().manual_seed(seed)
        for index in range(count):
            which = [(index * batch + k) % len(highs) for k in range(batch)]
            truth = torch.cat([_crop(highs[k], height * photos.SCALE, width * photos.SCALE, generator) for k in which])
            names = "+".join(self.training_photos.photos[k].name for k in which)
            yield Sample(f"{names} #{index}", (photos.degrade(truth),), truth)

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """Peak signal-to-noise ratio over all RGB values, dB, after clipping to [0, 1] and rounding to 8 bits."""
        rounded = (output.clamp(0.0, 1.0) * 255.0).round() / 255.0
        return float(-10.0 * torch.log10(torch.mean((rounded - truth) ** 2)))

    def baseline(self, sample: Sample) -> Tensor:
        """Bicubic enlargement."""
        return photos.bicubic_upsample(sample.picture)


def _crop(image: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    top = int(torch.randint(max(1, image.shape[2] - height + 1), (1,), generator=generator))
    left = int(torch.randint(max(1, image.shape[3] - width + 1), (1,), generator=generator))
    crop = image[:, :, top : top + height, left : left + width]
    while crop.shape[2] < height or crop.shape[3] < width:  # a mirror adds less than the image itself, so small images take several
        right = min(width - crop.shape[3], crop.shape[3] - 1)
        bottom = min(height - crop.shape[2], crop.shape[2] - 1)
        crop = functional.pad(crop, (0, right, 0, bottom), mode="reflect")
    return crop
