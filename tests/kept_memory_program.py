"""Says how often the C library asks the system for memory, in a training and after it; `test_kept_memory` runs it in fresh processes."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from conftest import MemoryCheckpoints, silent
from torch import Tensor, nn

from mcompress.compress.memory import freed_memory_kept
from mcompress.compress.train import Objective, TrainSettings, train


def faults() -> int:
    """Page faults of ten blocks that are larger than what glibc ever keeps by itself: each is mapped anew, unless freed memory is kept."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(40 << 18)  # 40 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Wasteful(Objective):
    """Uses large blocks in every step."""

    def __init__(self) -> None:
        self.network = nn.Linear(1, 1)

    def players(self) -> Mapping[str, nn.Module]:
        return {"line": self.network}

    def begin_step(self, generator: torch.Generator, device: torch.device) -> None:
        self.faults, self.resident_mb = faults(), resident_mb()

    def terms(self, player: str) -> Mapping[str, Tensor]:
        return {"mse": self.network(torch.ones(8, 1)).square().mean()}


def a_training() -> tuple[int, int, float]:
    wasteful = Wasteful()
    train(wasteful, TrainSettings(steps=3, learning_rate=0.05, seed=1, checkpoint_every_s=0.0), MemoryCheckpoints(), silent)
    return wasteful.faults, faults(), wasteful.resident_mb - resident_mb()


def one_within_another() -> tuple[int, int]:
    with freed_memory_kept():
        with freed_memory_kept():
            faults()
        kept = faults()
    return kept, faults()


def one_overruled() -> tuple[int, int]:
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "131072"
    usual = faults()
    with freed_memory_kept():
        faults()
        return faults(), usual


if __name__ == "__main__":
    sys.stdout.write(json.dumps({one.__name__: one for one in (a_training, one_within_another, one_overruled)}[sys.argv[1]]()))
