"""`plan(target)`: everything that can be checked before the first expensive step, all problems in one list."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.artifact import model_digest
from mcompress.cache import json_digest
from mcompress.compress.candidates import smallest_cost
from mcompress.compress.cost import FP32_BYTES, operator_table
from mcompress.compress.models.build import FAILURES, build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.given_plan import check_plan, read_plan
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.tasks import load_task
from mcompress.compress.tasks.task import Task
from mcompress.compress.teacher import load_network, load_start, load_teacher
from mcompress.compress.widths import slim_problems
from mcompress.environment import cpu_name, package_versions, thread_count
from mcompress.errors import MCompressError, MissingBackendError, PlanError, StageError, TargetError, UsageError
from mcompress.export import backend_of
from mcompress.targets.device import Device, Unit
from mcompress.targets.device_files import load_device
from mcompress.targets.reach import floats_on, reached_units
from mcompress.targets.schema import SMALLEST_SIDE, Target
from mcompress.targets.speeds import PrecisionName
from mcompress.targets.stages import (
    DistillConfig,
    LikenessConfig,
    PruneConfig,
    QuantizeConfig,
    SearchConfig,
    StageConfig,
    TrainingConfig,
)

STAGE_VERSIONS = {"search": 4, "prune": 5, "distill": 3, "slim": 1, "quantize": 4, "export": 8, "evaluate": 1}
"""Raised by hand when a stage's results change for the same inputs; part of every cache key."""
STAGE_PACKAGES = {
    "search": ("optuna", "accelerate"),
    "prune": ("torch-pruning",),
    "distill": ("accelerate",),
    "slim": ("accelerate",),
    "quantize": ("torchao",),
}
"""What a stage's result depends on besides torch."""
ORDER = {"search": 0, "prune": 1, "distill": 1, "slim": 2, "quantize": 3}
"""Search comes first because it makes a new network, slim behind what changes the widest one, quantize last because it fixes what the numbers are."""

LEARNS_FROM_THE_ORIGINAL = {
    "search": "Use method supernet, which learns from the original",
    "distill": "Use method online, which learns from the original",
}
"""What to do on data without pairs instead of what learns from labelled ones."""


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
            "packages": {name: package_versions()[name] for name in STAGE_PACKAGES[stage.stage]},
        }
        if isinstance(stage, SearchConfig | PruneConfig):
            parts["ships_as"] = self.ships_as
            parts["units"] = [unit.model_dump(mode="json") for unit in self.device.chain(self.unit.name)]
        if isinstance(stage, QuantizeConfig):
            parts["units"] = [[unit.model_dump(mode="json") for unit in self.device.chain(name)] for name in self.planned_units]
            if self.given_plan is not None:
                parts["plan"] = json.loads(self.given_plan.to_json())
        if isinstance(stage, SearchConfig):
            parts["budget"] = self.target.budget.model_dump(mode="json", exclude={"quality"})
        return parts


def ships_as(target: Target, device: Device, unit: Unit) -> PrecisionName:
    """What search and prune cost a network as: `int8` with a quantize stage behind them, otherwise what float files hold."""
    return "int8" if any(isinstance(stage, QuantizeConfig) for stage in target.stages) else floats_on(target.exports, device, unit)


def plan(target: Target) -> Plan:
    """Check and resolve a target. Raises `PlanError` with every problem, or `MissingBackendError` when only a package is missing.

    What depends on something that failed is not tried; everything else is, so that one list holds all that there is to mend.
    """
    found = _Problems(_order_problems(target.stages))
    missing: list[str] = []
    for export in target.exports:
        try:
            backend_of(export).probe()
        except MissingBackendError as error:
            missing.append(str(error))
    if target.model.student is not None and any(isinstance(stage, SearchConfig) for stage in target.stages):
        found.add("model.student and a search stage exclude each other: the search makes the student; remove one of them")
    device = found.of(lambda: load_device(target.device))
    unit = found.of(lambda: device.unit(target.unit)) if device else None
    task = found.of(lambda: load_task(target))
    channels = _channel_problems(target, task) if task else []
    found.add(*channels, *(_data_problems(target, task) if task else ()))
    found.add(*_weight_problems(target), *_unpaired_problems(target))
    given = _given_plan(target, found)
    teacher = found.of(lambda: _teacher(target, task))
    start = found.of(lambda: _start(target, *teacher)) if teacher else None
    found.add(*slim_problems(target.stages, start[0] if start else None, paired=target.data.pairing != "unpaired"))
    if teacher and start and not channels:
        shapes = _shape_problems(target, task, teacher, start)
        found.add(*shapes)
        if device and unit and not shapes:
            found.add(*_network_problems(target, device, unit, teacher, start, given))
    if found.problems or device is None or unit is None or task is None or teacher is None or start is None:
        raise PlanError([f"target '{target.name}': {problem}" for problem in found.problems + missing])
    if missing:
        raise MissingBackendError("\n".join(missing))
    return Plan(target, device, unit, task.taught_by(teacher[1]), *teacher, *start, given)


