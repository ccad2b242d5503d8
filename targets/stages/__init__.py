"""One configuration class per stage and method. The order in a target file is the order of execution."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, JsonValue

from mcompress.targets.stages.bk_sdm import BkSdmSearchConfig, FeatureDistillConfig
from mcompress.targets.stages.distill import AdaptiveDistillConfig, DistillConfig
from mcompress.targets.stages.evolve import EvolveSearchConfig
from mcompress.targets.stages.likeness import LikenessConfig
from mcompress.targets.stages.prune import PruneConfig
from mcompress.targets.stages.quantize import QuantizeConfig
from mcompress.targets.stages.search import SearchConfig, SemiSupervisedSearchConfig, SupernetSearchConfig
from mcompress.targets.stages.slim import SlimConfig, width_name
from mcompress.targets.stages.stage import Stage, Weight
from mcompress.targets.stages.steps import ConsistencyDistillConfig, StepDistillConfig
from mcompress.targets.stages.training import LearningConfig, TaughtConfig, TrainingConfig

__all__ = [
    "AdaptiveDistillConfig",
    "BkSdmSearchConfig",
    "ConsistencyDistillConfig",
    "DistillConfig",
    "EvolveSearchConfig",
    "FeatureDistillConfig",
    "LearningConfig",
    "LikenessConfig",
    "PruneConfig",
    "QuantizeConfig",
    "SearchConfig",
    "SemiSupervisedSearchConfig",
    "SlimConfig",
    "Stage",
    "StageConfig",
    "StepDistillConfig",
    "SupernetSearchConfig",
    "TaughtConfig",
    "TrainingConfig",
    "Weight",
    "width_name",
]

DEFAULT_METHODS = {"search": "supernet", "distill": "online"}
"""Of the stages with several methods, the one that a target means which names none."""


def _with_method(value: JsonValue) -> JsonValue:
    """Pydantic looks for the method before it knows any default."""
    if isinstance(value, dict) and value.get("stage") in DEFAULT_METHODS and "method" not in value:
        return {**value, "method": DEFAULT_METHODS[str(value["stage"])]}
    return value


Search = Annotated[SupernetSearchConfig | SemiSupervisedSearchConfig | EvolveSearchConfig | BkSdmSearchConfig, Field(discriminator="method")]
Distill = Annotated[
    DistillConfig | AdaptiveDistillConfig | StepDistillConfig | ConsistencyDistillConfig | FeatureDistillConfig, Field(discriminator="method")
]
StageConfig = Annotated[
    Search | PruneConfig | Distill | SlimConfig | QuantizeConfig,
    Field(discriminator="stage"),
    BeforeValidator(_with_method),
]
