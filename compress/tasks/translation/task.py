"""Image translation as a task: pairs of pictures of one size, PSNR to the held-out targets, the mean colour of the targets as the baseline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property, partial

import torch
from torch import Tensor

from mcompress.compress.tasks.photographs import Photo, PhotoSet
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.tasks.translation import crops, folders
from mcompress.compress.tasks.translation.embedded import EMBEDDED
from mcompress.compress.tasks.translation.pairs import Pair, pairs_digest, split
from mcompress.compress.tasks.translation.pictures import PictureTranslation
from mcompress.compress.tasks.translation.unpaired import UnpairedTranslation
from mcompress.errors import PlanError, Problems
from mcompress.targets.schema import DataConfig


class Translation(PictureTranslation):
    """Aligned pairs: pictures in, the same scene in another domain out."""

    metric = "psnr_db"
    metric_title = "PSNR to the held-out targets, RGB"
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
        self.pool = split(training, labelled_fraction, unlabelled, skipped)
        super().__init__({pair.name: pair.input for pair in held_out}, [pair.target for pair in self.pool.labelled], mirrors=mirrors)
        self.held_out_pairs, self.skipped = held_out, skipped
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
        problems = Problems()
        training = problems.of(partial(folders.aligned, data.training, "data.training"))
        held_out = problems.of(partial(folders.aligned, data.held_out, "data.held_out"))
        further = problems.of(partial(folders.unlabelled, data.unlabelled, "data.unlabelled"))
        if training is None or held_out is None or further is None:
            raise PlanError(problems.found)
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

    def held_out(self) -> tuple[Sample, ...]:
        """The held-out pairs, whole but for sides cut to a multiple of 4."""
        return tuple(Sample(p.name, (crops.whole(p.input),), crops.whole(p.target)) for p in self.held_out_pairs)

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """Squares of the labelled pairs that are not trained on, as many as `crops.VALIDATION_PIXELS` allow: (N, 3, S, S) twice."""
        inputs, truths = crops.validation_tiles([(pair.input, pair.target) for pair in self.pool.validation])
        return (inputs,), truths

    @property
    def validation_side(self) -> int:
        """Side of the squares of `validation_batch`, pixels."""
        return crops.tile_side([pair.input for pair in self.pool.validation])

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """Random crops of labelled pairs: (N, 3, crop_size, crop_size) twice; mirrored at random where the data allow it."""
        inputs, truths = self.reorient(crops.random_crops(self._labelled, batch_size, crop_size, generator), generator)
        return (inputs,), truths

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Inputs:
        """Random crops of inputs, labelled (but for those of validation) and unlabelled ones alike: (N, 3, crop_size, crop_size)."""
        return self.reorient(crops.random_crops(self._inputs, batch_size, crop_size, generator), generator)

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Random crops of the labelled pairs' targets: (N, 3, crop_size, crop_size)."""
        return self.training_batch(batch_size, crop_size, generator)[1]

    def largest_crop(self) -> int:
        """The largest training crop (pixels) that at least one labelled pair can give."""
        return max(crops.smaller_side(picture) for picture, _ in self._labelled)

    def count_fitting(self, crop_size: int) -> tuple[int, int]:
        """Inputs, with and without a label, that are large enough for a crop of this size (pixels), and all of them."""
        return crops.count_fitting([picture for (picture,) in self._inputs], crop_size)

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Parts of labelled training pairs with inputs of `input_shape`, mirrored at the border where a pair is too small."""
        pairs = [(pair.name, (pair.input, pair.target)) for pair in self.pool.labelled]
        for name, (inputs, truths) in crops.parts(pairs, count, input_shape, seed):
            yield Sample(name, (inputs,), truths)
