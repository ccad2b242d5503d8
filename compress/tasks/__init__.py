"""The tasks: what differs between super-resolution, translation, talking face and text to image."""

from __future__ import annotations

from collections.abc import Callable

from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.compress.tasks.task import Task
from mcompress.compress.tasks.translation.task import Translation
from mcompress.targets.schema import DataConfig, Target

TASKS: dict[str, Callable[[DataConfig], Task]] = {
    "super_resolution": SuperResolution.from_config,
    "translation": Translation.from_config,
    "talking_face": TalkingFace.from_config,
}


def load_task(target: Target) -> Task:
    """The task of a target with its data read. Raises `PlanError` for unusable data."""
    return TASKS[target.model.task](target.data)
