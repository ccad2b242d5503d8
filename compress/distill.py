"""The distill stage: the student learns from truth and teacher, with the terms that the target's weights switch on."""

from __future__ import annotations

from typing import cast

from pydantic import JsonValue

from mcompress.compress.objectives import Distillation
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.train import TrainSettings, train
from mcompress.targets.stages import DistillConfig


def distill(config: DistillConfig, context: StageContext) -> StageOutput:
    """Train a copy of the present model; the architecture stays. Raises `TrainingDiverged`."""
    objective = Distillation(context.task, config, context.model, context.teacher, context.seed)
    settings = TrainSettings(
        config.steps, config.learning_rate, context.seed, precision=config.precision, checkpoint_every_s=config.checkpoint_every_s
    )
    trained = train(objective, settings, context.checkpoints("distill"), context.progress("distill: training the student"))
    objective.close()
    details: dict[str, JsonValue] = {"curve": cast("JsonValue", trained.curve), "train_seconds": trained.seconds}
    return StageOutput(context.model.eval(), context.spec, None, (), (), details)
