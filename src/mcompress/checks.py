"""What is wrong with a target, before anything expensive: a function per subject gives its problems as text. `planning.plan` asks them all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from math import ceil

import torch
from torch import Tensor, nn

from mcompress.compress.candidates import smallest_cost, space_of, spec_of
from mcompress.compress.cost import FP32_BYTES, operator_table
from mcompress.compress.losses import SSIM_WINDOW
from mcompress.compress.models.blocks import block_problem
from mcompress.compress.models.build import FAILURES, build_meta
from mcompress.compress.models.space import SearchSpace
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.quantize.given_plan import check_plan
from mcompress.compress.quantize.plan import PrecisionPlan
from mcompress.compress.quantize.program import export_program, graph_of
from mcompress.compress.tasks.task import Task, expert_of
from mcompress.errors import MCompressError, PlanError, StageError, UsageError
from mcompress.targets.device import Device, Unit
from mcompress.targets.reach import reached_units, ships_as
from mcompress.targets.schema import Target
from mcompress.targets.stages import (
    AdaptiveDistillConfig,
    DistillConfig,
    LikenessConfig,
    PruneConfig,
    QuantizeConfig,
    SearchConfig,
    SemiSupervisedSearchConfig,
    TrainingConfig,
)

Network = tuple[ModelSpec, nn.Module]

ORDER = {"search": 0, "prune": 1, "distill": 1, "slim": 2, "quantize": 3}
"""Search comes first because it makes a new network, slim behind what changes the widest one, quantize last because it fixes what the numbers are."""

LEARNS_FROM_THE_ORIGINAL = {
    "search": "Use method supernet, which learns from the original",
    "distill": "Use method online, which learns from the original",
}
"""What to do on data without pairs instead of what learns from labelled ones."""


def order_problems(target: Target) -> list[str]:
    """Stages that stand in the wrong order, or too often, or beside what does their work."""
    kinds = [stage.stage for stage in target.stages]
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
    if target.model.student is not None and "search" in kinds:
        problems.append("model.student and a search stage exclude each other: the search makes the student; remove one of them")
    return problems


def lesson_problems(target: Target, teacher: Network | None) -> list[str]:
    """Adaptive distillation that nobody teaches."""
    problems = []
    for index, stage in enumerate(target.stages):
        if not isinstance(stage, AdaptiveDistillConfig) or stage.original:
            continue
        where = f"stages[{index}].method is adaptive, and it has no teacher"
        search = next((before for before in target.stages[:index] if isinstance(before, SemiSupervisedSearchConfig)), None)
        if search is None:
            problems.append(f"{where}; put a search of method semi_supervised before it, or set original: true")
            continue
        space = _space(search, teacher)
        if space is not None and not space.larger:
            problems.append(f"{where}: the search space of '{space.network}' has no networks larger than its students; set original: true")
    return problems


def block_problems(target: Target, teacher: Network, start: Network) -> list[str]:
    """Residual blocks that are to be removed where it is not known which can go, or behind what fixes their names."""
    problems = []
    for index, stage in enumerate(target.stages):
        if not isinstance(stage, PruneConfig) or not stage.blocks:
            continue
        where = f"stages[{index}].blocks is true, and"
        if any(isinstance(before, PruneConfig) for before in target.stages[:index]):
            problems.append(f"{where} a prune stage stands before it, whose edits name layers that would move; set blocks in the first prune stage")
        reasons = [block_problem(spec) for spec, _ in _students(target, teacher, start)]
        problems += [f"{where} {reason}; or set it to false" for reason in reasons if reason]
    return problems


def _space(search: SearchConfig, teacher: Network | None) -> SearchSpace | None:
    """None for a search without one, which is a problem of its own, or of an original that is not known."""
    try:
        return None if teacher is None else space_of(search, teacher[0])
    except PlanError:
        return None


def weight_problems(target: Target) -> list[str]:
    """A network of ours is nothing without weights; a user's own may bring them along."""
    teacher = target.model.teacher
    if teacher.network == "embedded" or ":" in teacher.network or teacher.checkpoint is not None:
        return []
    return [f"model.teacher.network is '{teacher.network}' without a checkpoint: random weights teach nothing; give model.teacher.checkpoint"]


def unpaired_problems(target: Target) -> list[str]:
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


def channel_problems(target: Target, task: Task) -> list[str]:
    """Channels that the data do not have."""
    shape, channels = target.model.input_shape, _pair(task)[0].shape[1]
    if shape[1] == channels:
        return []
    return [f"model.input_shape is {list(shape)}, {shape[1]} channels; the data of {task.name} has {channels}: write {[1, channels, *shape[2:]]}"]


def _pair(task: Task) -> tuple[Tensor, Tensor]:
    """One small training input and a real picture as large as its truth is, for their shapes."""
    side, generator = min(task.smallest_crop(), task.largest_crop()), torch.Generator().manual_seed(0)
    return task.unlabelled_batch(1, side, generator)[0], task.domain_batch(1, side, generator)


def data_problems(target: Target, task: Task) -> list[str]:
    """What the target asks of the data and the data cannot give."""
    largest, floor = task.largest_crop(), target.budget.quality
    smallest = task.smallest_crop()
    problems = [
        f"stage {stage.stage}: crop_size is {stage.crop_size}; {task.name} needs at least {smallest}"
        for stage in target.stages
        if isinstance(stage, TrainingConfig) and stage.crop_size < smallest
    ]
    problems += [
        f"stage {stage.stage}: crop_size is {stage.crop_size}; the largest crop that the training data can give is {largest}"
        for stage in target.stages
        if isinstance(stage, TrainingConfig) and stage.crop_size > largest
    ]
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


def int8_problems(target: Target, device: Device, unit: Unit) -> list[str]:
    """A quantize stage for units that run no INT8."""
    index = next((i for i, stage in enumerate(target.stages) if isinstance(stage, QuantizeConfig)), None)
    if index is None:
        return []
    without = [name for name in reached_units(target.exports, device, unit) if not any("int8" in one.runs for one in device.chain(name))]
    if not without:
        return []
    runs = ", ".join(device.units[without[0]].runs)
    return [
        f"stages[{index}] (quantize): the {' and '.join(without)} of {device.name} runs {runs} and no INT8; remove the stage, which leaves float "
        "files, or take another device or unit"
    ]


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
        if not any(isinstance(stage, PruneConfig) for stage in target.stages):
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
    for spec, network in (teacher, *_students(target, teacher, start)):
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
    yield from _students(target, teacher, start)


def _students(target: Target, teacher: Network, start: Network) -> Iterator[Network]:
    """The network that is compressed; of a search, the smallest that it may find."""
    search = next((one for one in target.stages if isinstance(one, SearchConfig)), None)
    if search is None:
        yield start
        return
    space = _space(search, teacher)
    if space is not None:
        spec = spec_of(space, space.smallest, teacher[0])
        yield spec, build_meta(spec)


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
