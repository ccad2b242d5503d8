"""What is wrong with a target's networks, alone, on its device and on its data: weights, shapes, sides, cost, INT8, precision plans."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn

from mcompress.checks import Network, students
from mcompress.compress.candidates import smallest_cost
from mcompress.compress.cost import FP32_BYTES, operator_table
from mcompress.compress.models.build import FAILURES, build_meta
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.given_plan import check_plan
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.tasks.task import Task
from mcompress.errors import MCompressError, PlanError, StageError, UsageError
from mcompress.targets.device import Device, Unit
from mcompress.targets.reach import reached_units, ships_as
from mcompress.targets.schema import Target
from mcompress.targets.stages import (
    BkSdmSearchConfig,
    DistillConfig,
    EvolveSearchConfig,
    PruneConfig,
    QuantizeConfig,
    SearchConfig,
    SemiSupervisedSearchConfig,
    TrainingConfig,
)


def weight_problems(target: Target) -> list[str]:
    """A network of ours is nothing without weights; a user's own may bring them along."""
    teacher = target.model.teacher
    if target.model.task == "text_to_image":
        return []  # its original is a whole folder, which its task reads
    if teacher.network == "embedded" or ":" in teacher.network or teacher.checkpoint is not None:
        return []
    return [f"model.teacher.network is '{teacher.network}' without a checkpoint: random weights teach nothing; give model.teacher.checkpoint"]


def colours_assumed(target: Target) -> tuple[str, ...]:
    """Checkpoints of talking faces that nobody says the order of colours of: `what: why`."""
    given = {"model.teacher": target.model.teacher, "model.student": target.model.student, "model.expert": target.model.expert}
    return tuple(
        f"{place}: its checkpoint is taken as one that was trained on RGB pictures; Wav2Lip's public ones were trained on BGR: say colour_order"
        for place, config in given.items()
        if config is not None
        and config.network in ("wav2lip", "syncnet")
        and config.checkpoint is not None
        and "colour_order" not in config.model_fields_set
    )


def int8_problems(target: Target, device: Device, unit: Unit) -> list[str]:
    """A quantize stage for units that run no INT8."""
    index = next((i for i, stage in enumerate(target.stages) if isinstance(stage, QuantizeConfig)), None)
    if index is None:
        return []
    advice = {
        "unet": "remove the stage, which leaves float files, or take another device or unit",
        "decoder": "give the decoder stages without it, which leaves float files, or take another device or unit",
        "text_encoder": "take another device or unit, for a text encoder has no other stage",
    }[target.model.component]
    return [
        f"stages[{index}] (quantize): the {name} of {device.name} runs {', '.join(device.units[name].runs)} and no INT8; {advice}"
        for name in reached_units(target.exports, device, unit)
        if not any("int8" in one.runs for one in device.chain(name))
    ]


def network_problems(target: Target, device: Device, unit: Unit, teacher: Network, start: Network, given: PrecisionPlan | None) -> list[str]:
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
            program = export_program(start[1], *(torch.zeros(shape) for shape in start[0].input_shapes))
            if given is not None:  # what comes before the stage changes weights and channels, not operators
                check_plan(given, graph_of(program))
        except MCompressError as error:
            problems.append(str(error))
        if not any(isinstance(stage, PruneConfig | EvolveSearchConfig | BkSdmSearchConfig) for stage in target.stages):
            problems.extend(_fixed_cost_problems(target, start))
    return problems


def _fixed_cost_problems(target: Target, start: Network) -> list[str]:
    """Limits that are missed already, where no stage changes the architecture."""
    (spec, network), budget = start, target.budget
    table = operator_table(network, *spec.input_shapes)
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


def shape_problems(target: Target, task: Task | None, teacher: Network, start: Network) -> list[str]:
    """Networks that do not run on the input shape, or whose output is not what the task's data (without it, the teacher) has for such an input."""
    shape, by = target.model.input_shape, ""
    wanted: tuple[int, ...] | None = None
    if task is not None and len(shape) == 4:
        low, high = (pair.shape for pair in task.example())
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


def side_problems(target: Target, task: Task, teacher: Network, start: Network) -> list[str]:
    """Networks that do not run on the squares that a stage gives them: its crops, and those that it validates on."""
    problems = []
    for index, stage in enumerate(target.stages):
        if not isinstance(stage, TrainingConfig):
            continue
        for (spec, network), (what, side) in product(_who_sees(stage, target, task, teacher, start), _squares(stage, task)):
            shape = (1, target.model.input_shape[1], side, side)
            try:
                _output_shape(spec, network, shape)
            except (UsageError, *FAILURES) as error:
                problems.append(f"stages[{index}] ({stage.stage}): the network '{spec.network}' does not run on {what}: {error}")
    return list(dict.fromkeys(problems))


def held_out_problems(target: Target, task: Task, teacher: Network, start: Network) -> list[str]:
    """Networks that do not run on whole held-out pictures, as quality is measured."""
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, size in task.held_out_sizes.items():
        by_size.setdefault(size, []).append(name)
    problems = []
    for spec, network in (teacher, *students(target, teacher, start)):
        failing: dict[str, str] = {}
        for size, names in by_size.items():
            try:
                _output_shape(spec, network, (1, target.model.input_shape[1], *size))
            except (UsageError, *FAILURES) as error:
                failing |= dict.fromkeys(names, str(error))
        if failing:
            first, reason = next(iter(failing.items()))
            count = f"{len(failing)} of {len(task.held_out_sizes)} held-out pictures"
            problems.append(f"data.held_out: the network '{spec.network}' does not run on {count}, for example '{first}': {reason}")
    return list(dict.fromkeys(problems))


def _squares(stage: TrainingConfig, task: Task) -> Iterator[tuple[str, int]]:
    yield f"crops of crop_size {stage.crop_size}", stage.crop_size
    if not isinstance(stage, DistillConfig):  # the one stage that trains without validating
        yield f"the squares of {task.validation_side} pixels that the data are validated on", task.validation_side


def _who_sees(stage: TrainingConfig, target: Target, task: Task, teacher: Network, start: Network) -> Iterator[Network]:
    """The networks that a training stage runs on its crops."""
    asks = not isinstance(stage, SemiSupervisedSearchConfig) and getattr(stage, "original", True)
    if asks or not task.paired:
        yield teacher
    yield from students(target, teacher, start)


@torch.no_grad()
def _output_shape(spec: ModelSpec, network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the network's output for a picture of `shape`, without computing it where that is possible."""
    shapes = (shape, *(one.shape for one in spec.further_inputs))
    try:
        with torch.device("meta"):
            made = build_meta(spec).eval()(*(torch.zeros(one, device="meta") for one in shapes))
    except (PlanError, *FAILURES):  # its code needs numbers, or something is truly wrong, which is raised again here
        made = network(*map(torch.zeros, shapes))
    if not isinstance(made, Tensor):
        raise TypeError(f"its output is a {type(made).__name__}; it must be one tensor")
    return tuple(made.shape)
