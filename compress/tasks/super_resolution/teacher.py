"""The embedded super-resolution teacher: how it was made, and how to make it again.

    python -m mcompress.compress.tasks.super_resolution.teacher --steps 18000 --seed 0 --out FOLDER

trains a small RRDBNet on the embedded training photographs with L1 loss and writes `teacher.safetensors` (fp16) and `teacher.json`, which records the
command, the data digest, the package versions and the held-out PSNR.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from mcompress.compress.models.rrdb import rrdb, start_as_bilinear
from mcompress.compress.tasks.super_resolution import photos
from mcompress.compress.train import TrainSettings, train

TEACHER_ARGS = {"features": 32, "blocks": 4, "growth": 16}
LOW_SIZE, BATCH_SIZE = 32, 8


class FitPhotos:
    """Objective: a network learns the training photographs by mean absolute error."""

    def __init__(self, network: nn.Module, levels: tuple[Tensor, ...], batch_size: int, low_size: int) -> None:
        self.network, self.levels, self.batch_size, self.low_size = network, levels, batch_size, low_size

    def players(self) -> Mapping[str, nn.Module]:
        return {"generator": self.network}

    def frozen(self) -> Mapping[str, nn.Module]:
        return {}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        low, high = photos.random_batch(self.levels, self.batch_size, self.low_size, generator)
        self.low, self.high = low.to(device), high.to(device)

    def terms(self, player: str) -> Mapping[str, Tensor]:  # noqa: ARG002  (one player)
        return {"l1": functional.l1_loss(self.network(self.low).float(), self.high)}


class FileCheckpoints:
    """Keeps the training state in one file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, object] | None:
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, state: dict[str, object]) -> None:
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)


def psnr_db(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio over all RGB values in [0, 1], after rounding to 8 bits."""
    rounded = (image.clamp(0, 1) * 255).round() / 255
    return float(-10 * torch.log10(torch.mean((rounded - reference) ** 2)))


@torch.no_grad()
def held_out_psnr_db(network: nn.Module) -> dict[str, tuple[float, float]]:
    """Photo -> (bicubic, network) PSNR on the embedded held-out photographs."""
    scores = {}
    for photo in photos.embedded_photos(photos.HELD_OUT_PHOTOS).photos:
        low, high = photos.whole_pair(photo)
        scores[photo.name] = (psnr_db(photos.bicubic_upsample(low), high), psnr_db(network(low), high))
    return scores


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=18000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    training = photos.embedded_photos(photos.TRAINING_PHOTOS)
    network = rrdb(**TEACHER_ARGS)
    start_as_bilinear(network)
    objective = FitPhotos(network.to(memory_format=torch.channels_last), photos.pyramid(training.photos, LOW_SIZE * photos.SCALE), BATCH_SIZE, LOW_SIZE)
    settings = TrainSettings(options.steps, 4e-4, options.seed, warmup_steps=200, average=0.999, precision=options.precision)
    started = time.monotonic()

    def progress(done: int, total: int, note: str) -> None:
        if done % 500 == 0:
            sys.stderr.write(f"{done}/{total} {note} {time.monotonic() - started:.0f} s\n")

    result = train(objective, settings, FileCheckpoints(options.out / "checkpoint.pt"), progress)
    half = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    network.load_state_dict(half)
    save_file(half, options.out / "teacher.safetensors")
    record = {
        "model": "rrdb",
        "args": TEACHER_ARGS,
        "command": f"python -m mcompress.compress.tasks.super_resolution.teacher --steps {options.steps} --seed {options.seed} --precision {options.precision}",
        "training_photos": [name for _, name in photos.TRAINING_PHOTOS],
        "training_digest": training.digest,
        "torch": torch.__version__,
        "train_seconds": round(result.seconds),
        "held_out_psnr_db": {name: {"bicubic": round(b, 3), "teacher": round(t, 3)} for name, (b, t) in held_out_psnr_db(network).items()},
    }
    (options.out / "teacher.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
