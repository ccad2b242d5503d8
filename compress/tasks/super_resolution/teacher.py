"""The embedded super-resolution teacher: how it was made, and how to make it again.

    python -m mcompress.compress.tasks.super_resolution.teacher --steps 18000 --seed 0 --precision bf16 --out FOLDER

trains a small RRDBNet on the embedded training photographs with L1 loss and writes `teacher.safetensors` (fp16) and `teacher.json`, which records the
command, the data digest, the torch version and the held-out PSNR. About an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mcompress.compress.checkpoints import FileCheckpoints
from mcompress.compress.models.rrdb import rrdb, start_as_bilinear
from mcompress.compress.objectives.fit_truth import FitTruth
from mcompress.compress.tasks.super_resolution import photos
from mcompress.compress.tasks.super_resolution.task import SuperResolution
from mcompress.compress.train import TrainSettings, train
from mcompress.targets.schema import DataConfig
from mcompress.targets.stages import TrainingConfig

MODULE = "mcompress.compress.tasks.super_resolution.teacher"
TEACHER_ARGS = {"features": 32, "blocks": 4, "growth": 16}
LEARNING_RATE, WARMUP_STEPS, AVERAGE = 4e-4, 200, 0.999


@torch.no_grad()
def held_out_psnr_db(task: SuperResolution, network: nn.Module) -> dict[str, dict[str, float]]:
    """Photograph -> PSNR of bicubic enlargement and of the network, dB."""
    return {
        sample.name: {
            "bicubic": round(task.quality(task.baseline(sample), sample.truth), 3),
            "teacher": round(task.quality(network(sample.input), sample.truth), 3),
        }
        for sample in task.held_out()
    }


def train_teacher(config: TrainingConfig, seed: int, folder: Path) -> None:
    """Train, round to fp16, evaluate, write; continues from `folder/checkpoint.pt` if it exists."""
    task = SuperResolution.from_config(DataConfig())
    torch.manual_seed(seed)
    network = rrdb(**TEACHER_ARGS)
    start_as_bilinear(network)
    settings = TrainSettings(config.steps, config.learning_rate, seed, WARMUP_STEPS, AVERAGE, precision=config.precision)
    started = time.monotonic()

    def progress(done: int, total: int, note: str) -> None:
        if done % 500 == 0:
            sys.stderr.write(f"{done}/{total} {note} {time.monotonic() - started:.0f} s\n")

    result = train(FitTruth(task, config, network), settings, FileCheckpoints(folder / "checkpoint.pt"), progress)
    half = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    network.load_state_dict(half)
    save_file(half, folder / "teacher.safetensors")
    record = {
        "model": "rrdb",
        "args": TEACHER_ARGS,
        "command": f"python -m {MODULE} --steps {config.steps} --seed {seed} --precision {config.precision}",
        "training_photos": [name for _, name in photos.TRAINING_PHOTOS],
        "training_digest": task.training_photos.digest,
        "torch": torch.__version__,
        "train_seconds": round(result.seconds),
        "held_out_psnr_db": held_out_psnr_db(task, network),
    }
    (folder / "teacher.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=18000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    config = TrainingConfig(steps=options.steps, batch_size=8, crop_size=32, learning_rate=LEARNING_RATE, precision=options.precision)
    train_teacher(config, options.seed, options.out)


if __name__ == "__main__":
    main()
