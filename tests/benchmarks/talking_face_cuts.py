"""Networks within the cost of the hand-made cut of Wav2Lip: the cut itself, what our search finds, and what our prune stage leaves of the original.

The cost is what the device model estimates for INT8 on Jetson Xavier NX, and the multiply-adds. What was found is kept in a folder, with the weights
that it inherits: a search takes minutes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from comparing_trainings import stage_context
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcompress.compress.candidates import CandidateCost, candidate_cost
from mcompress.compress.cost import operator_table
from mcompress.compress.models.blocks import removable_blocks, without_block
from mcompress.compress.models.build import build, build_meta
from mcompress.compress.models.space import Args
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.models.wav2lip import FACE_CHANNELS, FACE_SIDE, QUARTER_WIDTH, WITHOUT_BLOCKS
from mcompress.compress.prune import prune
from mcompress.compress.search import search
from mcompress.compress.tasks.talking_face.task import TalkingFace
from mcompress.targets.device_files import load_device
from mcompress.targets.schema import Budget, DataConfig
from mcompress.targets.stages import PruneConfig, SupernetSearchConfig

SHAPE = (1, FACE_CHANNELS, FACE_SIDE, FACE_SIDE)
DEVICE, PRECISION = "jetson-xavier-nx", "int8"
HAND_MADE, SEARCHED, PRUNED = "hand-made cut", "search", "prune"
BARE = "original without residual blocks"
SEARCH_BATCH, SEARCH_RATE = 10, 2e-3
STEP = 0.95
"""Where pruning to the latency leaves too many multiply-adds, the latency is lowered by this factor until it does not."""


def cut_args() -> Args:
    """The published cut."""
    layers = {name: list(each) for name, each in (QUARTER_WIDTH | WITHOUT_BLOCKS).items()}
    return {**layers, "output_width": 8}


@cache
def task_of_clips() -> TalkingFace:
    """The task with every training clip drawn, so that no training pays for it."""
    task = TalkingFace.from_config(DataConfig())
    for _ in task.training:
        pass
    return task


def spec_of(args: Args) -> ModelSpec:
    """A generator that takes faces and speech."""
    return ModelSpec.taking(task_of_clips().input_specs(SHAPE), "wav2lip", args)


@dataclass(frozen=True)
class Start:
    """A network before it is trained: its form, and the weights that it inherits, if any."""

    spec: ModelSpec
    weights: Mapping[str, Tensor] | None = None

    def fresh(self, seed: int) -> nn.Module:
        """With random weights; in evaluation mode, as stages give networks on."""
        torch.manual_seed(seed)
        return build(self.spec).eval()

    def inherited(self, seed: int) -> nn.Module:
        """With the weights that it inherits, random ones where there are none."""
        made = self.fresh(seed)
        if self.weights is not None:
            made.load_state_dict(self.weights)
        return made


def start_of(network: str, seed: int, work: Path) -> Start:
    """One of the names above; what has to be found was found before (`find`)."""
    if network == HAND_MADE:
        return Start(spec_of(cut_args()))
    if network == BARE:
        spec, model = without_blocks()
        return Start(spec, model.state_dict())
    kept_spec, weights = _files(network, seed, work)
    return Start(ModelSpec.from_json(kept_spec.read_text(encoding="utf-8")), load_file(weights))


def without_blocks() -> tuple[ModelSpec, nn.Module]:
    """The embedded original without any residual block, which is what the target for Jetson Xavier NX prunes it to."""
    spec, model = task_of_clips().embedded_teacher(SHAPE)
    while left := removable_blocks(spec, model):
        spec, model = without_block(spec, model, next(iter(left)))
    return spec, model


def cost_of(spec: ModelSpec) -> CandidateCost:
    """What a network costs on the device."""
    device = load_device(DEVICE)
    return candidate_cost(spec, device, device.units[device.preferred_unit], PRECISION)


def row_of(network: str, seed: int, spec: ModelSpec, seconds: float) -> dict[str, object]:
    """A network with what it costs, and what finding it took, processor time of one thread."""
    table, cost = operator_table(build_meta(spec), *spec.input_shapes), cost_of(spec)
    return {
        "network": network,
        "seed": seed,
        "args": spec.args,
        "edits": len(spec.edits),
        "params": table.params,
        "macs": table.macs,
        "latency_ms": round(cost.latency.value, 4),
        "seconds": round(seconds, 1),
    }


def within_cut() -> Budget:
    """The latency and the multiply-adds of the hand-made cut."""
    cost = cost_of(spec_of(cut_args()))
    return Budget(latency_ms=cost.latency.value, macs_g=cost.macs / 1e9)


def find(work: Path, search_steps: int, trials: int, wanted: tuple[str, int]) -> dict[str, object]:
    """Find the network of this name and seed, keep it in `work`, and say what it is."""
    torch.set_num_threads(1)
    network, seed = wanted
    spec_file, weights = _files(network, seed, work)
    task_of_clips()
    started = time.process_time()
    finder: dict[str, Callable[[], tuple[ModelSpec, nn.Module]]] = {
        SEARCHED: lambda: _searched(search_steps, trials, seed),
        PRUNED: lambda: _pruned(seed),
    }
    spec, made = finder[network]()
    seconds = time.process_time() - started
    work.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, weights)
    spec_file.write_text(spec.to_json(), encoding="utf-8")
    return row_of(network, seed, spec, seconds)


def kept(network: str, seed: int, work: Path) -> bool:
    """Whether it was found before."""
    return all(path.exists() for path in _files(network, seed, work))


def _files(network: str, seed: int, work: Path) -> tuple[Path, Path]:
    return work / f"{network}-{seed}.json", work / f"{network}-{seed}.safetensors"


def _searched(steps: int, trials: int, seed: int) -> tuple[ModelSpec, nn.Module]:
    task = task_of_clips()
    with tempfile.TemporaryDirectory() as folder:
        context = stage_context(task, DEVICE, within_cut(), task.embedded_teacher(SHAPE), seed, Path(folder))
        config = SupernetSearchConfig(
            space="wav2lip", steps=steps, trials=trials, batch_size=SEARCH_BATCH, crop_size=FACE_SIDE, learning_rate=SEARCH_RATE
        )
        found = search(config, context)
    return found.spec, found.model


def _pruned(seed: int) -> tuple[ModelSpec, nn.Module]:
    """The embedded original without its least important channels, as many as are over the cut's latency or multiply-adds."""
    task, budget = task_of_clips(), within_cut()
    spec, original = task.embedded_teacher(SHAPE)
    assert budget.latency_ms is not None
    latency_ratio = min(1.0, budget.latency_ms / cost_of(spec).latency.value)
    while True:
        context = stage_context(task, DEVICE, budget, task.embedded_teacher(SHAPE), seed, Path())
        found = prune(PruneConfig(latency_ratio=latency_ratio, blocks=True), replace(context, teacher=original.eval()))
        if not cost_of(found.spec).exceeded(budget):
            return found.spec, found.model
        if any(fallback.what == "goal not reached" for fallback in found.fallbacks):
            raise SystemExit(f"the prune stage does not reach the hand-made cut's cost: {found.fallbacks[-1].reason}")
        latency_ratio *= STEP
