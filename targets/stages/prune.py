"""The prune stage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mcompress.targets.stages.stage import Stage


class PruneConfig(Stage):
    """Remove whole channels, and residual blocks where they may go, the least important per millisecond saved first."""

    stage: Literal["prune"] = "prune"
    method: Literal["dependency_graph"] = "dependency_graph"
    ratio: float | None = Field(default=None, ge=0, lt=1)
    """Share of channels to remove."""
    latency_ratio: float | None = Field(default=None, gt=0, le=1)
    """Stop when the estimated latency is at most this share of what it was."""
    uniform: bool = False
    """Every layer loses the same share of its channels, `ratio` (SnapFusion's decoder has half of them everywhere), instead of the cheapest first."""
    blocks: bool = False
    """Whole residual blocks may go as well, first, as long as they cost less per millisecond than channels; with latency_ratio."""
    round_to: int | None = Field(default=None, ge=1, le=256)
    """Channel counts are kept multiples of this; the device's alignment if left out."""
    importance_batches: int = Field(default=4, ge=1, le=1000)
    """Batches on which the importance of channels and blocks is measured."""

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.ratio is None) == (self.latency_ratio is None):
            raise ValueError("give exactly one goal: ratio or latency_ratio")
        if self.uniform and (self.ratio is None or self.blocks):
            raise ValueError("uniform takes the share ratio from every layer; give ratio, and neither latency_ratio nor blocks")
        if self.blocks and self.latency_ratio is None:
            raise ValueError("blocks needs latency_ratio as the goal: ratio is a share of channels, and a block that goes is none")
        return self

    def quick(self) -> Self:
        """One batch of importance."""
        return self.model_copy(update={"importance_batches": 1})