Part = TypeVar("Part")
Network = tuple[ModelSpec, nn.Module]


class _Problems:
    """Collects what is wrong."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def add(self, *problems: str) -> None:
        self.problems.extend(problems)

    def of(self, make: Callable[[], Part]) -> Part | None:
        """What `make` gives; None when it fails, with its problems noted."""
        try:
            return make()
        except (TargetError, PlanError) as error:
            self.problems.extend(error.problems)
        except (UsageError, StageError) as error:
            self.problems.append(str(error))
        return None


def _teacher(target: Target, task: Task | None) -> Network | None:
    """The original; None for one that belongs to a task whose data cannot be read, which is a problem already."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(target.seed)  # a user's network may bring weights along that it draws itself
        if task is not None:
            return load_teacher(target.model, task)
        if target.model.teacher.network == "embedded":
            return None
        return load_network(target.model.teacher, target.model.input_shape)


def _weight_problems(target: Target) -> list[str]:
    """A network of ours is nothing without weights; a user's own may bring them along."""
    teacher = target.model.teacher
    if teacher.network == "embedded" or ":" in teacher.network or teacher.checkpoint is not None:
        return []
    return [f"model.teacher.network is '{teacher.network}' without a checkpoint: random weights teach nothing; give model.teacher.checkpoint"]


def _start(target: Target, teacher_spec: ModelSpec, teacher: nn.Module) -> Network:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(target.seed)  # a student without a checkpoint starts from weights that the seed decides
        return load_start(target.model, teacher_spec, teacher)


def _unpaired_problems(target: Target) -> list[str]:
    """What needs the true output of an input, where no input has one."""
    if target.data.pairing != "unpaired":
        return []
    problems = []
    for index, stage in enumerate(target.stages):
        if isinstance(stage, LikenessConfig):
            problems.append(
                f"stages[{index}].method is {stage.method}, which learns from labelled pairs, and data.pairing is unpaired: no input has a target. "
                f"{LEARNS_FROM_THE_ORIGINAL.get(stage.stage, 'Remove the stage')}, or give aligned pairs (data.pairing: aligned)"
            )
        elif isinstance(stage, DistillConfig) and stage.truth:
            problems.append(
                f"stages[{index}].truth is {stage.truth:g}{'' if 'truth' in stage.model_fields_set else ', its default'}; it compares with targets, "
                f"which unpaired data do not have. Set truth: 0 and a weight of output, or give aligned pairs (data.pairing: aligned)"
            )
    floor = target.budget.quality
    if floor is not None and floor.within is not None:
        problems.append(
            f"budget.quality.within is {floor.within:g}, a loss against the original; with unpaired data the original is what quality is measured "
            "against, so it has none to lose. Use at_least, the least acceptable likeness to it in dB"
        )
    return problems


def _channel_problems(target: Target, task: Task) -> list[str]:
    shape, channels = target.model.input_shape, _pair(task)[0].shape[1]
    if shape[1] == channels:
        return []
    return [f"model.input_shape is {list(shape)}, {shape[1]} channels; the data of {task.name} has {channels}: write {[1, channels, *shape[2:]]}"]


def _pair(task: Task) -> tuple[Tensor, Tensor]:
    """One small training input and a real picture as large as its truth is, for their shapes."""
    side, generator = min(SMALLEST_SIDE, task.largest_crop()), torch.Generator().manual_seed(0)
    return task.unlabelled_batch(1, side, generator), task.domain_batch(1, side, generator)


def _data_problems(target: Target, task: Task) -> list[str]:
    """What the target asks of the data and the data cannot give."""
    largest, floor = task.largest_crop(), target.budget.quality
    problems = [
        f"stage {stage.stage}: crop_size is {stage.crop_size}; the largest crop that the training data can give is {largest}"
        for stage in target.stages
        if isinstance(stage, TrainingConfig) and stage.crop_size > largest
    ]
    if floor is not None and floor.metric != task.metric:
        data = "" if task.paired else ", because data.pairing is unpaired and the original's output is all there is to compare with"
        advice = f"write metric: {task.metric}" if task.paired else f"write metric: {task.metric}, with at_least"
        problems.append(f"budget.quality.metric is '{floor.metric}'; {task.name} measures {task.metric}{data}; {advice}")
    return problems


