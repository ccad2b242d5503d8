"""How the small teachers that ship with mcompress are made (`embedded_network` reads them).

    python -m mcompress.compress.tasks.super_resolution.teacher --out FOLDER
    python -m mcompress.compress.tasks.translation.teacher --out FOLDER
    python -m mcompress.compress.tasks.talking_face.teacher --out FOLDER

train a teacher on a task's embedded data and write `teacher.safetensors` (fp16) and `teacher.json`, which records the command, the seed, the data
digest, the torch version and the held-out quality. A training that was stopped continues from `checkpoint.pt` in the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import safetensors.torch
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.build import build
from mcompress.compress.models.spec import ModelSpec
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.tasks.task import Task
from mcompress.compress.train import Progress, TrainSettings, train
from mcompress.targets.stages import TrainingConfig

WARMUP_STEPS, AVERAGE = 200, 0.999
EVERY_STEPS = 500


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is made: its network, how it starts, how it is trained, which part stays as it starts; `facts` go into its record."""

    package: str
    model: str
    args: dict[str, JsonValue]
    training: TrainingConfig
    facts: dict[str, JsonValue]
    start: Callable[[nn.Module], None] | None = None
    fixed: str = ""


def make_teacher(task: Task, recipe: TeacherRecipe, seed: int, folder: Path) -> None:
    """Train, round to fp16, evaluate, write; continues from `folder/checkpoint.pt` if it exists."""
    torch.manual_seed(seed)
    network, config = build(ModelSpec(recipe.model, recipe.args)), recipe.training
    if recipe.start is not None:
        recipe.start(network)
    settings = TrainSettings(config.steps, config.learning_rate, seed, WARMUP_STEPS, AVERAGE, precision=config.precision)
    result = train(FitTruth(task, config, network, fixed=recipe.fixed), settings, FileCheckpoints(folder / "checkpoint.pt"), lines_on_stderr())
    half = rounded(network)
    record: dict[str, JsonValue] = {
        "model": recipe.model,
        "args": recipe.args,
        "command": f"python -m {recipe.package}.teacher --steps {config.steps} --seed {seed} --precision {config.precision}",
        **recipe.facts,
        "torch": torch.__version__,
        "train_seconds": round(result.seconds),
        f"held_out_{task.metric}": cast("JsonValue", held_out_quality(task, network)),
    }
    write_teacher(folder, half, record)


def write_teacher(folder: Path, weights: Mapping[str, Tensor], record: Mapping[str, JsonValue], stem: str = "teacher") -> None:
    """Write `teacher.safetensors` and `teacher.json` into `folder`, or under another name."""
    safetensors.torch.save_file({name: value.contiguous() for name, value in weights.items()}, folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def rounded(network: nn.Module) -> dict[str, Tensor]:
    """The weights in fp16, to which the network's own are rounded."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    network.load_state_dict(half)
    return half


def lines_on_stderr() -> Progress:
    """A line every few hundred steps."""
    started = time.monotonic()

    def progress(done: int, total: int, note: str) -> None:
        if done % EVERY_STEPS == 0:
            sys.stderr.write(f"{done}/{total} {note} {time.monotonic() - started:.0f} s\n")

    return progress


@torch.no_grad()
def held_out_quality(task: Task, network: nn.Module) -> dict[str, dict[str, float]]:
    """Held-out sample -> the metric of the baseline and of the network."""
    return {
        sample.name: {
            task.baseline_name: round(task.quality(task.baseline(sample), sample.truth), 3),
            "teacher": round(task.quality(network(*sample.inputs), sample.truth), 3),
        }
        for sample in task.held_out()
    }


def command(description: str | None, make: Callable[[int, int, Literal["no", "bf16"], Path], None], steps: int) -> None:
    """The command line of a task's teacher; `make(steps, seed, precision, folder)`."""
    options = parsed(parser_of(description, steps))
    make(options.steps, options.seed, options.precision, options.out)


def parser_of(description: str | None, steps: int) -> argparse.ArgumentParser:
    """The options that every teacher's command line has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of this process; threads are set and the folder is there."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    return options
