"""`plan(target)`: everything that can be checked before the first expensive step, all problems in one list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

import torch
from pydantic import JsonValue
from torch import nn

from mcompress import checks, checks_data, checks_diffusion, checks_networks, checks_text_to_image
from mcompress.artifact import model_digest
from mcompress.cache import json_digest
from mcompress.compress.attention_layout import NETWORK as HAS_LAYOUTS
from mcompress.compress.attention_layout import fastest_attention, layout_note, layout_of
from mcompress.compress.models.spec import InputSpec, ModelSpec
from mcompress.compress.models.split_attention import split_attention
from mcompress.compress.quantize.given_plan import read_plan
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.tasks import ONE_PICTURE, load_task
from mcompress.compress.tasks.task import Task
from mcompress.compress.teacher import load_network, load_start, load_teacher
from mcompress.compress.widths import slim_problems
from mcompress.environment import cpu_name, package_versions, thread_count
from mcompress.errors import MCompressError, MissingBackendError, PlanError, Problems
from mcompress.export import backend_of
from mcompress.targets.device import Device, Unit
from mcompress.targets.device_files import load_device
from mcompress.targets.reach import floats_on, reached_units, ships_as
from mcompress.targets.schema import Target
from mcompress.targets.speeds import PrecisionName
from mcompress.targets.stages import (
    BkSdmSearchConfig,
    EvolveSearchConfig,
    PruneConfig,
    QuantizeConfig,
    SearchConfig,
    StageConfig,
)

STAGE_VERSIONS = {"search": 9, "prune": 8, "distill": 6, "slim": 2, "quantize": 5, "export": 11, "evaluate": 2, "perform": 3, "draw": 1}
"""Raised by hand when a stage's results change for the same inputs; part of every cache key."""
STAGE_PACKAGES = {
    "search": ("optuna", "accelerate"),
    "prune": ("torch-pruning",),
    "distill": ("accelerate",),
    "slim": ("accelerate",),
    "quantize": ("torchao",),
}
"""What a stage's result depends on besides torch."""
TASK_PACKAGES = {"text_to_image": ("diffusers", "transformers")}
"""The same for all stages of a task."""


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
    given_plan: PrecisionPlan | None = None
    """That of the file which the quantize stage names; None where the stage makes its own."""
    beside: Mapping[str, Plan] = field(default_factory=dict)
    """Networks that go along, each with a plan of its own: of text to image the text encoder and the decoder."""
    layout_note: str = ""
    """Which layout of attention was chosen for the network that is compressed, and why; empty where there is no choice."""

    @property
    def floats(self) -> PrecisionName:
        """What a float network runs as on the unit."""
        return floats_on(self.target.exports, self.device, self.unit)

    @property
    def planned_units(self) -> tuple[str, ...]:
        """The units that the target's files reach, for which precisions are planned."""
        return reached_units(self.target.exports, self.device, self.unit)

    @property
    def ships_as(self) -> PrecisionName:
        """What search and prune cost a network as."""
        return ships_as(self.target, self.device, self.unit)

    @property
    def data_notes(self) -> tuple[str, ...]:
        """Data that cannot be used, or not by every stage, or that were converted, or that the original was not made for: `what: why`."""
        assumed = (*checks_data.teacher_out_of_place(self.target), *checks_networks.colours_assumed(self.target))
        return (*self.task.skipped, *checks_data.pictures_left_out(self.target, self.task), *assumed)

    @cached_property
    def data_digest(self) -> str:
        """Digest of training and held-out data; the truths of unpaired data are the teacher's outputs, so it depends on the teacher as well."""
        return self.task.data_digest if self.task.paired else json_digest({"inputs": self.task.data_digest, "truths": self.teacher_digest})

    @cached_property
    def teacher_digest(self) -> str:
        """Of the teacher's specification and weights."""
        return model_digest(self.teacher_spec, self.teacher.state_dict())

    def key_parts(self, name: str, stage: StageConfig, parent: str) -> dict[str, JsonValue]:
        """What determines a stage's result: the cache key before hashing."""
        parts: dict[str, JsonValue] = {
            "name": name,
            "version": STAGE_VERSIONS[stage.stage],
            "config": stage.model_dump(mode="json", exclude={"checkpoint_every_s", "plan"}),
            "parent": parent,
            "teacher": self.teacher_digest,
            "data": self.data_digest,
            "seed": self.target.seed,
            "threads": thread_count(self.target),
            "torch": torch.__version__,
            "cpu": cpu_name(),
            "packages": {name: package_versions()[name] for name in (*STAGE_PACKAGES[stage.stage], *TASK_PACKAGES.get(self.target.model.task, ()))},
        }
        if isinstance(stage, SearchConfig | EvolveSearchConfig | BkSdmSearchConfig | PruneConfig):  # of BK-SDM, the latencies that it reports
            parts["ships_as"] = self.ships_as
            parts["units"] = [unit.model_dump(mode="json") for unit in self.device.chain(self.unit.name)]
        if isinstance(stage, QuantizeConfig):
            parts["activations"] = stage.activations or self.unit.activations
            parts["units"] = [[unit.model_dump(mode="json") for unit in self.device.chain(name)] for name in self.planned_units]
            if self.given_plan is not None:
                parts["plan"] = json.loads(self.given_plan.to_json())
        if isinstance(stage, SearchConfig | EvolveSearchConfig):
            parts["budget"] = self.target.budget.model_dump(mode="json", exclude={"quality"})
        return parts


