"""The tasks: what differs between super-resolution, translation, talking face and text to image."""

from __future__ import annotations

from collections.abc import Callable

from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.compress.tasks.task import Task
from mcompress.compress.tasks.text_to_image.loading import component_task
from mcompress.compress.tasks.translation.task import Translation
from mcompress.targets.schema import Target

TASKS: dict[str, Callable[[Target], Task]] = {
    "super_resolution": lambda target: SuperResolution.from_config(target.data),
    "translation": lambda target: Translation.from_config(target.data),
    "talking_face": lambda target: TalkingFace.from_config(target.data, target.model.expert),
    "text_to_image": component_task,
}
ONE_PICTURE = ("super_resolution", "translation")
"""Those whose networks take a picture and nothing else."""


def load_task(target: Target) -> Task:
    """The task of a target with its data read. Raises `PlanError` for unusable data."""
    return TASKS[target.model.task](target)
