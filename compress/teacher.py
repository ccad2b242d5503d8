"""The two networks that a run starts from: the original (teacher), and where compression starts when nothing is searched (student)."""

from __future__ import annotations

import copy
from pathlib import Path

from pydantic import JsonValue
from torch import nn

from mcompress.compress.models.build import build
from mcompress.compress.models.checkpoint import load_weights, read_state_dict
from mcompress.compress.models.checkpoint_names import args_of
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.tasks.task import Task
from mcompress.errors import CheckpointError
from mcompress.targets.schema import ModelConfig, NetworkConfig, TeacherConfig


def load_teacher(config: ModelConfig, task: Task) -> tuple[ModelSpec, nn.Module]:
    """The original in evaluation mode. Raises `CheckpointError` or `PlanError`."""
    if config.teacher.network == "embedded" or config.task == "text_to_image":  # where the original is part of the task
        spec, network = task.embedded_teacher(config.input_shape)
        return spec, network.eval()
    return load_network(config.teacher, task.input_specs(config.input_shape))


def load_start(config: ModelConfig, teacher_spec: ModelSpec, teacher: nn.Module) -> tuple[ModelSpec, nn.Module]:
    """The network that the first stage gets: the target's student, or a copy of the teacher."""
    if config.student is None:
        return teacher_spec, copy.deepcopy(teacher)
    return load_network(config.student, teacher_spec.inputs)


def load_network(config: TeacherConfig | NetworkConfig, inputs: tuple[InputSpec, ...]) -> tuple[ModelSpec, nn.Module]:
    """A network that takes `inputs`, by name with its weights, in evaluation mode; without args, those that its checkpoint tells (`args_of`).

    Raises `CheckpointError` or `PlanError`.
    """
    args = config.args or _told(config.network, config.checkpoint)
    spec = ModelSpec.taking(inputs, config.network, dict(args))
    network = build(spec)
    if config.checkpoint is not None:
        load_weights(network, config.checkpoint, config.network, colour_order=config.colour_order)
    return spec, network.eval()


def _told(network: str, checkpoint: Path | None) -> dict[str, JsonValue]:
    """The arguments that a checkpoint tells; none where there is no checkpoint, or it does not tell them."""
    if checkpoint is None:
        return {}
    weights = read_state_dict(checkpoint)
    try:
        return args_of(network, weights) or {}
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
