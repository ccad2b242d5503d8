"""The distill stage, method `features`: a diffusion UNet with fewer blocks learns from its original stage by stage (BK-SDM)."""

from __future__ import annotations

from typing import cast

from pydantic import JsonValue

from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.stable_diffusion import GUIDANCE
from mcompress.compress.models.unet_blocks import NETWORK
from mcompress.compress.objectives.feature_matching import FeatureLosses, FeatureMatching, PredictingUnet, feature_shapes
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.diffusing import Diffusion
from mcompress.compress.train import TrainSettings, train
from mcompress.errors import PlanError
from mcompress.targets.stages import FeatureDistillConfig

WHERE = "stage distill: method features"


def distill_features(config: FeatureDistillConfig, context: StageContext) -> StageOutput:
    """Train the present model; its layout, and how it is sampled, stay.

    Raises `PlanError` for what is no diffusion UNet or whose stages have other widths than the original's, `TrainingDiverged`.
    """
    data, sampling, of_original = context.task.diffusion(), context.spec.sampling, context.teacher_spec.sampling
    problems = feature_problems(config, data, context.teacher_spec, context.spec)
    if problems or data is None or sampling is None or of_original is None:
        raise PlanError(problems)
    objective = FeatureMatching(
        PredictingUnet(context.model, sampling.prediction),
        PredictingUnet(context.teacher, of_original.prediction),
        data,
        FeatureLosses(config.batch_size, config.task, config.output, config.features),
    )
    settings = TrainSettings(
        config.steps, config.learning_rate, context.seed, precision=config.precision, checkpoint_every_s=config.checkpoint_every_s
    )
    trained = train(objective, settings, context.checkpoints("distill"), context.progress("distill: training the student stage by stage"))
    details: dict[str, JsonValue] = {"curve": cast("JsonValue", trained.curve), "train_seconds": trained.seconds}
    return StageOutput(context.model.eval(), context.spec, None, (), (), details)


def feature_problems(
    config: FeatureDistillConfig, data: Diffusion | None, original: ModelSpec, present: ModelSpec, *, pruned: bool = False
) -> list[str]:
    """Why the network, with these data, cannot learn from the original stage by stage; what is known before anything is trained.

    `pruned`: channels go before the stage, of which `present` does not tell yet.
    """
    if data is None:
        return [f"{WHERE} is for diffusion networks, and the task has none; use method online, which distils networks of one call"]
    others = [f"the {what} is '{spec.network}'" for what, spec in (("original", original), ("network", present)) if spec.network != NETWORK]
    if others:
        return [f"{WHERE} compares the stages of two networks '{NETWORK}', and {' and '.join(others)}; use another method, or remove the stage"]
    problems = []
    for what, spec in (("original", original), ("network", present)):
        if spec.sampling is None:
            problems.append(f"{WHERE} must know what the {what} predicts, and its specification has no `sampling`")
        if any(one.name == GUIDANCE for one in spec.further_inputs):
            problems.append(f"{WHERE}: the {what} takes the scale of guidance as an input; distil features before guidance becomes an input")
    if problems or not config.features:
        return problems
    if pruned:
        return [
            f"{WHERE} compares features of the original's widths, and a prune stage before it leaves other ones; put it before the prune stage, or "
            "set features: 0"
        ]
    return _width_problems(original, present)


def _width_problems(original: ModelSpec, present: ModelSpec) -> list[str]:
    unlike = [
        f"{name} has {_shown(ours)}, the original's {_shown(theirs)}" for name, ours, theirs in feature_shapes(present, original) if ours != theirs
    ]
    if not unlike:
        return []
    return [
        f"{WHERE} compares features of stages that correspond, and their sizes differ: {'; '.join(unlike)}. Set features: 0, or take a network of "
        "the original's widths"
    ]


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
