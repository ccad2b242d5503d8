"""Residual blocks that pruning removes: what is left computes what the network computes where the block passes its input on."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mcompress.compress.cost import operator_table
from mcompress.compress.models.blocks import moved_up, removable_blocks, without_block
from mcompress.compress.models.build import build, build_meta, example_inputs
from mcompress.compress.models.spec import InputSpec, ModelSpec, PruningEdit
from mcompress.compress.models.wav2lip import WITHOUT_BLOCKS
from mcompress.compress.prune import prune
from mcompress.compress.prune_blocks import without_rows
from mcompress.compress.prune_loss import PruningLoss
from mcompress.compress.stage import StageContext, StageOutput
from mcompress.compress.tasks.task import Task
from mcompress.errors import PlanError
from mcompress.planning import plan
from mcompress.reports.details import read_details
from mcompress.reports.html import write_report
from mcompress.targets.device_files import load_device
from mcompress.targets.load import load_target
from mcompress.targets.operators import Operator, OperatorTable
from mcompress.targets.stages import PruneConfig

FACES = (InputSpec("face", (1, 6, 96, 96), (0.0, 1.0)), InputSpec("audio", (1, 1, 80, 16), (-4.0, 4.0)))
PICTURE = (InputSpec("input", (1, 3, 32, 32), (-1.0, 1.0)),)
NARROW = {
    "face_widths": [2, 2, 4, 4, 8, 8],
    "audio_widths": [2, 2, 4, 4, 8],
    "decoder_widths": [8, 8, 8, 8, 4, 4, 4],
    "output_width": 4,
}
SPECS = {
    "wav2lip": ModelSpec.taking(FACES, "wav2lip", {**NARROW, "face_blocks": "2_3_2_2_1"}),
    "resnet_generator": ModelSpec.taking(PICTURE, "resnet_generator", {"features": 4}),
    "separable": ModelSpec.taking(
        PICTURE, "resnet_generator", {"features": 4, "depths": [1, 2, 3], "convolutions": "separable", "normalization": "batch"}
    ),
}
WIDE = ModelSpec.taking(PICTURE, "resnet_generator", {"features": 8})
"""Its blocks have 32 channels inside, of which the phone's alignment lets 16 go."""
BLOCKS = {"wav2lip": 28, "resnet_generator": 9, "separable": 6}
ONE_BATCH = PruneConfig(latency_ratio=0.8, blocks=True, importance_batches=1)
TARGET = """\
name: t
device: snapdragon865
model: {input_shape: [1, 3, 32, 32], student: {network: imdn}}
stages: [{stage: prune, latency_ratio: 0.9}, {stage: prune, latency_ratio: 0.9, blocks: true}]
exports: [{backend: onnx}]
"""


def lively(spec: ModelSpec) -> nn.Module:
    """With weights, biases and statistics of batch normalization of its own in every layer."""
    torch.manual_seed(0)
    network = build(spec).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def bypassed(network: nn.Module, blocks: list[str]) -> nn.Module:
    copied = copy.deepcopy(network)
    for block in blocks:
        sequence, _, place = block.rpartition(".")
        copied.get_submodule(sequence)[int(place)] = nn.Identity()
    return copied


@torch.no_grad()
def computed(network: nn.Module, spec: ModelSpec) -> Tensor:
    return network(*example_inputs(spec))


@pytest.mark.parametrize("name", SPECS)
def test_without_a_block_is_the_network_whose_block_passes_its_input_on(name: str) -> None:
    spec = SPECS[name]
    network = lively(spec)
    blocks = removable_blocks(spec, network)
    whole = computed(network, spec)
    assert len(blocks) == BLOCKS[name]
    for block in blocks:
        shorter, left = without_block(spec, network, block)
        made = computed(left, spec)
        assert torch.allclose(made, computed(bypassed(network, [block]), spec), atol=1e-6)
        assert not torch.allclose(made, whole, atol=1e-4)
        assert len(removable_blocks(shorter, left)) == len(blocks) - 1
        again = build(ModelSpec.from_json(shorter.to_json())).eval()
        again.load_state_dict(left.state_dict())
        assert torch.equal(computed(again, spec), made)
    assert torch.equal(computed(network, spec), whole)


