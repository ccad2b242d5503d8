"""Discriminators as objectives use them: given the input as well where it has the size of the output, and one for several generators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcompress.compress.losses import ADVERSARIAL, TERMS
from mcompress.compress.models.patchgan import patchgan
from mcompress.compress.objectives.likeness import picture_l1
from mcompress.compress.tasks.task import Task
from mcompress.targets.stages import LikenessConfig

PUBLISHED_LAYERS, SMALLEST_MAP = 3, 4


def layers_for(side: int) -> int:
    """Layers of stride 2 of a PatchGAN for pictures of `side` pixels: the published three, fewer where too little of the picture would be left."""
    return max(1, min(PUBLISHED_LAYERS, (side // SMALLEST_MAP).bit_length() - 1))


class SharedDiscriminator(nn.Module):
    """One PatchGAN per generator; the first `shared_blocks` of its four blocks serve all of them (OMGD, SlimGAN).

    It sees input and output together, as pix2pix's does, where `source_channels`, those of the input, is not 0; otherwise the output alone. `side` is
    that of the training pictures, `form` one of `losses.ADVERSARIAL`.
    """

    def __init__(self, generators: Sequence[str], features: int, shared_blocks: int, side: int, *, source_channels: int, form: str = "hinge") -> None:
        super().__init__()
        self.conditional, self.form = bool(source_channels), form
        whole = [patchgan(features=features, in_channels=source_channels + 3, layers=layers_for(side)) for _ in generators]
        self.shared = whole[0].blocks[:shared_blocks]
        self.own = nn.ModuleDict(
            {name: nn.ModuleList([*one.blocks[shared_blocks:], one.logits]) for name, one in zip(generators, whole, strict=True)}
        )

    @classmethod
    def for_task(cls, task: Task, config: LikenessConfig, generators: Sequence[str], shared_blocks: int = 0) -> SharedDiscriminator:
        """As the configuration asks for; it sees the inputs where inputs and outputs of the task have one size."""
        side = config.crop_size * task.scale
        seen = task.input_channels if task.scale == 1 else 0
        return cls(generators, config.discriminator_features, shared_blocks, side, source_channels=seen, form=config.adversarial_loss)

    def forward_features(self, generator: str, source: Tensor, image: Tensor) -> list[Tensor]:
        """The activations of every block for `image`, made from `source`, and last the logits."""
        x, features = torch.cat([source, image], 1) if self.conditional else image, []
        for block in (*self.shared, *self.own[generator]):  # type: ignore[misc]
            x = block(x)
            features.append(x)
        return features

    def forward(self, generator: str, source: Tensor, image: Tensor) -> Tensor:
        """The logits for `image`, made by that generator from `source`."""
        return self.forward_features(generator, source, image)[-1]

    def own_term(self, generator: str, source: Tensor, truth: Tensor, image: Tensor) -> Tensor:
        """What it minimises for this generator, whose picture is `image`; no gradient reaches the picture."""
        return discriminator_term(self.form, self(generator, source, truth), self(generator, source, image.detach()))

    def term_of(self, generator: str, source: Tensor, truth: Tensor, image: Tensor) -> Tensor:
        """What this generator minimises with `image`."""
        real = self(generator, source, truth) if needs_real(self.form) else None
        return generator_term(self.form, self(generator, source, image), real)


def discriminator_term(form: str, real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator minimises in this form of the game, from its logits of truth and of generated pictures."""
    return TERMS[ADVERSARIAL[form][0]].compute(real, fake)


def generator_term(form: str, fake: Tensor, real: Tensor | None) -> Tensor:
    """What a generator minimises; `real`, the logits of the truth, is only needed by the relativistic form."""
    term = TERMS[ADVERSARIAL[form][1]]
    return term.compute(fake) if term.takes == "fake logits" else term.compute(real, fake)


def needs_real(form: str) -> bool:
    """Whether a generator's term needs the logits of the truth."""
    return TERMS[ADVERSARIAL[form][1]].takes != "fake logits"


def supervised_terms(
    config: LikenessConfig, task: Task, discriminator: SharedDiscriminator | None, generator: str, source: Tensor, truth: Tensor, output: Tensor
) -> dict[str, Tensor]:
    """What a network that sees the truth minimises with its `output` for `source`: `truth`, and `adversarial` where that has a weight (pix2pix)."""
    terms = {"truth": config.truth * picture_l1(task, output, truth)}
    if discriminator is not None and config.adversarial:
        terms["adversarial"] = config.adversarial * discriminator.term_of(generator, source, truth, output)
    return terms
