"""What is wrong with a target of text to image, before anything expensive: its latents, what its networks can be taught and judged by."""

from __future__ import annotations

from collections.abc import Sequence

from mcompress.compress.tasks.task import Task
from mcompress.compress.tasks.text_to_image.components import Component
from mcompress.compress.tasks.text_to_image.original import Original
from mcompress.compress.tasks.text_to_image.task import TextToImage
from mcompress.export.manifest_drawing import DECODER, TEXT_ENCODER
from mcompress.export.prompt_files import read_tokenizer
from mcompress.export.prompt_tokens import PromptError
from mcompress.targets.schema import Target
from mcompress.targets.stages import (
    BkSdmSearchConfig,
    ConsistencyDistillConfig,
    EvolveSearchConfig,
    FeatureDistillConfig,
    LikenessConfig,
    PruneConfig,
    QuantizeConfig,
    SearchConfig,
    SlimConfig,
    StepDistillConfig,
    TrainingConfig,
)

REMOVES_BLOCKS = "method evolve or bk_sdm of a search stage, which removes its blocks"
"""What makes a U-Net smaller; its samplers and heads of attention insist on the channels that they were made with."""


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
            instead = "prune" if which == "decoder" else REMOVES_BLOCKS
            problems.append(f"{where}: a picture is made by three networks, and each ships in one width; remove the stage, or use {instead}")
        elif which == "unet" and isinstance(stage, PruneConfig):
            problems.append(f"{where}: channels of a diffusion U-Net are not pruned here; remove the stage, or use {REMOVES_BLOCKS}")
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


def tokenizer_problems(target: Target, task: Task | None) -> list[str]:
    """A tokenizer that the script of the bundle does not follow: it is said before anything is trained, not when the bundle is written."""
    if not isinstance(task, TextToImage) or not {TEXT_ENCODER, DECODER} <= set(target.beside):
        return []
    return token_problems(task.original, task.held_out_pictures.captions)


def token_problems(original: Original, captions: Sequence[str]) -> list[str]:
    """The first of these captions and the empty one of which the bundle's own tokenizer does not give what transformers gives."""
    texts = ["", *captions]
    try:
        tokenizer = read_tokenizer(original.tokenizer_folder)
        found = [tokenizer.tokens(text, original.longest) for text in texts]
    except PromptError as error:
        return [f"the tokenizer cannot be put into a bundle: {error}"]
    for text, ours, expected in zip(texts, found, original.tokens(texts).long().tolist(), strict=True):
        if ours != expected:
            return [
                f"the bundle's tokenizer does not give what transformers gives for '{text}'; save the tokenizer in {original.tokenizer_folder} again "
                "with transformers, as vocab.json and merges.txt"
            ]
    return []
