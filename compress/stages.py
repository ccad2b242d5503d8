"""`STAGES`, the whole registry of stages: configuration type -> function."""

from __future__ import annotations

from collections.abc import Callable

from mcompress.compress.bk_sdm import remove_as_bk_sdm
from mcompress.compress.distill import distill, distill_adaptively
from mcompress.compress.evolving import evolve
from mcompress.compress.feature_distillation import distill_features
from mcompress.compress.prune import prune
from mcompress.compress.quantize.ptq import quantize
from mcompress.compress.search import search
from mcompress.compress.slim import slim
from mcompress.compress.stage import StageOutput
from mcompress.compress.step_distillation import distill_consistency, distill_steps
from mcompress.targets.stages import (
    AdaptiveDistillConfig,
    BkSdmSearchConfig,
    ConsistencyDistillConfig,
    DistillConfig,
    EvolveSearchConfig,
    FeatureDistillConfig,
    PruneConfig,
    QuantizeConfig,
    SemiSupervisedSearchConfig,
    SlimConfig,
    Stage,
    StepDistillConfig,
    SupernetSearchConfig,
)

STAGES: dict[type[Stage], Callable[..., StageOutput]] = {
    SupernetSearchConfig: search,
    SemiSupervisedSearchConfig: search,
    EvolveSearchConfig: evolve,
    BkSdmSearchConfig: remove_as_bk_sdm,
    PruneConfig: prune,
    DistillConfig: distill,
    AdaptiveDistillConfig: distill_adaptively,
    StepDistillConfig: distill_steps,
    ConsistencyDistillConfig: distill_consistency,
    FeatureDistillConfig: distill_features,
    SlimConfig: slim,
    QuantizeConfig: quantize,
}
