"""Several widths on one set of weights (SlimGAN, Hou et al. 2021, arXiv 2012.05660): the narrower networks are leading slices of the widest.

Each step trains every width. The widest learns from the truth, and from the original where that teaches. Width k learns from width k + 1, the next
wider, whose output is taken as it is: stepwise in-place distillation, L_G(k) = L_GAN(k) + D(G_k(x), sg(G_{k+1}(x))), because a network learns better
from one that is a little larger than from one that is much larger. SlimGAN's D is the squared difference; here it is the distillation loss of
`mcompress.compress.objectives.likeness`, on images with and without a label. Each width has a discriminator of its own that shares its first blocks
with the others: one cannot judge pictures of every width, and separate ones would each learn anew what a picture is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcompress.compress.models.build import build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.batches import mixed_batch
from mcompress.compress.objectives.discriminators import SharedDiscriminator
from mcompress.compress.objectives.likeness import Features, feature_terms, picture_l1, pixel_terms
from mcompress.compress.supernet import apply_cut, state_of
from mcompress.compress.tasks.task import Task
from mcompress.compress.train import Objective
from mcompress.targets.stages import SlimConfig

WIDEST = "widest"


class SlimmableTraining(Objective):
    """Players: the `network`, whose weights all widths share, then the `discriminator` of all widths.

    `narrower`: name -> specification, from wide to narrow; `original` teaches the widest, if given.
    """

    def __init__(self, task: Task, config: SlimConfig, network: nn.Module, narrower: Mapping[str, ModelSpec], original: nn.Module | None) -> None:
        self.task, self.config, self.network, self.original = task, config, network, original
        self.shapes = {name: build_meta(spec).train() for name, spec in narrower.items()}
        if config.with_discriminator:
            self.discriminator = SharedDiscriminator.for_task(task, config, (WIDEST, *self.shapes), config.shared_blocks)

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        return {"network": self.network, **({"discriminator": self.discriminator} if self.config.with_discriminator else {})}

    def frozen(self) -> Mapping[str, nn.Module]:
        """The original, where it teaches."""
        return {} if self.original is None else {"original": self.original}

    def learning_rates(self) -> Mapping[str, float]:
        """The discriminator learns at its own rate."""
        return {"discriminator": self.config.discriminator_learning_rate}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw labelled pairs and as many inputs of any kind."""
        self.batch = mixed_batch(self.task, self.config, generator, device)
        self.inputs = self.batch.all_inputs

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player; weights applied."""
        return self._network_terms() if player == "network" else self._discriminator_terms()

    def _network_terms(self) -> dict[str, Tensor]:
        config, weights = self.config, state_of(self.network)
        widest: Tensor = self.network(*self.inputs).float()
        labelled = widest[: len(self.batch.source)]
        terms = {"truth": config.truth * picture_l1(self.task, labelled, self.batch.truth)}
        if self.original is not None and config.output:
            with torch.no_grad():
                taught = self.original(*self.batch.inputs).float()
            terms["original"] = config.output * picture_l1(self.task, labelled, taught)
        made = {WIDEST: widest}
        for name, shape in self.shapes.items():
            wider = next(reversed(made))
            made[name] = apply_cut(shape, weights, self.inputs).float()
            wanted = made[wider].detach()
            likeness = dict(pixel_terms(config, self.task, made[name], wanted))
            if config.with_discriminator:
                likeness.update(feature_terms(config, made[name], wanted, self._features(wider)))
            terms.update({f"{term} of {name}": value for term, value in likeness.items()})
        if config.adversarial:
            for name, image in made.items():
                judged = self.discriminator.term_of(name, self.batch.source, self.batch.truth, image[: len(self.batch.source)])
                terms[f"adversarial of {name}"] = config.adversarial * judged
        self.made = {name: image[: len(self.batch.source)].detach() for name, image in made.items()}
        return terms

    def _features(self, name: str) -> Features:
        """Blocks of a width's discriminator, in which its pictures are compared with those of the next narrower."""
        return lambda picture: self.discriminator.forward_features(name, self.inputs[0], picture)[:-1]

    def _discriminator_terms(self) -> dict[str, Tensor]:
        return {f"gan of {name}": self.discriminator.own_term(name, self.batch.source, self.batch.truth, image) for name, image in self.made.items()}
