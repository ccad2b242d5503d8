"""What is wrong with a target of text to image, before anything expensive: its latents, what its networks can be taught and judged by."""

from __future__ import annotations

from mcompress.compress.tasks.text_to_image.components import Component
from mcompress.targets.schema import Target
from mcompress.targets.stages import (
    BkSdmSearchConfig,
    ConsistencyDistillConfig,
    EvolveSearchConfig,
    FeatureDistillConfig,
    LikenessConfig,
    QuantizeConfig,
    SearchConfig,
    SlimConfig,
    StepDistillConfig,
    TrainingConfig,
)


def shape_problems(target: Target, task: Component) -> list[str]:
    """Another size than the original draws: all pictures are made of its whole latents."""
    given, drawn = target.model.input_shape, tuple(task.example()[0].shape)
    if given == drawn:
        return []
    return [
        f"model.input_shape is {list(given)}; the original draws latents of {list(drawn)}, channels, height and width, and pictures are made of "
        f"whole ones: write {list(drawn)}"
    ]


def crop_problems(target: Target, task: Component) -> list[str]:
    """Crops, where nothing is ever cut."""
    if target.model.component == "text_encoder":
        return []  # it is not trained at all
    return [
        f"stages[{index}] ({stage.stage}): crop_size is {stage.crop_size}; latents are never cut, and their side is {task.side}: "
        f"write crop_size: {task.side}"
        for index, stage in enumerate(target.stages)
        if isinstance(stage, TrainingConfig) and stage.crop_size != task.side
    ]


def stage_problems(target: Target) -> list[str]:
    """Stages that cannot be done to the network."""
    which, problems = target.model.component, []
    for index, stage in enumerate(target.stages):
        where = f"stages[{index}] ({stage.stage})"
        if which == "text_encoder" and not isinstance(stage, QuantizeConfig):
            problems.append(
                f"{where}: of the text encoder, which runs once a picture, nothing is trained or removed; it can be quantized: remove the stage"
            )
        elif which == "decoder" and isinstance(stage, SearchConfig | EvolveSearchConfig | BkSdmSearchConfig):
            problems.append(f"{where}: there is no search space of decoders; use prune, which makes it as narrow as you like, and distill behind it")
        elif which == "decoder" and isinstance(stage, StepDistillConfig | ConsistencyDistillConfig):
            problems.append(
                f"{where}: method {stage.method} is for a network that is called again and again, and the decoder is called once; use method online"
            )
        elif which == "decoder" and isinstance(stage, FeatureDistillConfig):
            problems.append(f"{where}: method features compares the stages of diffusion UNets, and the decoder is none; use method online")
        elif isinstance(stage, SearchConfig):
            problems.append(
                f"{where}: method {stage.method} has no search space of U-Nets; use method evolve, which removes and doubles their blocks"
            )
        elif isinstance(stage, SlimConfig):
            problems.append(f"{where}: a picture is made by three networks, and each ships in one width; remove the stage, or prune")
        elif which == "unet" and isinstance(stage, LikenessConfig):
            problems.append(f"{where}: method {stage.method} compares pictures, and a U-Net gives none; use method steps or consistency")
    return problems


def quality_problems(target: Target, task: Component) -> list[str]:
    """A loss against the original where the original is what quality is measured against."""
    floor = target.budget.quality
    if floor is None or floor.within is None or not task.like_the_original:
        return []
    return [
        f"budget.quality.within is {floor.within:g}, a loss against the original; {task.name} is judged by its likeness to what the original itself "
        f"makes, so that has none to lose. Use at_least, the least acceptable {task.metric}"
    ]
