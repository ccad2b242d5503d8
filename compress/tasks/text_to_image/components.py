"""What the tasks of the networks of a text-to-image model have in common: latents are never cut, and nothing in them is mirrored."""

from __future__ import annotations

import torch
from torch import Tensor

from mcompress.compress.tasks.task import Inputs, OneCall


def snr_db(output: Tensor, truth: Tensor) -> float:
    """Power of the truth over that of the error, dB; infinite for equal tensors."""
    return float(10.0 * torch.log10(truth.square().mean() / (output - truth).square().mean()))


AS_GOOD_AS_EQUAL_DB = 40.0
"""What comes nearer to the original's is as good: a precision plan that is judged by it is not asked for more."""


class Component(OneCall):
    """A network of a text-to-image model."""

    name: str
    metric: str
    scale = 1
    paired = True
    side: int
    """Of its inputs, where they have one; 1 for tokens."""
    like_the_original = True
    """Whether truths are what the original itself makes, so that it has no quality of its own to lose."""

    def example(self) -> tuple[Tensor, Tensor]:
        """An input and a truth that are zero everywhere, for their shapes: nothing is drawn or encoded for them. Subclasses say which."""
        raise NotImplementedError

    def training_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Inputs, Tensor]:
        """Inputs and truths; subclasses say which."""
        raise NotImplementedError

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Inputs:
        """Inputs as in training."""
        return self.training_batch(batch_size, crop_size, generator)[0]

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Truths as in training."""
        return self.training_batch(batch_size, crop_size, generator)[1]

    def reorient(self, images: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:  # noqa: ARG002  (captions say left and right)
        """As they are."""
        return images

    @property
    def validation_side(self) -> int:
        """Whole latents."""
        return self.side

    @property
    def held_out_sizes(self) -> dict[str, tuple[int, int]]:
        """One size stands for all of them."""
        return {"latents": (self.side, self.side)}

    def smallest_crop(self) -> int:
        """Nothing is ever cut."""
        return self.side

    def largest_crop(self) -> int:
        """Nothing is ever cut."""
        return self.side

    def count_fitting(self, crop_size: int) -> tuple[int, int]:  # noqa: ARG002  (nothing is ever cut)
        """Everything fits."""
        return 1, 1
