"""The supernet of a search with few labels (UGC-style): labelled pairs train the largest network, all images the others.

UGC (Ren et al. 2023, arXiv 2309.09310) trains the largest network, a random and the smallest one together on shared weights, labelled pairs in the
supervised way and unlabelled images among the networks themselves; its losses are not published. Here the largest learns from truth and discriminator
(pix2pix), and the smallest and random ones learn from what it makes of labelled and unlabelled inputs, with the distillation terms of OMGD.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mcompress.compress.models.space import SearchSpace
from mcompress.compress.objectives.batches import mixed_batch
from mcompress.compress.objectives.discriminators import SharedDiscriminator, supervised_terms
from mcompress.compress.objectives.likeness import Features, feature_terms, pixel_terms
from mcompress.compress.supernet import apply_candidate, state_of
from mcompress.compress.tasks.task import Task
from mcompress.compress.train import Objective
from mcompress.targets.stages import SemiSupervisedSearchConfig

LARGEST = "largest"


class SemiSupervisedTraining(Objective):
    """Players: the `supernet`, then the `discriminator` of the largest network."""

    def __init__(self, task: Task, config: SemiSupervisedSearchConfig, space: SearchSpace, supernet: nn.Module) -> None:
        self.task, self.config, self.space, self.supernet = task, config, space, supernet
        self.discriminator = SharedDiscriminator.for_task(task, config, (LARGEST,)) if config.with_discriminator else None

    def players(self) -> Mapping[str, nn.Module]:
        """See the class."""
        return {"supernet": self.supernet, **({} if self.discriminator is None else {"discriminator": self.discriminator})}

    def learning_rates(self) -> Mapping[str, float]:
        """The discriminator learns at its own rate."""
        return {"discriminator": self.config.discriminator_learning_rate}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        """Draw labelled pairs, as many inputs of any kind, and the random candidates."""
        self.batch = mixed_batch(self.task, self.config, generator, device)
        self.candidates = [self.space.smallest, *(self.space.random(generator) for _ in range(self.config.random_candidates))]

    def terms(self, player: str) -> Mapping[str, Tensor]:
        """The terms of one player; weights applied."""
        return self._supernet_terms() if player == "supernet" else self._discriminator_terms()

    def _supernet_terms(self) -> dict[str, Tensor]:
        config, batch = self.config, self.batch
        largest = self.supernet(*batch.inputs).float()
        terms = supervised_terms(config, self.task, self.discriminator, LARGEST, batch.source, batch.truth, largest)
        self.largest_output = largest.detach()
        with torch.no_grad():
            wanted = torch.cat([self.largest_output, self.supernet(*batch.others).float()])
        inputs, weights, share = batch.all_inputs, state_of(self.supernet), 1.0 / len(self.candidates)
        for index, args in enumerate(self.candidates):
            output = apply_candidate(self.space, args, weights, inputs).float()
            likeness = dict(pixel_terms(config, self.task, output, wanted))
            if self.discriminator is not None:
                likeness.update(feature_terms(config, output, wanted, self._features(self.discriminator, inputs[0])))
            name = "smallest" if index == 0 else f"random{index}"
            terms.update({f"{term} of {name}": share * value for term, value in likeness.items()})
        return terms

    @staticmethod
    def _features(discriminator: SharedDiscriminator, images: Tensor) -> Features:
        return lambda picture: discriminator.forward_features(LARGEST, images, picture)[:-1]

    def _discriminator_terms(self) -> dict[str, Tensor]:
        if self.discriminator is None:
            return {}
        return {"gan": self.discriminator.own_term(LARGEST, self.batch.source, self.batch.truth, self.largest_output)}
