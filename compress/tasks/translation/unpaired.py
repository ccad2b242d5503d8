"""Image translation without pairs, as CycleGAN is trained: pictures of one domain, pictures of another, and the given original as the judge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from mcompress.compress.tasks.photographs import Photo, PhotoSet, first_reasons
from mcompress.compress.tasks.task import Inputs, Sample
from mcompress.compress.tasks.translation import crops, folders
from mcompress.compress.tasks.translation.embedded import EMBEDDED
from mcompress.compress.tasks.translation.pairs import ONE_IN, name_hash
from mcompress.compress.tasks.translation.pictures import PictureTranslation
from mcompress.errors import PlanError, Problems
from mcompress.targets.schema import DataConfig


class UnpairedTranslation(PictureTranslation):
    """Inputs without truths, and pictures of the target domain; truths are what the original makes of the inputs, once it is given."""

    metric = "teacher_psnr_db"
    metric_title = "PSNR to the original's output, RGB"
    paired = False
    labelled_pairs = 0

    def __init__(self, inputs: PhotoSet, targets: PhotoSet, held_out: PhotoSet, teacher: nn.Module | None = None, *, mirrors: bool = True) -> None:
        """`mirrors`: whether pictures mirrored left to right are as good. Raises `PlanError` for fewer than two inputs: one trains, one validates."""
        if len(inputs.photos) < 2 or not targets.photos:
            seen = f"{len(inputs.photos)} inputs and {len(targets.photos)} pictures of the target domain"
            needed = "unpaired training needs at least 2 inputs, one to choose between candidates, and 1 picture. Give more"
            raise PlanError([f"data.training has {seen}; {needed}{first_reasons(inputs.skipped + targets.skipped)}"])
        super().__init__({photo.name: photo.pixels for photo in held_out.photos}, [photo.pixels for photo in targets.photos], mirrors=mirrors)
        self.given_inputs, self.targets, self.held_out_photos, self.teacher = inputs, targets, held_out, teacher
        ordered = sorted(inputs.photos, key=name_hash)
        self.validation = tuple(ordered[::ONE_IN])
        self.inputs = tuple(photo for position, photo in enumerate(ordered) if position % ONE_IN)

    @classmethod
    def from_config(cls, data: DataConfig) -> UnpairedTranslation:
        """The user's folders, or the embedded pairs taken apart: inputs of every second, targets of the others, so that no two belong together."""
        if data.training is None or data.held_out is None:
            given = EMBEDDED[data.embedded]()
            return cls(
                PhotoSet(tuple(Photo(pair.name, pair.input) for pair in given.training[::2])),
                PhotoSet(tuple(Photo(pair.name, pair.target) for pair in given.training[1::2])),
                PhotoSet(tuple(Photo(pair.name, pair.input) for pair in given.held_out)),
                mirrors=given.mirrors,
            )
        problems = Problems()
        domains = problems.of(partial(folders.two_domains, data.training, "data.training"))
        held_out = problems.of(partial(folders.held_out_inputs, data.held_out, "data.held_out"))
        further = problems.of(partial(folders.unlabelled, data.unlabelled, "data.unlabelled"))
        if domains is None or held_out is None or further is None:
            raise PlanError(problems.found)
        inputs, targets = domains
        renamed = tuple(Photo(f"unlabelled_{photo.name}", photo.pixels) for photo in further.photos)
        return cls(PhotoSet(inputs.photos + renamed, inputs.skipped + further.skipped), targets, held_out)

    def taught_by(self, teacher: nn.Module) -> UnpairedTranslation:
        """The same data with the original's outputs as truths; it is evaluated without gradients, in evaluation mode."""
        return UnpairedTranslation(self.given_inputs, self.targets, self.held_out_photos, teacher, mirrors=self.mirrors)

    @property
    def unlabelled_images(self) -> int:
        """Inputs, but for those of validation."""
        return len(self.inputs)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Pictures that could not be used or were converted: `name: why`."""
        return self.given_inputs.skipped + self.targets.skipped + self.held_out_photos.skipped

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of inputs, targets and held-out inputs."""
        parts = (self.given_inputs.digest, self.targets.digest, self.held_out_photos.digest)
        return hashlib.sha256(":".join(("unpaired", str(self.mirrors), *parts)).encode()).hexdigest()

    def held_out(self) -> tuple[Sample, ...]:
        """The held-out inputs, sides cut to a multiple of 4, and what the original makes of them. Raises `PlanError` before `taught_by`."""
        return self._held_out

    @cached_property
    def _held_out(self) -> tuple[Sample, ...]:
        inputs = ((photo.name, crops.whole(photo.pixels)) for photo in self.held_out_photos.photos)
        return tuple(Sample(name, (image,), self._truth(image)) for name, image in inputs)

    def validation_batch(self) -> tuple[Inputs, Tensor]:
        """Squares of inputs that are not trained on, as many as `crops.VALIDATION_PIXELS` allow, and what the original makes of them:
        (N, 3, S, S) twice.
        """
        return self._validation

    @property
    def validation_side(self) -> int:
        """Side of the squares of `validation_batch`, pixels."""
        return crops.tile_side([photo.pixels for photo in self.validation])

    @cached_property
    def _validation(self) -> tuple[Inputs, Tensor]:
        (inputs,) = crops.validation_tiles([(photo.pixels,) for photo in self.validation])
        return (inputs,), self._truth(inputs)

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """Random crops of inputs and what the original makes of them, (N, 3, crop_size, crop_size) twice: the pseudo truth of GAN Compression.

        Raises `PlanError` before `taught_by`.
        """
        inputs = self.unlabelled_batch(batch_size, crop_size, generator)
        return inputs, self._truth(*inputs)

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Inputs:
        """Random crops of inputs, but for those of validation: (N, 3, crop_size, crop_size)."""
        return (self._batch(self.inputs, batch_size, crop_size, generator),)

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Random crops of pictures of the target domain: (N, 3, crop_size, crop_size)."""
        return self._batch(self.targets.photos, batch_size, crop_size, generator)

    def _batch(self, photos: tuple[Photo, ...], batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        return self.reorient(crops.random_crops([(photo.pixels,) for photo in photos], batch_size, crop_size, generator), generator)[0]

    def largest_crop(self) -> int:
        """The largest crop (pixels) that at least one input and one picture of the target domain can give."""
        return min(max(crops.smaller_side(photo.pixels) for photo in photos) for photos in (self.inputs, self.targets.photos))

    def count_fitting(self, crop_size: int) -> tuple[int, int]:
        """Pictures of both domains that are large enough for a crop of this size (pixels), and all of them."""
        return crops.count_fitting([photo.pixels for photo in (*self.inputs, *self.targets.photos)], crop_size)

    def calibration_samples(self, count: int, input_shape: tuple[int, ...], seed: int) -> Iterator[Sample]:
        """Parts of inputs of `input_shape`, mirrored at the border where a picture is too small, and what the original makes of them."""
        photos = [(photo.name, (photo.pixels,)) for photo in self.inputs]
        for name, (inputs,) in crops.parts(photos, count, input_shape, seed):
            yield Sample(name, (inputs,), self._truth(inputs))

    @torch.no_grad()
    def _truth(self, inputs: Tensor) -> Tensor:
        if self.teacher is None:
            raise PlanError(["data.pairing is unpaired, so the truth is what the original makes of an input, and no original was given yet"])
        was_training = self.teacher.training
        truth: Tensor = self.teacher.eval()(inputs)
        self.teacher.train(was_training)
        return truth