def _order_problems(stages: tuple[StageConfig, ...]) -> list[str]:
    kinds = [stage.stage for stage in stages]
    problems = [
        f"stages: '{second}' stands behind '{first}'; the order is search, then prune and distill as you like, then slim, then quantize"
        for first, second in pairwise(kinds)
        if ORDER[second] < ORDER[first]
    ]
    problems += [
        f"stages: '{kind}' stands {kinds.count(kind)} times; once is all it can do"
        for kind in ("search", "slim", "quantize")
        if kinds.count(kind) > 1
    ]
    return problems


def _given_plan(target: Target, found: _Problems) -> PrecisionPlan | None:
    """The precision plan that the target names; None where it names none, or one with problems, which are noted."""
    for stage in target.stages:
        if isinstance(stage, QuantizeConfig) and stage.plan is not None:
            return found.of(partial(read_plan, stage.plan))
    return None


def _network_problems(target: Target, device: Device, unit: Unit, teacher: Network, start: Network, given: PrecisionPlan | None) -> list[str]:
    """A budget that no candidate can meet, and a network that no backend could take."""
    problems: list[str] = []
    searches = [stage for stage in target.stages if isinstance(stage, SearchConfig)]
    for stage in searches:
        try:
            cost = smallest_cost(stage, teacher[0], device, unit, ships_as(target, device, unit))
        except (PlanError, StageError) as error:
            problems.append(str(error))
            continue
        limits = {"latency_ms": (cost.latency.value, f"ms ({cost.latency.how}, {cost.latency.band})"), "macs_g": (cost.macs / 1e9, "GMACs")}
        limits |= {"peak_memory_mb": (cost.peak_memory_mb, "MB"), "size_mb": (cost.size_mb, "MB")}
        for name in cost.exceeded(target.budget):
            value, written_unit = limits[name]
            problems.append(
                f"budget.{name} is {getattr(target.budget, name):g}; the smallest network of the search space needs {value:.3g} {written_unit} "
                f"on {device.name} {unit.name}. Raise the limit or lower model.input_shape"
            )
    if not searches:
        try:
            program = export_program(start[1], torch.zeros(target.model.input_shape))
            if given is not None:  # what comes before the stage changes weights and channels, not operators
                check_plan(given, graph_of(program))
        except MCompressError as error:
            problems.append(str(error))
        if not any(isinstance(stage, PruneConfig) for stage in target.stages):
            problems.extend(_fixed_cost_problems(target, start[1]))
    return problems


def _fixed_cost_problems(target: Target, network: nn.Module) -> list[str]:
    """Limits that are missed already, where no stage changes the architecture."""
    table, budget = operator_table(network, target.model.input_shape), target.budget
    costs = (
        ("macs_g", table.macs / 1e9, budget.macs_g, "GMACs"),
        ("peak_memory_mb", table.peak_activation_elements * FP32_BYTES / 1e6, budget.peak_memory_mb, "MB in fp32"),
    )
    return [
        f"budget.{name} is {limit:g}; the network needs {value:.3g} {unit}, and no stage of this target changes its architecture. "
        "Raise the limit, lower model.input_shape, or add a search or prune stage"
        for name, value, limit, unit in costs
        if limit is not None and value > limit
    ]


def _shape_problems(target: Target, task: Task | None, teacher: Network, start: Network) -> list[str]:
    """Networks that do not run on the input shape, or whose output is not what the task's data (without it, the teacher) has for such an input."""
    shape, by = target.model.input_shape, ""
    wanted: tuple[int, ...] | None = None
    if task is not None:
        low, high = (pair.shape for pair in _pair(task))
        wanted, by = (shape[0], high[1], shape[2] * high[2] // low[2], shape[3] * high[3] // low[3]), f"{task.name} needs"
    problems = []
    networks = {"teacher": teacher} if target.model.student is None else {"teacher": teacher, "student": start}
    for who, (spec, network) in networks.items():
        try:
            made = _output_shape(spec, network, shape)
        except (UsageError, *FAILURES) as error:
            problems.append(f"the {who}, network '{spec.network}', does not run on an input of {list(shape)}: {error}")
            continue
        if wanted is None:
            wanted, by = made, "the teacher's is"
        elif made != wanted:
            problems.append(f"the {who}'s output is {list(made)} for an input of {list(shape)}; {by} {list(wanted)}")
    return problems


@torch.no_grad()
def _output_shape(spec: ModelSpec, network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the network's output, without computing it where that is possible."""
    try:
        with torch.device("meta"):
            made = build_meta(spec).eval()(torch.zeros(shape, device="meta"))
    except (PlanError, *FAILURES):  # its code needs numbers, or something is truly wrong, which is raised again here
        made = network(torch.zeros(shape))
    if not isinstance(made, Tensor):
        raise TypeError(f"its output is a {type(made).__name__}; it must be one tensor")
    return tuple(made.shape)