@pytest.mark.parametrize("name", SPECS)
def test_the_table_without_a_blocks_rows_is_that_of_the_network_without_the_block(name: str) -> None:
    spec = SPECS[name]
    network, shapes = build_meta(spec), spec.input_shapes
    table = operator_table(network, *shapes)
    called = {block: block for block in removable_blocks(spec, network)}
    for block, at_first in called.items():
        assert rows_of(without_rows(table, at_first)) == rows_of(operator_table(without_block(spec, network, block)[1], *shapes))
    while called:
        block = list(called)[len(called) // 2]
        table = without_rows(table, called[block])
        spec, network = without_block(spec, network, block)
        called = {moved: at_first for one, at_first in called.items() if (moved := moved_up(one, block)) is not None}
        assert rows_of(table) == rows_of(operator_table(network, *shapes))


def rows_of(table: OperatorTable) -> list[Operator]:
    """What latency is estimated from: all but names, and how much memory is needed at a time."""
    return [replace(row, name="", live_elements=0) for row in table.operators]


def test_wav2lip_without_any_is_the_published_intermediate_step() -> None:
    spec = ModelSpec.taking(FACES, "wav2lip", {})
    network = build_meta(spec)
    assert sum(one.numel() for one in network.parameters()) == 36_298_035
    while blocks := removable_blocks(spec, network):
        spec, network = without_block(spec, network, next(iter(blocks)))
    assert sum(one.numel() for one in network.parameters()) == 20_061_555
    assert spec.args == {name: list(none) for name, none in WITHOUT_BLOCKS.items()}


def test_what_stands_behind_a_block_moves_up_and_nothing_else_does() -> None:
    names = ["groups.1.1.conv1.weight", "groups.1.10.norm1", "groups.1.2", "groups.10.3.conv1", "head.conv", "groups.1"]
    assert [moved_up(name, "groups.1.2") for name in names] == [names[0], "groups.1.9.norm1", None, *names[3:]]


class AgainstOriginal:
    """A task whose truth is the original's output, so that whatever a removal changes is a loss."""

    paired = False

    def __init__(self, task: Task) -> None:
        self.task = task

    def __getattr__(self, name: str) -> object:
        return getattr(self.task, name)


@pytest.fixture
def make(make_context: Callable[..., StageContext], pairs: Task) -> Callable[..., StageContext]:
    """A context, by default on a device where every layer has a fixed cost. Blocks in `free` add nothing, so removing them changes nothing."""

    def made(spec: ModelSpec, free: tuple[str, ...] = (), *, device_name: str = "jetson-xavier-nx") -> StageContext:
        network, device = lively(spec), load_device(device_name)
        with torch.no_grad():
            for block in free:
                for parameter in network.get_submodule(f"{block}.conv2").parameters():
                    parameter.zero_()
        context = replace(make_context(spec), device=device, unit=device.unit(None), task=AgainstOriginal(pairs))
        return replace(context, model=network, teacher=copy.deepcopy(network))

    return made


@pytest.fixture
def on_phone(make: Callable[..., StageContext]) -> Callable[..., StageContext]:
    """On a processor where narrow layers are fast, a network of which half the inner channels of every block do nothing."""

    def made(free: tuple[str, ...] = ()) -> StageContext:
        context = make(WIDE, free, device_name="snapdragon865")
        with torch.no_grad():
            for block in removable_blocks(context.spec, context.model):
                context.model.get_submodule(f"{block}.conv2").weight[:, ::2] = 0.0
        return replace(context, unit=context.device.unit("cpu"), teacher=copy.deepcopy(context.model))

    return made


def removed_by(output: StageOutput) -> dict[str, dict[str, float]]:
    found = output.details["blocks"]
    assert isinstance(found, list)
    return {one["block"]: one for one in found}


def test_blocks_that_add_nothing_go_first_and_are_called_as_at_first(make) -> None:
    free, ratio = ("groups.1.0", "groups.1.1"), 0.9
    context = make(SPECS["resnet_generator"], free)
    output = prune(ONE_BATCH.model_copy(update={"latency_ratio": ratio}), context)
    removed = removed_by(output)
    assert len(removed) >= 2
    assert set(removed) <= set(free)
    assert all(one["loss_increase"] == 0 and one["saved_ms"] > 0 for one in removed.values())
    assert output.details["after"]["latency_ms"] <= ratio * output.details["before"]["latency_ms"]
    assert output.spec.edits == ()
    assert torch.allclose(computed(output.model, context.spec), computed(context.teacher, context.spec), atol=1e-6)


def test_where_channels_cannot_reach_the_goal_the_cheapest_blocks_go_and_the_numbers_are_measured(make) -> None:
    context = make(SPECS["resnet_generator"])
    original = context.teacher
    output = prune(ONE_BATCH, context)
    removed = removed_by(output)
    assert output.fallbacks == ()
    assert output.details["blocks_before"] == 9
    assert output.details["after"]["latency_ms"] <= 0.8 * output.details["before"]["latency_ms"]
    loss, gone = PruningLoss(ONE_BATCH, context), []
    for block, found in removed.items():
        before = loss.of(bypassed(original, gone))
        rises = {one: loss.of(bypassed(original, [*gone, one])) - before for one in removable_blocks(context.spec, original) if one not in gone}
        assert found["loss_increase"] == pytest.approx(rises[block], abs=1e-6)
        assert max(rises[block], 0) <= max(min(rises.values()), 0) + 1e-6  # all blocks of this network save the same
        gone.append(block)
    assert len(gone) >= 2
    channels_alone = prune(ONE_BATCH.model_copy(update={"blocks": False}), replace(context, model=copy.deepcopy(original)))
    assert "goal not reached" in {one.what for one in channels_alone.fallbacks}


def test_blocks_that_cost_more_than_channels_stay(on_phone) -> None:
    context = on_phone()
    config = ONE_BATCH.model_copy(update={"latency_ratio": 0.95})
    plain = prune(config.model_copy(update={"blocks": False}), replace(context, model=copy.deepcopy(context.model)))
    output = prune(config, context)
    assert output.details["blocks"] == []
    assert output.spec == plain.spec
    assert output.details["layers"] == plain.details["layers"] != []


def test_channels_go_on_top_and_spec_and_weights_rebuild_both(on_phone) -> None:
    context = on_phone(("groups.1.0",))
    output = prune(ONE_BATCH.model_copy(update={"latency_ratio": 0.88}), context)
    assert set(removed_by(output)) == {"groups.1.0"}
    assert output.spec.args == {**context.spec.args, "depths": [3, 2, 3]}
    assert output.spec.edits
    again = build(ModelSpec.from_json(output.spec.to_json())).eval()
    again.load_state_dict(output.model.state_dict())
    assert torch.equal(computed(again, context.spec), computed(output.model, context.spec))
    assert {layer["module"] for layer in output.details["layers"]} <= {name for name, _ in again.named_modules()}


def test_a_network_that_has_no_blocks_is_said(make) -> None:
    context = make(SPECS["resnet_generator"])
    spec = replace(context.spec, args={"features": 4, "depths": [0, 0, 0]})
    output = prune(ONE_BATCH.model_copy(update={"latency_ratio": 0.99}), replace(context, spec=spec, model=lively(spec)))
    assert [one.reason for one in output.fallbacks if one.what == "blocks"] == [
        "the network 'resnet_generator' has no residual blocks left with these arguments; only channels were removed"
    ]


def test_unpaired_data_measure_against_the_original(make) -> None:
    context = make(SPECS["resnet_generator"])
    loss = PruningLoss(ONE_BATCH, context)
    assert loss.of(context.model) == 0.0
    assert loss.of(bypassed(context.model, ["groups.0.0"])) > 1e-4


def test_a_network_that_was_pruned_is_refused() -> None:
    spec = SPECS["resnet_generator"].with_edits((PruningEdit("head.conv", True, (0,)),))
    with pytest.raises(PlanError, match="was pruned already, and its 1 edits name layers that would move; remove blocks first"):
        removable_blocks(spec, build(spec))


def test_a_share_of_channels_is_no_goal_for_blocks() -> None:
    with pytest.raises(ValidationError, match="blocks needs latency_ratio as the goal"):
        PruneConfig(ratio=0.2, blocks=True)


def test_what_cannot_be_is_refused_when_planning(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TARGET, encoding="utf-8")
    with pytest.raises(PlanError) as refused:
        plan(load_target(path))
    why = "of the network 'imdn' it is not known which blocks can be left out; networks of which it is: wav2lip, resnet_generator; or set it to false"
    before = "a prune stage stands before it, whose edits name layers that would move; set blocks in the first prune stage"
    assert [line.partition("blocks is true, and ")[2] for line in str(refused.value).splitlines()] == [before, why]


def test_the_report_lists_the_blocks(run_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    path = folder / "stages" / "prune" / "details.json"
    details = json.loads(path.read_text())
    details |= {"blocks": [{"block": "groups.1.0", "loss_increase": 0.0123, "saved_ms": 0.5}], "blocks_before": 9}
    path.write_text(json.dumps(details))
    assert read_details(path.parent).blocks[0].block == "groups.1.0"
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "<code>groups.1.0</code>" in page
    assert "1 of 9 were removed" in page
    assert "+0.012" in page
