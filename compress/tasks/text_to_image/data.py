"""Captioned pictures: the embedded scenes, or a folder of one's own, and their latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from mcompress.compress.tasks.text_to_image.captions import Scene, scenes
from mcompress.compress.tasks.text_to_image.drawing import draw
from mcompress.compress.tasks.text_to_image.original import AT_ONCE, Original

PER_SCENE = 4
"""Pictures of each combination that is trained on."""
VALIDATION = 64
TRAINING_SEED, HELD_OUT_SEED = 11, 13


class Captioned(Protocol):
    """Pictures with their captions."""

    @property
    def captions(self) -> tuple[str, ...]:
        """One for each picture."""

    @property
    def digest(self) -> str:
        """SHA-256 of pictures and captions."""

    def pictures(self) -> Iterator[Tensor]:
        """(N, 3, H, W) in [-1, 1], some at a time, in the order of the captions."""


@dataclass(frozen=True)
class DrawnScenes:
    """The embedded pictures, each drawn when it is needed."""

    scenes: tuple[Scene, ...]
    seed: int

    @property
    def captions(self) -> tuple[str, ...]:
        """Of the scenes."""
        return tuple(scene.caption for scene in self.scenes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels and the captions."""
        sha = sha256("\n".join(self.captions).encode())
        first = draw(self.scenes[:AT_ONCE], torch.Generator().manual_seed(self.seed))
        sha.update((first * 255).round().to(torch.int16).numpy().tobytes())  # the rest follows from the same code and seed
        return sha.hexdigest()

    def pictures(self) -> Iterator[Tensor]:
        """(N, 3, 32, 32)."""
        generator = torch.Generator().manual_seed(self.seed)
        for first in range(0, len(self.scenes), AT_ONCE):
            yield draw(self.scenes[first : first + AT_ONCE], generator)


@dataclass(frozen=True)
class ResizedScenes:
    """The embedded pictures in another size, for an original that draws larger or smaller ones."""

    scenes: DrawnScenes
    size: tuple[int, int]
    """Height and width, pixels."""

    @property
    def captions(self) -> tuple[str, ...]:
        """Of the scenes."""
        return self.scenes.captions

    @property
    def digest(self) -> str:
        """SHA-256 of the scenes and the size."""
        return sha256(f"{self.scenes.digest}:{self.size}".encode()).hexdigest()

    def pictures(self) -> Iterator[Tensor]:
        """(N, 3, H, W)."""
        for some in self.scenes.pictures():
            yield functional.interpolate(some, self.size, mode="bilinear", antialias=True)


def training_scenes() -> DrawnScenes:
    """Some pictures of each combination that is trained on, in a random order."""
    known = [scene for scene in scenes(held_out=False) for _ in range(PER_SCENE)]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(TRAINING_SEED)).tolist()
    return DrawnScenes(tuple(known[place] for place in order), TRAINING_SEED)


def held_out_scenes() -> DrawnScenes:
    """One picture of each combination that is never trained on."""
    return DrawnScenes(tuple(scenes(held_out=True)), HELD_OUT_SEED)


class EncodedPictures:
    """Captioned pictures as latents, all encoded when one is first asked for, and text states, of which equal captions share one."""

    def __init__(self, original: Original, pictures: Captioned) -> None:
        self.original, self.source = original, pictures

    @cached_property
    def latents(self) -> Tensor:
        """(M, C, h, w), scaled."""
        return torch.cat([self.original.encoded(some) for some in self.source.pictures()])

    @cached_property
    def _states(self) -> tuple[Tensor, Tensor]:
        different = sorted(set(self.source.captions))
        where = {caption: place for place, caption in enumerate(different)}
        return self.original.states(different), torch.tensor([where[caption] for caption in self.source.captions])

    def states(self, places: Tensor) -> Tensor:
        """Text states (N, L, D) of the captions at these places (N,)."""
        states, where = self._states
        return states[where[places]]


@dataclass(frozen=True)
class LatentExamples:
    """Some of the encoded pictures, to draw from."""

    encoded: EncodedPictures
    places: range

    def drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (N, C, h, w) and text states (N, L, D) of any of them."""
        which = torch.randint(len(self.places), (count,), generator=generator) + self.places.start
        return self.encoded.latents[which], self.encoded.states(which)

    def all(self) -> tuple[Tensor, Tensor]:
        """Latents and text states of all of them, in their order."""
        which = torch.tensor(self.places)
        return self.encoded.latents[which], self.encoded.states(which)
