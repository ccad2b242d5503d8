"""CycleGAN: two generators learn to translate between two collections of pictures that have no pairs (Zhu et al. 2017, arXiv 1703.10593).

With G: A -> B, F: B -> A and the discriminators D_A and D_B, the generators minimise

    E[(D_B(G(a)) - 1)^2] + E[(D_A(F(b)) - 1)^2] + 10 (E|F(G(a)) - a| + E|G(F(b)) - b|) + 0.5 * 10 (E|G(b) - b| + E|F(a) - a|),

least squares, cycle consistency and identity (sections 3, 4 and 5.2), and the discriminators least squares, halved. A discriminator judges, besides
the generator's latest pictures, some of the last 50 (section 4). These lie in buffers, so that a checkpoint holds them and a training that was killed
and continued takes the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mcompress.compress.losses import TERMS
from mcompress.compress.models.generator_parts import start_as_published
from mcompress.compress.models.patchgan import patchgan
from mcompress.compress.objectives.discriminators import layers_for
from mcompress.compress.tasks.translation.crops import to_bytes, to_values
from mcompress.compress.train import Objective

A, B = "a", "b"
PUBLISHED_HALVES = 2.0
"""`lsgan_generator` is half of what CycleGAN's generators minimise; `lsgan_discriminator` is what its discriminators do."""


class TwoDomains(Protocol):
    """Pictures of two collections, (N, 3, crop_size, crop_size) in [-1, 1]."""

    def unlabelled_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Pictures of A."""

    def domain_batch(self, batch_size: int, crop_size: int, generator: torch.Generator) -> Tensor:
        """Pictures of B."""


@dataclass(frozen=True)
class CycleSettings:
    """Batches and weights; the defaults are those of the paper. `pool` is how many earlier pictures each discriminator remembers, 0 for none."""

    batch_size: int = 1
    crop_size: int = 256
    cycle: float = 10.0
    identity: float = 0.5
    """Times `cycle`."""
    discriminator_features: int = 64
    pool: int = 50


class PicturePool(nn.Module):
    """The last pictures of a generator, 8 bits a value as real pictures have, in a buffer that goes into checkpoints."""

    pictures: Tensor
    filled: Tensor

    def __init__(self, places: int, side: int) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros((places, 3, side, side), dtype=torch.uint8))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def exchange(self, images: Tensor, chance: Tensor) -> Tensor:
        """What the discriminator is to see of `images` (N, 3, side, side) in [-1, 1]: each one itself, or an earlier one in whose place it is kept.

        `chance` (N, 2) in [0, 1) decides: in half of the cases an earlier one, which one says the second number. Until the pool is full each picture
        is kept and shown.
        """
        shown, places = [], self.pictures.shape[0]
        for image, (whether, which) in zip(images, chance.tolist(), strict=True):
            count = int(self.filled)
            if count < places:
                self.pictures[count] = to_bytes(image)
                self.filled += 1
            elif places and whether < 0.5:
                place = int(which * places)
                shown.append(to_values(self.pictures[place]))
                self.pictures[place] = to_bytes(image)
                continue
            shown.append(image)
        return torch.stack(shown)


class CycleGAN(Objective):
    """Players, in the order in which they move: the two `generators`, which the cycles couple, then the two `discriminators`."""

    def __init__(self, data: TwoDomains, settings: CycleSettings, a_to_b: nn.Module, b_to_a: nn.Module) -> None:
        self.data, self.settings = data, settings
        self.generators = nn.ModuleDict({"a_to_b": a_to_b, "b_to_a": b_to_a})
        self.pools = {side: PicturePool(settings.pool, settings.crop_size) for side in (A, B)}
        features, layers = settings.discriminator_features, layers_for(settings.crop_size)
        self.discriminators = nn.ModuleDict(
            {side: patchgan(features=features, layers=layers) for side in (A, B)} | {f"pool_{side}": pool for side, pool in self.pools.items()}
        )
        start_as_published(self.discriminators)

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        return {"generators": self.generators, "discriminators": self.discriminators}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw pictures of both collections, and the chances of the pools."""
        size = self.settings.batch_size, self.settings.crop_size
        real = {A: self.data.unlabelled_batch(*size, generator)[0], B: self.data.domain_batch(*size, generator)}
        self.real = {side: images.to(device) for side, images in real.items()}
        self.chance = {side: torch.rand((self.settings.batch_size, 2), generator=generator) for side in (A, B)}

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player, `adversarial a` and so on by the collection that they are about; weights applied."""
        return self._generator_terms() if player == "generators" else self._discriminator_terms()

    def _generator_terms(self) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        to, settings = {A: self.generators["b_to_a"], B: self.generators["a_to_b"]}, self.settings
        for side, other in ((A, B), (B, A)):
            real = self.real[side]
            made = to[other](real)
            self.made[other] = made.detach().float()
            terms[f"adversarial {other}"] = PUBLISHED_HALVES * TERMS["lsgan_generator"].compute(self.discriminators[other](made).float())
            if settings.cycle:
                terms[f"cycle {side}"] = settings.cycle * TERMS["l1"].compute(to[side](made).float(), real)
            if settings.cycle and settings.identity:
                terms[f"identity {side}"] = settings.cycle * settings.identity * TERMS["l1"].compute(to[side](real).float(), real)
        return terms

    def _discriminator_terms(self) -> dict[str, Tensor]:
        terms = {}
        for side in (A, B):
            judge, fake = self.discriminators[side], self.pools[side].exchange(self.made[side], self.chance[side])
            terms[f"gan {side}"] = TERMS["lsgan_discriminator"].compute(judge(self.real[side]).float(), judge(fake).float())
        return terms
