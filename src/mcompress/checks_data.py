"""What is wrong with what a target asks of its data, before anything expensive, and what of them is left out or assumed."""

from __future__ import annotations

from math import ceil

from mcompress import checks_text_to_image
from mcompress.compress.losses import SSIM_WINDOW
from mcompress.compress.tasks.task import Task, expert_of
from mcompress.compress.tasks.text_to_image.components import Component
from mcompress.errors import PlanError
from mcompress.targets.schema import Target
from mcompress.targets.stages import DistillConfig, TrainingConfig


def channel_problems(target: Target, task: Task) -> list[str]:
    """Channels that the data do not have, of text to image latents that the original does not draw."""
    if isinstance(task, Component):
        return checks_text_to_image.shape_problems(target, task)
    shape, channels = target.model.input_shape, task.example()[0].shape[1]
    if shape[1] == channels:
        return []
    return [f"model.input_shape is {list(shape)}, {shape[1]} channels; the data of {task.name} has {channels}: write {[1, channels, *shape[2:]]}"]


def data_problems(target: Target, task: Task) -> list[str]:
    """What the target asks of the data and the data cannot give."""
    floor = target.budget.quality
    if isinstance(task, Component):
        problems = [*checks_text_to_image.crop_problems(target, task), *checks_text_to_image.quality_problems(target, task)]
    else:
        problems = _crop_problems(target, task)
    problems += [
        f"stages[{index}] ({stage.stage}): ssim compares windows of {SSIM_WINDOW} pixels, and crops of crop_size {stage.crop_size} make pictures of "
        f"{stage.crop_size * task.scale}; raise crop_size to {4 * ceil(SSIM_WINDOW / task.scale / 4)}, or set ssim to 0"
        for index, stage in enumerate(target.stages)
        if isinstance(stage, TrainingConfig) and getattr(stage, "ssim", False) and stage.crop_size * task.scale < SSIM_WINDOW
    ]
    if floor is not None and floor.metric != task.metric:
        data = "" if task.paired else ", because data.pairing is unpaired and the original's output is all there is to compare with"
        advice = f"write metric: {task.metric}" if task.paired else f"write metric: {task.metric}, with at_least"
        problems.append(f"budget.quality.metric is '{floor.metric}'; {task.name} measures {task.metric}{data}; {advice}")
    return problems


def _crop_problems(target: Target, task: Task) -> list[str]:
    largest, smallest = task.largest_crop(), task.smallest_crop()
    problems = [
        f"stage {stage.stage}: crop_size is {stage.crop_size}; {task.name} needs at least {smallest}"
        for stage in target.stages
        if isinstance(stage, TrainingConfig) and stage.crop_size < smallest
    ]
    return problems + [
        f"stage {stage.stage}: crop_size is {stage.crop_size}; the largest crop that the training data can give is {largest}"
        for stage in target.stages
        if isinstance(stage, TrainingConfig) and stage.crop_size > largest
    ]


def expert_problems(target: Target, task: Task) -> list[str]:
    """Distillation with a task's expert: there is none, or batches are too small for it."""
    problems = []
    for index, stage in enumerate(target.stages):
        if not isinstance(stage, DistillConfig) or not stage.expert:
            continue
        try:
            expert = expert_of(task, f"stages[{index}] (distill)")
        except PlanError as error:
            problems.extend(error.problems)
            continue
        if stage.batch_size < expert.least_batch:
            problems.append(
                f"stages[{index}] (distill): batch_size is {stage.batch_size}; the expert judges {expert.least_batch} samples together: "
                "give at least as many, or set expert to 0"
            )
    return problems


def folder_problems(target: Target) -> list[str]:
    """One folder to train on and to judge by, however it is written."""
    training, held_out = target.data.training, target.data.held_out
    if training is None or held_out is None or training.resolve() != held_out.resolve():
        return []
    return [
        f"data.held_out is the folder of data.training, '{training.resolve()}': quality is only honest on what was not trained on. Move some of "
        "it to a folder of its own, and give that as data.held_out"
    ]


def pictures_left_out(target: Target, task: Task) -> tuple[str, ...]:
    """Stages whose crops are larger than some training pictures, which they therefore never see: `what: why`."""
    found = []
    for index, stage in enumerate(target.stages):
        if isinstance(stage, TrainingConfig):
            fitting, count = task.count_fitting(stage.crop_size)
            if fitting < count:
                found.append(
                    f"stages[{index}] ({stage.stage}): {count - fitting} of {count} training pictures are smaller than crop_size {stage.crop_size}"
                )
    return tuple(found)


def teacher_out_of_place(target: Target) -> tuple[str, ...]:
    """An embedded original of translation beside other data than those that it was made for: `what: why`."""
    own = target.data.training is not None or target.data.embedded != "objects"
    if target.model.task != "translation" or target.model.teacher.network != "embedded" or not own:
        return ()
    made_for = "the embedded original was made for the embedded objects alone"
    return (f"model.teacher: {made_for}; on these data what it teaches, and what is compared with it, says little. Give an original of your own",)
