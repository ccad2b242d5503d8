"""What a drawn picture is worth beside the one that it should be: attributes of the caption, or likeness to the original's picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor

from mcompress.compress.tasks.text_to_image.captions import ATTRIBUTES
from mcompress.compress.tasks.text_to_image.judge import Judge


class PictureQuality(Protocol):
    """A metric of pictures (1, 3, H, W) in [-1, 1]; higher is better."""

    metric: str
    title: str

    @property
    def digest(self) -> str:
        """SHA-256 of what it depends on."""

    def quality(self, picture: Tensor, truth: Tensor) -> float:
        """The metric."""


@dataclass(frozen=True)
class AttributeAccuracy:
    """For embedded scenes: in how many of the caption's attributes the judge sees the same as in a true picture of the caption."""

    judge: Judge
    metric = "attribute_accuracy_percent"
    title = "colour, texture, shape and place as the caption says, seen by a classifier of scenes, %"

    @cached_property
    def digest(self) -> str:
        """Of the judge's weights."""
        sha = sha256()
        for name, value in sorted(self.judge.state_dict().items()):
            sha.update(name.encode() + value.numpy().tobytes())
        return sha.hexdigest()

    @torch.no_grad()
    def quality(self, picture: Tensor, truth: Tensor) -> float:
        """0 to 100."""
        seen, wanted = self.judge(picture.clamp(-1.0, 1.0)), self.judge(truth)
        return 100.0 * sum(float((seen[name].argmax(1) == wanted[name].argmax(1)).float().mean()) for name in ATTRIBUTES) / len(ATTRIBUTES)


@dataclass(frozen=True)
class LikenessToOriginal:
    """For captions of one's own: PSNR to the picture that the original draws from the same noise."""

    metric = "psnr_db"
    title = "PSNR to the original's picture of the same caption and noise, RGB"
    digest = "likeness"

    def quality(self, picture: Tensor, truth: Tensor) -> float:
        """dB, after rounding to 8 bits."""
        rounded, wanted = (((one.clamp(-1.0, 1.0) + 1.0) * 127.5).round() / 127.5 for one in (picture, truth))
        return float(-10.0 * torch.log10(torch.mean((rounded - wanted) ** 2) / 4.0))
