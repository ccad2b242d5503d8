"""`STAGES`, the whole registry of stages: configuration type -> function."""

from __future__ import annotations

from collections.abc import Callable

from mcompress.compress.distill import distill, distill_adaptively
from mcompress.compress.prune import prune
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.search import search
from mcompress.compress.slim import slim
from mcompress.compress.stage import StageOutput
from mcompress.targets.stages import (
    AdaptiveDistillConfig,
    DistillConfig,
    PruneConfig,
    QuantizeConfig,
    SemiSupervisedSearchConfig,
    SlimConfig,
    Stage,
    SupernetSearchConfig,
)

STAGES: dict[type[Stage], Callable[..., StageOutput]] = {
    SupernetSearchConfig: search,
    SemiSupervisedSearchConfig: search,
    PruneConfig: prune,
    DistillConfig: distill,
    AdaptiveDistillConfig: distill_adaptively,
    SlimConfig: slim,
    QuantizeConfig: quantize,
}
