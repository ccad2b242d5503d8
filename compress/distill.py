"""The distill stage: the student learns from truth and teacher, or from teachers that keep learning, with the terms that the target switches on."""

from __future__ import annotations

from typing import cast

from pydantic import JsonValue

from mcompress.compress.objectives.adaptive import AdaptiveDistillation
from mcompress.compress.objectives.distillation import Distillation
from mcompress.compress.stage import CompanionNetwork, StageContext, StageOutput
from mcompress.compress.train import TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.schema import Fallback
from mcompress.targets.stages import AdaptiveDistillConfig, DistillConfig, TrainingConfig


def distill(config: DistillConfig, context: StageContext) -> StageOutput:
    """Train a copy of the present model; the architecture stays. Raises `TrainingDiverged`."""
    objective = Distillation(context.task, config, context.model, context.teacher, context.seed)
    trained = train(objective, _settings(config, context), context.checkpoints("distill"), context.progress("distill: training the student"))
    details: dict[str, JsonValue] = {"curve": cast("JsonValue", trained.curve), "train_seconds": trained.seconds}
    return StageOutput(context.model.eval(), context.spec, None, (), (), details)


def distill_adaptively(config: AdaptiveDistillConfig, context: StageContext) -> StageOutput:
    """Train the model and the teachers that a search found together; both go on.

    Raises `TrainingDiverged`, and `PlanError` where nobody teaches, or nothing that a weight is given to.
    """
    original = context.teacher if config.original else None
    learning = context.teachers if config.with_learning_teachers else {}
    if not learning and original is None:
        raise PlanError(
            [
                "stage distill: method adaptive has no teacher, because the search before it found neither a wider nor a deeper network; "
                "set original: true, or raise teacher_cost of the search"
            ]
        )
    if not learning and not (config.output or config.ssim):
        raise PlanError(
            [
                "stage distill: output and ssim are 0, and gram and feature need the discriminator of a teacher that learns, of which there is none: "
                "nothing would be learned. Set output or ssim, or put a search of method semi_supervised before this stage"
            ]
        )
    teachers = {name: one.network for name, one in learning.items()}
    objective = AdaptiveDistillation(context.task, config, context.model, teachers, original)
    trained = train(
        objective,
        _settings(config, context),
        context.checkpoints("distill"),
        context.progress(f"distill: training {'student and teachers' if learning else 'the student'}"),
    )
    details: dict[str, JsonValue] = {
        "curve": cast("JsonValue", trained.curve),
        "train_seconds": trained.seconds,
        "teacher_weights": dict(zip(objective.teachers, objective.quality.weights(), strict=True)),
    }
    after = {name: CompanionNetwork(one.spec, one.network.eval()) for name, one in context.teachers.items()}
    left_out = tuple(Fallback(where="stage distill", what=f"term {name}", reason=reason) for name, reason in objective.left_out.items())
    return StageOutput(context.model.eval(), context.spec, None, (), left_out, details, teachers=after)


def _settings(config: TrainingConfig, context: StageContext) -> TrainSettings:
    return TrainSettings(config.steps, config.learning_rate, context.seed, precision=config.precision, checkpoint_every_s=config.checkpoint_every_s)
