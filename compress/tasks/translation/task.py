"""Image translation as a task: pairs of pictures of one size, PSNR to the held-out targets, the mean colour of the targets as the baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.tasks.embedded_network import embedded_network
from mcompress.compress.tasks.photographs import Photo, PhotoSet
from mcompress.compress.tasks.task import Sample
from mcompress.compress.tasks.translation import crops, folders
from mcompress.compress.tasks.translation.embedded import EMBEDDED
from mcompress.compress.tasks.translation.pairs import Pair, pairs_digest, split
from mcompress.compress.tasks.translation.unpaired import UnpairedTranslation
from mcompress.targets.schema import DataConfig


class Translation:
    """Pictures in, the same scene in another domain out; of equal size, in [-1, 1]."""

    name = "translation"
    metric = "psnr_db"
    metric_title = "PSNR to the held-out targets, RGB"
    baseline_name = "mean colour"
    input_range = (-1.0, 1.0)
    output_range = (-1.0, 1.0)
    scale = 1
    paired = True

    def __init__(
        self,
        training: tuple[Pair, ...],
        held_out: tuple[Pair, ...],
        labelled_fraction: float = 1.0,
        unlabelled: tuple[Photo, ...] = (),
        skipped: tuple[str, ...] = (),
        *,
        mirrors: bool = True,
    ) -> None:
        """`mirrors`: whether pairs mirrored left to right are as good. Raises `PlanError` where fewer than two pairs keep their target."""
        self.pool = split(training, labelled_fraction, unlabelled)
        self.held_out_pairs, self.skipped, self.mirrors = held_out, skipped, mirrors
        self._labelled = tuple((pair.input, pair.target) for pair in self.pool.labelled)
        self._inputs = tuple((pair.input,) for pair in self.pool.labelled) + tuple((photo.pixels,) for photo in self.pool.unlabelled)

    @classmethod
    def from_config(cls, data: DataConfig) -> Translation | UnpairedTranslation:
        """The user's folders, or the embedded pairs. Raises `PlanError` for data that cannot be used."""
        if data.pairing == "unpaired":
            return UnpairedTranslation.from_config(data)
        if data.training is None or data.held_out is None:
            given = EMBEDDED[data.embedded]()
            return cls(given.training, given.held_out, data.labelled_fraction, mirrors=given.mirrors)
        training, held_out = folders.aligned(data.training, "data.training"), folders.aligned(data.held_out, "data.held_out")
        further = PhotoSet(()) if data.unlabelled is None else folders.inputs(data.unlabelled, "data.unlabelled")
        skipped = training.skipped + held_out.skipped + further.skipped
        return cls(training.pairs, held_out.pairs, data.labelled_fraction, further.photos, skipped)

    @property
    def labelled_pairs(self) -> int:
        """Pairs whose target is used: for training, or for validation."""
        return len(self.pool.labelled) + len(self.pool.validation)

    @property
    def unlabelled_images(self) -> int:
        """Inputs that are used without a target."""
        return len(self.pool.unlabelled)

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of labelled, validation, unlabelled and held-out pictures."""
        parts = [pairs_digest(pairs) for pairs in (self.pool.labelled, self.pool.validation, self.held_out_pairs)]
        return hashlib.sha256(":".join([str(self.mirrors), *parts, PhotoSet(self.pool.unlabelled).digest]).encode()).hexdigest()

    def embedded_teacher(self, input_shape: tuple[int, ...]) -> tuple[ModelSpec, nn.Module]:
        """The original that ships for edges to objects. Raises `PlanError` if none does."""
        return embedded_network(self.name, input_shape, self.input_range)

    def taught_by(self, teacher: nn.Module) -> Translation:  # noqa: ARG002  (the truth is known)
        """The task itself: its pairs have their truth."""
        return self

    def held_out(self) -> tuple[Sample, ...]:
        """The held-out pairs, whole but for sides cut to a multiple of 4."""
        return tuple(Sample(p.name, crops.whole(p.input), crops.whole(p.target)) for p in self.held_out_pairs)

    def validation_batch(self) -> tuple[Tensor, Tensor]:
        """Squares of the labelled pairs that are not trained on, as many as `crops.VALIDATION_PIXELS` allow: (N, 3, S, S) twice."""
        inputs, truths = crops.validation_tiles([(pair.input, pair.target) for pair in self.pool.validation])
        return inputs, truths

    @property
    def validation_side(self) -> int:
        """Side of the squares of `validation_batch`, pixels."""
        return crops.tile_side([pair.input for pair in self.pool.validation])

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random crops of labelled pairs: (N, 3, crop_size, crop_size) twice; mirrored at random where the data allow it."""
        inputs, truths = self.reorient(crops.random_crops(self._labelled, batch_size, crop_size, generator), generator)
        return inputs, truths

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Random crops of inputs, labelled (but for those of validation) and unlabelled ones alike: (N, 3, crop_size, crop_size)."""
        return self.reorient(crops.random_crops(self._inputs, batch_size, crop_size, generator), generator)[0]

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Random crops of the labelled pairs' targets: (N, 3, crop_size, crop_size)."""
        return self.training_batch(batch_size, crop_size, generator)[1]

    def reorient(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        """Each sample mirrored left to right or not, alike in all of `images`; unchanged for data with a right and a left."""
        return crops.mirrored(images, generator) if self.mirrors else images

    def largest_crop(self) -> int:
        """The largest training crop (pixels) that at least one labelled pair can give."""
        return max(crops.smaller_side(picture) for picture, _ in self._labelled)

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Parts of labelled training pairs with inputs of `input_shape`, mirrored at the border where a pair is too small."""
        batch, _, height, width = input_shape
        generator = torch.Generator().manual_seed(seed)
        for index in range(count):
            pairs = [self.pool.labelled[(index * batch + k) % len(self.pool.labelled)] for k in range(batch)]
            parts = [crops.cut((pair.input, pair.target), height, width, generator) for pair in pairs]
            inputs, truths = (torch.cat(column) for column in zip(*parts, strict=True))
            yield Sample(f"{'+'.join(pair.name for pair in pairs)} #{index}", inputs, truths)

    def quality(self, output: Tensor, truth: Tensor) -> float:
        """Peak signal-to-noise ratio over all RGB values, dB, after clipping to [-1, 1] and rounding to 8 bits."""
        return crops.psnr_db(output, truth)

    def baseline(self, sample: Sample) -> Tensor:
        """The mean colour of the labelled training targets, everywhere."""
        return self._mean_colour.expand_as(sample.truth)

    @cached_property
    def _mean_colour(self) -> Tensor:
        return crops.mean_colour([target for _, target in self._labelled])
