"""The tasks: what differs between super-resolution, translation, talking face and text to image."""

from __future__ import annotations

from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.tasks.task import Task
from mcompress.targets.schema import Target

TASKS = {"super_resolution": SuperResolution}


def load_task(target: Target) -> Task:
    """The task of a target with its data read. Raises `PlanError` for unusable data."""
    return TASKS[target.model.task].from_config(target.data)
