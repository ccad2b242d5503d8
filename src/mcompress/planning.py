"""`plan(target)`: everything that can be checked before the first expensive step, all problems in one list."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise

import torch
from pydantic import JsonValue
from torch import nn

from mcompress.artifact import model_digest
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.program import export_program
from mcompress.compress.search import smallest_cost
from mcompress.compress.tasks import load_task
from mcompress.compress.tasks.task import Task
from mcompress.compress.teacher import load_start, load_teacher
from mcompress.errors import MCompressError, MissingBackendError, PlanError
from mcompress.export import backend_of
from mcompress.export.profile import cpu_name
from mcompress.targets.device import Device, Unit, load_device
from mcompress.targets.schema import Target
from mcompress.targets.stages import DistillConfig, PruneConfig, SearchConfig, StageConfig, TrainingConfig

STAGE_VERSIONS = {"search": 1, "prune": 1, "distill": 1, "quantize": 1, "export": 1, "evaluate": 1}
"""Raised by hand when a stage's results change for the same inputs; part of every cache key."""
ORDER = {"search": 0, "prune": 1, "distill": 1, "quantize": 2}
"""Search comes first because it makes a new network, quantize last because it fixes what the numbers are."""


@dataclass(frozen=True)
class Plan:
    """A target with everything that was resolved for it."""

    target: Target
    device: Device
    unit: Unit
    task: Task
    teacher_spec: ModelSpec
    teacher: nn.Module
    start_spec: ModelSpec
    start: nn.Module

    @property
    def data_digest(self) -> str:
        """Digest of training and held-out data."""
        return self.task.data_digest

    def stage_names(self) -> tuple[str, ...]:
        """Folder name per stage: its kind, numbered from the second of a kind on."""
        kinds = [stage.stage for stage in self.target.stages]
        return tuple(kind if kinds[: i + 1].count(kind) == 1 else f"{kind}{kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds))

    def key_parts(self, name: str, stage: StageConfig, parent: str) -> dict[str, JsonValue]:
        """What determines a stage's result: the cache key before hashing."""
        parts: dict[str, JsonValue] = {
            "name": name,
            "version": STAGE_VERSIONS[stage.stage],
            "config": stage.model_dump(mode="json", exclude={"checkpoint_every_s"}),
            "parent": parent,
            "teacher": model_digest(self.teacher_spec, self.teacher.state_dict()),
            "data": self.data_digest,
            "seed": self.target.seed,
            "threads": thread_count(self.target),
            "torch": torch.__version__,
            "cpu": cpu_name(),
        }
        if isinstance(stage, SearchConfig | PruneConfig):
            parts["unit"] = self.unit.model_dump(mode="json")
        if isinstance(stage, SearchConfig):
            parts["budget"] = self.target.budget.model_dump(mode="json", exclude={"quality"})
        return parts


def plan(target: Target) -> Plan:
    """Check and resolve a target. Raises `PlanError` with every problem, or `MissingBackendError` when only a package is missing."""
    problems: list[str] = _order_problems(target.stages)
    missing: list[str] = []
    for export in target.exports:
        try:
            backend_of(export).probe()
        except MissingBackendError as error:
            missing.append(str(error))
    device = load_device(target.device)
    unit = device.unit(target.unit)
    task = load_task(target)
    problems.extend(
        f"stage {stage.stage}: crop_size is {stage.crop_size}; the largest crop that the training data can give is {task.largest_crop()}"
        for stage in target.stages
        if isinstance(stage, TrainingConfig) and stage.crop_size > task.largest_crop()
    )
    if target.model.student is not None and any(isinstance(stage, SearchConfig) for stage in target.stages):
        problems.append("model.student and a search stage exclude each other: the search makes the student; remove one of them")
    floor = target.budget.quality
    if floor is not None and floor.metric != task.metric:
        problems.append(f"budget.quality.metric is '{floor.metric}'; {task.name} measures {task.metric}")
    if problems:
        raise PlanError([f"target '{target.name}': {problem}" for problem in problems + missing])
    if missing:
        raise MissingBackendError("\n".join(missing))
    teacher_spec, teacher = load_teacher(target.model, task)
    start_spec, start = load_start(target.model, teacher_spec, teacher)
    made = Plan(target, device, unit, task, teacher_spec, teacher, start_spec, start)
    problems = _network_problems(made)
    if problems:
        raise PlanError([f"target '{target.name}': {problem}" for problem in problems])
    return made


def _order_problems(stages: tuple[StageConfig, ...]) -> list[str]:
    kinds = [stage.stage for stage in stages]
    problems = [
        f"stages: '{second}' stands behind '{first}'; the order is search, then prune and distill as you like, then quantize"
        for first, second in pairwise(kinds)
        if ORDER[second] < ORDER[first]
    ]
    problems += [
        f"stages: '{kind}' stands {kinds.count(kind)} times; once is all it can do" for kind in ("search", "quantize") if kinds.count(kind) > 1
    ]
    return problems


def _network_problems(made: Plan) -> list[str]:
    """A budget that no candidate can meet, and a network that no backend could take."""
    target, problems = made.target, []
    searches = [stage for stage in target.stages if isinstance(stage, SearchConfig)]
    for stage in searches:
        try:
            cost = smallest_cost(stage, made.teacher_spec, made.device, made.unit)
        except PlanError as error:
            problems.extend(error.problems)
            continue
        limits = {"latency_ms": (cost.latency.value, "ms"), "macs_g": (cost.macs / 1e9, "GMACs")}
        limits |= {"peak_memory_mb": (cost.peak_memory_mb, "MB"), "size_mb": (cost.size_mb, "MB")}
        for name, by in cost.over_budget(target.budget):
            if by > 0:
                value, unit = limits[name]
                problems.append(
                    f"budget.{name} is {getattr(target.budget, name):g}; the smallest network of the search space needs {value:.3g} {unit} "
                    f"on {made.device.name} {made.unit.name}. Raise the limit or lower model.input_shape"
                )
    if not searches:
        try:
            export_program(made.start, torch.zeros(target.model.input_shape))
        except MCompressError as error:
            problems.append(str(error))
        if any(isinstance(stage, DistillConfig) for stage in target.stages):
            problems.extend(_shape_problems(made))
    return problems


def _shape_problems(made: Plan) -> list[str]:
    example = torch.zeros(made.target.model.input_shape)
    with torch.no_grad():
        teacher, student = made.teacher(example).shape, made.start(example).shape
    if teacher == student:
        return []
    return [f"the student's output is {tuple(student)} and the teacher's {tuple(teacher)} for an input of {tuple(example.shape)}; they must be equal"]


PACKAGES = (
    "mcompress", "torch", "torch-pruning", "torchao", "optuna", "numpy", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert",
    "ai-edge-quantizer", "executorch", "coremltools",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Installed versions of what decides results."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def thread_count(target: Target) -> int:
    """Threads to use: the target's, but not more than there are processors."""
    return min(target.threads, os.cpu_count() or 1)
