"""The search stage that evolves a diffusion UNet block by block."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from mcompress.targets.speeds import PrecisionName
from mcompress.targets.stages.training import LearningConfig


class EvolveSearchConfig(LearningConfig):
    """Evolve a diffusion UNet block by block (SnapFusion). Attention and residual blocks that are worth least per millisecond are removed until the
    budget is met, then those that are worth most are doubled while it allows. Blocks inherit the original's weights.
    """

    stage: Literal["search"] = "search"
    method: Literal["evolve"] = "evolve"
    steps: int = Field(default=1000, ge=0, le=10_000_000)
    """Robust training (stochastic depth) before the first action; 0: the network is taken as it comes."""
    steps_between: int = Field(default=100, ge=0, le=10_000_000)
    """Robust training after every action."""
    batch_size: int = Field(default=16, ge=1, le=4096)
    learning_rate: float = Field(default=3e-4, gt=0, le=1.0)
    costed_as: PrecisionName | None = None
    """Of the network and its blocks, in the table of latencies; left out, what float files hold, which the budget is then met by as well where a
    precision plan makes nothing faster."""
    keep_probability: float = Field(default=0.9, gt=0, le=1)
    """Probability with which robust training executes a block. The paper has one and does not give it; this one is ours."""
    group: int = Field(default=2, ge=1, le=1000)
    """So many blocks are removed by one action, on one scoring of all of them (the paper executes actions in groups, whose size it does not give)."""
    most_doubled: int = Field(default=4, ge=0, le=1000)
    """So many blocks are doubled at most; 0: none. A copy that turns out to be worth nothing is taken back."""
    measure: Literal["denoising", "guided"] = "denoising"
    """By what blocks are valued: the squared error of the network's prediction, or the squared distance of its prediction under the guidance of
    sampling to that of the network before the stage; there what captions do counts more, at twice the calls."""
    evaluation_latents: int = Field(default=64, ge=1, le=1_000_000)
    """So many validation latents value the blocks, or all where there are fewer."""
    evaluation_timesteps: int = Field(default=4, ge=1, le=1000)
    """At so many noise levels each."""

    def quick(self) -> Self:
        """A few steps, large groups and few latents."""
        fewer = {"steps": 12, "steps_between": 2, "most_doubled": 1, "evaluation_latents": 4, "evaluation_timesteps": 2}
        update = {name: min(most, getattr(self, name)) for name, most in fewer.items()}
        return super().quick().model_copy(update={**update, "group": max(self.group, 8)})
