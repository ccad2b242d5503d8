"""The two networks that a run starts from: the original (teacher), and where compression starts when nothing is searched (student)."""

from __future__ import annotations

import copy

from torch import nn

from mcompress.compress.models.build import build
from mcompress.compress.models.checkpoint import load_weights, read_state_dict
from mcompress.compress.models.checkpoint_names import args_of
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.tasks.task import Task
from mcompress.targets.schema import ModelConfig, NetworkConfig, TeacherConfig


def load_teacher(config: ModelConfig, task: Task) -> tuple[ModelSpec, nn.Module]:
    """The original in evaluation mode. Raises `CheckpointError` or `PlanError`."""
    if config.teacher.network == "embedded":
        spec, network = task.embedded_teacher(config.input_shape)
        return spec, network.eval()
    return load_network(config.teacher, config.input_shape, task.input_range)


def load_start(config: ModelConfig, teacher_spec: ModelSpec, teacher: nn.Module) -> tuple[ModelSpec, nn.Module]:
    """The network that the first stage gets: the target's student, or a copy of the teacher."""
    if config.student is None:
        return teacher_spec, copy.deepcopy(teacher)
    return load_network(config.student, config.input_shape, teacher_spec.input_range)


def load_network(
    config: TeacherConfig | NetworkConfig, input_shape: tuple[int, ...], input_range: tuple[float, float] = (0.0, 1.0)
) -> tuple[ModelSpec, nn.Module]:
    """A network by name with its weights, in evaluation mode; without args, those that its checkpoint tells (`args_of`).

    Raises `CheckpointError` or `PlanError`.
    """
    args = dict(config.args)
    if config.checkpoint is not None and not args and (told := args_of(config.network, read_state_dict(config.checkpoint))) is not None:
        args = told
    spec = ModelSpec(config.network, args, (), input_shape, input_range)
    network = build(spec)
    if config.checkpoint is not None:
        load_weights(network, config.checkpoint, config.network)
    return spec, network.eval()