def plan(target: Target) -> Plan:
    """Check and resolve a target. Raises `PlanError` with every problem, or `MissingBackendError` when only a package is missing.

    What depends on something that failed is not tried; everything else is, so that one list holds all that there is to mend.
    """
    found = Problems(*checks.order_problems(target))
    missing: list[str] = []
    for export in target.exports:
        try:
            backend_of(export).probe()
        except MissingBackendError as error:
            missing.append(str(error))
    device = found.of(lambda: load_device(target.device))
    unit = found.of(lambda: device.unit(target.unit)) if device else None
    task = found.of(lambda: load_task(target))
    target = _shaped(target, task)
    found.add(*checks_data.folder_problems(target))
    channels = checks_data.channel_problems(target, task) if task else []
    found.add(*channels, *(checks_data.data_problems(target, task) if task else ()), *(checks_data.expert_problems(target, task) if task else ()))
    found.add(*checks_networks.weight_problems(target), *checks.unpaired_problems(target))
    # Where a backend is missing, it is missing for all of them, and said once.
    beside = {} if missing else {name: _beside(target, name, found) for name in target.beside}
    given = _given_plan(target, found)
    impossible = checks_text_to_image.stage_problems(target) if target.model.task == "text_to_image" else []
    found.add(*impossible, *checks_text_to_image.tokenizer_problems(target, task))
    teacher = found.of(lambda: _teacher(target, task), "model.teacher")
    start = found.of(lambda: _start(target, teacher), "model.student")
    start, note = _laid_out(start, target, device, unit)
    if not impossible:
        found.add(*checks.lesson_problems(target, teacher), *slim_problems(target.stages, start[0] if start else None))
        found.add(*(checks.block_problems(target, teacher, start) if teacher and start else ()))
    known = task is not None or target.model.task in ONE_PICTURE  # what networks take
    if teacher and start and known and not channels and not impossible:
        shapes = checks_networks.shape_problems(target, task, teacher, start)
        found.add(*shapes)
        if task and not shapes:
            found.add(*checks_networks.side_problems(target, task, teacher, start), *checks_networks.held_out_problems(target, task, teacher, start))
        if device and unit and not shapes:
            found.add(*checks_networks.int8_problems(target, device, unit), *checks_diffusion.problems(target, task, device, unit, teacher, start))
            found.add(*checks_networks.network_problems(target, device, unit, teacher, start, given))
    if found.found or device is None or unit is None or task is None or teacher is None or start is None:
        raise PlanError([f"target '{target.name}': {problem}" for problem in found.found + missing])
    if missing:
        raise MissingBackendError("\n".join(missing))
    along: dict[str, Plan] = {name: one for name, one in beside.items() if one is not None}  # all of them: nothing was found
    return Plan(target, device, unit, task.taught_by(teacher[1]), *teacher, *start, given, along, note)


def _beside(target: Target, name: Literal["decoder", "text_encoder"], found: Problems) -> Plan | None:
    """The plan of a network that goes along; None for one with problems, of which those are noted that are its own."""
    own = target.of_component(name)
    try:
        return plan(own)
    except PlanError as error:
        problems = [problem.removeprefix(f"target '{own.name}': ") for problem in error.problems]
        found.add(*(f"components.{name}: {problem}" for problem in problems if problem not in found.found))
        return None


def _shaped(target: Target, task: Task | None) -> Target:
    """The target with the shape that its task says whatever the target does: a text encoder takes tokens, not the target's latents."""
    if task is None or target.model.component != "text_encoder":
        return target
    shape = task.input_specs(target.model.input_shape)[0].shape
    return target.model_copy(update={"model": target.model.model_copy(update={"input_shape": shape})})


def _teacher(target: Target, task: Task | None) -> checks.Network | None:
    """The original; None for one that belongs to a task whose data cannot be read, which is a problem already."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(target.seed)  # a user's network may bring weights along that it draws itself
        if task is not None:
            return load_teacher(target.model, task)
        if target.model.teacher.network == "embedded" or target.model.task == "text_to_image":
            return None
        return load_network(target.model.teacher, _picture(target))


def _picture(target: Target) -> tuple[InputSpec, ...]:
    """What networks take of which nothing is known but the target's input shape."""
    return (InputSpec("input", target.model.input_shape, (0.0, 1.0)),)


def _start(target: Target, teacher: checks.Network | None) -> checks.Network | None:
    """What the first stage gets; without a teacher, the student alone, if there is one, for what is wrong with it."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(target.seed)  # a student without a checkpoint starts from weights that the seed decides
        if teacher is not None:
            return load_start(target.model, *teacher)
        return None if target.model.student is None else load_network(target.model.student, _picture(target))


def _laid_out(start: checks.Network | None, target: Target, device: Device | None, unit: Unit | None) -> tuple[checks.Network | None, str]:
    """The same network with attention in the layout that the unit runs fastest, unless the target names one, and a note of that.

    The original stays as it was published.
    """
    if start is None or device is None or unit is None or start[0].network != HAS_LAYOUTS or "attention" in start[0].args:
        return start, ""
    try:
        precision = ships_as(target, device, unit)
        spec, milliseconds = fastest_attention(start[0], device, unit, precision)
    except MCompressError:  # what is wrong with the shapes or the device is found by the checks that follow, and said in their words
        return start, ""
    note = layout_note(spec, milliseconds, f"{device.name} {unit.name} {precision}")
    if layout_of(spec) == "heads":
        split_attention(start[1])  # which is nobody else's: a copy of the original, or the target's student
    return (spec, start[1]), note


def _given_plan(target: Target, found: Problems) -> PrecisionPlan | None:
    """The precision plan that the target names; None where it names none, or one with problems, which are noted."""
    for stage in target.stages:
        if isinstance(stage, QuantizeConfig) and stage.plan is not None:
            return found.of(partial(read_plan, stage.plan))
    return None
